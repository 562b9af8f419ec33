"""The count of wrong credentials, in a time of its own."""

import pytest

from gateway.admin import auth
from gateway.admin.auth import FailedLogins
from gateway.errors import RateLimited


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_after_a_minute_an_address_may_try_again():
    clock = Clock()
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
    monkeypatch.setattr(auth, "MAX_ADDRESSES", 3)
    failed = FailedLogins(1, Clock())
    for number in range(10):
        failed.note(f"192.0.2.{number}")
    failed.check("192.0.2.0")
    with pytest.raises(RateLimited):
        failed.check("192.0.2.9")
