"""What stands for a level in the name of a limit."""

import pytest

from gateway.policy.binding import _subscriber


@pytest.mark.parametrize(
    ("address", "subscriber"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_an_address_stands_for_a_subscriber(address, subscriber):
    assert _subscriber(address) == subscriber
