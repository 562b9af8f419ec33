"""Wrong credentials slow down whoever presents them, and nobody else."""

from types import SimpleNamespace
from typing import Any

from werkzeug.datastructures import Headers

from gateway.admin.auth import Authenticator
from gateway.admin.operation import Access
from gateway.config import ServerSettings
from gateway.errors import InvalidApiKey, RateLimited
from gateway.failed_logins import FailedLogins
from tests.seconds import Seconds
from tests.unit.admin.helpers import OPERATOR


class Door:
    """An authenticator that takes two wrong credentials a minute, and its clock."""

    def __init__(self, **settings):
        self.clock = Seconds()
        server = ServerSettings(admin_token=OPERATOR, **settings)
        self.authenticator = Authenticator(None, server, FailedLogins(2, self.clock))  # type: ignore[arg-type]  # asks no store

    async def knock(self, credential, peer, *forwarded_for):
        """What comes of it: the caller's name, or the class of the refusal."""
        fields = [("authorization", f"Bearer {credential}"), *(("x-forwarded-for", value) for value in forwarded_for)]
        request: Any = SimpleNamespace(scope={"client": (peer, 1)}, headers=Headers(fields))
        try:
            address = self.authenticator.address_of(request)
            return (await self.authenticator.identify(request, Access.OPERATOR, address)).name
        except (InvalidApiKey, RateLimited) as refusal:
            return type(refusal)

    async def spend(self, peer, *forwarded_for):
        for _ in range(2):
            assert await self.knock("wrong", peer, *forwarded_for) is InvalidApiKey


async def test_right_credentials_pass_again_when_the_minute_is_over():
    door = Door()
    await door.spend("192.0.2.1")
    for _ in range(5):
        assert await door.knock(OPERATOR, "192.0.2.1") is RateLimited
    assert await door.knock(OPERATOR, "192.0.2.2") == "operator"
    door.clock.now += 60
    assert await door.knock(OPERATOR, "192.0.2.1") == "operator"


async def test_a_subscriber_of_ipv6_has_one_count_whatever_the_address():
    door = Door()
    assert await door.knock("wrong", "2001:db8:1:2::1") is InvalidApiKey
    assert await door.knock("wrong", "2001:db8:1:2:ffff::9") is InvalidApiKey
    assert await door.knock("wrong", "2001:db8:1:2:a::7") is RateLimited
    assert await door.knock(OPERATOR, "2001:db8:1:3::1") == "operator"
    await door.spend("::ffff:192.0.2.1")
    assert await door.knock("wrong", "192.0.2.1") is RateLimited


async def test_behind_a_trusted_proxy_the_client_counts_and_nobody_can_speak_for_another():
    door = Door(trusted_proxies=["10.0.0.0/8"])
    await door.spend("10.0.0.1", "203.0.113.9, 192.0.2.1")
    assert await door.knock(OPERATOR, "10.0.0.2", "192.0.2.1") is RateLimited
    assert await door.knock(OPERATOR, "10.0.0.1", "203.0.113.9") == "operator"
    # whoever is no proxy counts by its own address
    await door.spend("198.51.100.1", "203.0.113.9")
    assert await door.knock("wrong", "198.51.100.1", "203.0.113.10") is RateLimited
    assert await door.knock(OPERATOR, "10.0.0.1", "203.0.113.9") == "operator"
