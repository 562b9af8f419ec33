"""Guessing keys at the proxy: slow for who guesses, and nobody else's business."""

from gateway import virtual_key
from tests.gateways import running_proxy
from tests.wire import an_upstream

TRIES = {"failed_auth_per_minute": 5}
BEHIND = {"trusted_proxies": "127.0.0.0/8"}


def calls(server):
    stats = server.command("INFO", "commandstats")
    return sum(
        facts["calls"] for name, facts in stats.items() if name.split("_")[1] in {"evalsha", "hget", "get", "exists", "hgetall"}
    )


async def guess(gateway, times, *, host="testcompany.example.com", address=None, keys=virtual_key.new_secret):
    fields = {} if address is None else {"x-forwarded-for": address}
    return [(await gateway.ask("GET", "/v1/x", key=keys(), host=host, fields=fields)).status for _ in range(times)]


async def test_after_some_wrong_keys_an_address_is_told_to_wait_and_the_store_is_not_asked(store_url, valkey_store_server):
    async with running_proxy(store_url, limits=TRIES) as gateway:
        await gateway.new_tenant()
        assert await guess(gateway, 5) == [401] * 5
        before = calls(valkey_store_server)
        for host in ("testcompany.example.com", "nobody.example.com", "127.0.0.1"):
            for key in (virtual_key.new_secret(), "sk-1", None):
                reply = await gateway.ask("GET", "/v1/x", key=key, host=host)
                assert (reply.status, reply.code) == (429, "rate_limited")
                assert 0 < int(reply.get("retry-after") or 0) <= 60
        assert calls(valkey_store_server) == before
        assert "gateway_failed_auth_refused_total 9.0" in gateway.metrics.exposition()[0].decode()


async def test_every_way_to_fail_counts(store_url):
    for keys, host in (
        (virtual_key.new_secret, "nobody.example.com"),
        (virtual_key.new_secret, "127.0.0.1"),
        (lambda: "sk-1", "testcompany.example.com"),
        (lambda: None, "nobody.example.com"),
    ):
        async with running_proxy(store_url, limits=TRIES) as gateway:
            assert 429 not in await guess(gateway, 5, host=host, keys=keys)
            assert await guess(gateway, 1, host=host, keys=keys) == [429]


async def test_a_key_that_is_known_passes_beside_those_that_guess_and_a_revoked_one_is_known_no_more(store_url):
    async with running_proxy(store_url, limits=TRIES) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        good, revoked = await gateway.new_key(tenant), await gateway.new_key(tenant)
        for key in (good, revoked):
            assert await guess(gateway, 1, keys=lambda: key) == [200]  # noqa: B023
        assert await guess(gateway, 5) == [401] * 5
        assert await guess(gateway, 3, keys=lambda: good) == [200] * 3
        assert await guess(gateway, 1, keys=lambda: good, host="127.0.0.1") == [200]
        assert await guess(gateway, 1, keys=lambda: tenant.secret) == [429]
        await gateway.revoke(tenant, revoked)
        assert await guess(gateway, 3, keys=lambda: revoked) == [401, 429, 429]


async def test_addresses_are_counted_apart_as_trusted_proxies_tell_them_and_ipv6_by_subscriber(store_url):
    async with running_proxy(store_url, limits=TRIES, server=BEHIND) as gateway:
        await gateway.new_tenant()
        assert await guess(gateway, 6, address="203.0.113.1") == [401] * 5 + [429]
        assert await guess(gateway, 1, address="203.0.113.2") == [401]
        # what stands left of the nearest address is hearsay
        assert await guess(gateway, 1, address="198.51.100.7, 203.0.113.1") == [429]
        seen = [await guess(gateway, 1, address=f"2001:db8:1:2::{number:x}") for number in range(6)]
        assert seen == [[401]] * 5 + [[429]]
        assert await guess(gateway, 1, address="2001:db8:1:3::1") == [401]


async def test_without_trusted_proxies_no_header_hides_an_address(store_url):
    async with running_proxy(store_url, limits=TRIES) as gateway:
        await gateway.new_tenant()
        seen = [await guess(gateway, 1, address=f"203.0.113.{number}") for number in range(6)]
        assert seen == [[401]] * 5 + [[429]]
