"""The count of wrong credentials, in a time of its own."""

import pytest

from gateway import failed_logins
from gateway.errors import RateLimited
from gateway.failed_logins import FailedLogins
from tests.seconds import Seconds


def test_after_a_minute_an_address_may_try_again():
    clock = Seconds()
    failed = FailedLogins(2, clock)
    for _ in range(2):
        failed.check("192.0.2.1")
        failed.note("192.0.2.1")
    with pytest.raises(RateLimited):
        failed.check("192.0.2.1")
    failed.check("192.0.2.2")
    clock.now += 60
    failed.check("192.0.2.1")
    failed.note("192.0.2.1")
    failed.check("192.0.2.1")


def test_many_addresses_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(failed_logins, "MAX_ADDRESSES", 3)
    failed = FailedLogins(1, Seconds())
    for number in range(10):
        failed.note(f"192.0.2.{number}")
    failed.check("192.0.2.0")
    with pytest.raises(RateLimited):
        failed.check("192.0.2.9")


def test_a_subscriber_is_one_address_however_many_it_has():
    failed = FailedLogins(1, Seconds())
    failed.note("2001:db8:1:2::1")
    with pytest.raises(RateLimited):
        failed.check("2001:db8:1:2:ffff::9")
    failed.check("2001:db8:1:3::1")
    failed.note("192.0.2.1")
    with pytest.raises(RateLimited):
        failed.check("::ffff:192.0.2.1")
