"""What clients are told while the store is away, by the configuration; and what it costs to find out who calls."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from gateway import virtual_key
from gateway.composition import opened_stores
from gateway.config import Config
from gateway.errors import ConfigurationError
from gateway.proxy.admitter import EARLY_BODY_BYTES
from gateway.store import open_stores
from gateway.store.embedded import find_server
from tests.gateways import ATenant, Gateway, running_proxy
from tests.servers import Server, connected, redis_cluster, valkey_server
from tests.stores import opened
from tests.traffic import recorded_in
from tests.wire import Call, Message, an_upstream, eventually

pytestmark = pytest.mark.real_store

REDIS = {"command_timeout": 1_000, "connect_timeout": 500, "pool_wait": 50}
DURABLE = {"appendfsync": "always"}


def cached(replicas: int = 1, **more: Any) -> dict[str, Any]:
    return {"store_failure": "cached", "replicas": replicas, **more}


def limiter(*limits: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "rate_limiter", "settings": {"limits": list(limits)}}]


@contextlib.asynccontextmanager
async def a_scene(
    limits: dict[str, Any], *chain: dict[str, Any], may_answer: asyncio.Event | None = None, **tenant: Any
) -> AsyncIterator[tuple[Gateway, Server, ATenant]]:
    """A proxy with its own store, and a tenant with a limited rule; ``/v1/slow`` waits until its target may answer."""

    async def answer(call: Call) -> None:
        await call.read_body()
        if call.request.target == "/v1/slow" and may_answer is not None:
            await may_answer.wait()
        await call.answer(200, body=b"ok")

    with valkey_server(persistent=True, options=DURABLE) as server:
        async with running_proxy(server.url, limits=limits, redis=REDIS) as gateway, an_upstream(answer) as upstream:
            made = await gateway.new_tenant(**tenant)
            await gateway.new_rule(made, upstream.url, plugin_chain=limiter(*chain))
            yield gateway, server, made


async def ask(gateway: Gateway, tenant: ATenant, path: str = "/v1/x", key: str | None = None) -> Message:
    return await gateway.ask("GET", path, host=tenant.host, key=key or tenant.secret)


async def statuses(gateway: Gateway, tenant: ATenant, count: int, key: str | None = None) -> list[int]:
    return [(await ask(gateway, tenant, key=key)).status for _ in range(count)]


async def lose(gateway: Gateway, server: Server, tenant: ATenant) -> None:
    """The store dies, and the gateway has found out: by calls of a tenant that no store has confirmed."""
    server.kill()
    await not_asked(gateway, tenant)


async def not_asked(gateway: Gateway, tenant: ATenant) -> None:
    while not any(breaker.is_open for breaker in gateway.connection.breakers()):
        reply = await gateway.ask("GET", "/v1/x", host=tenant.host, key=virtual_key.new_secret())
        assert (reply.status, reply.code) == (503, "store_unavailable")


async def back(gateway: Gateway) -> None:
    await eventually(lambda: not any(breaker.is_open for breaker in gateway.connection.breakers()))


def is_settled(server: Server, count: int) -> bool:
    return recorded_in(server) == count


# deny


async def test_by_default_nobody_is_served_and_everybody_is_told_at_once_when_to_try_again():
    async with a_scene({}, {"limit": 100, "window": "1h"}) as (gateway, server, tenant):
        assert await statuses(gateway, tenant, 2) == [200, 200]
        await lose(gateway, server, tenant)
        for _ in range(20):
            reply = await ask(gateway, tenant)
            assert (reply.status, reply.code, reply.get("retry-after")) == (503, "store_unavailable", "1")
        ready = await gateway.ask("GET", "/health/ready", host="localhost")
        assert (ready.status, ready.code) == (503, "store_unavailable")
        metrics = gateway.metrics.exposition()[0].decode()
        assert 'gateway_store_breakers{state="closed"} 0.0' in metrics
        server.start()
        await back(gateway)
        assert (await ask(gateway, tenant)).status == 200
        assert (await gateway.ask("GET", "/health/ready", host="localhost")).status == 200
        assert 'gateway_store_breakers{state="closed"} 1.0' in gateway.metrics.exposition()[0].decode()


async def test_calls_that_were_not_sent_leave_nothing_to_be_settled():
    async with a_scene({}, {"limit": 1_000, "window": "1h"}) as (gateway, server, tenant):
        assert await statuses(gateway, tenant, 1) == [200]
        await eventually(lambda: is_settled(server, 1))
        await lose(gateway, server, tenant)
        assert set(await statuses(gateway, tenant, 50)) == {503}
        server.start()
        await back(gateway)
        before = server.command("INFO", "commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
        assert (await ask(gateway, tenant)).status == 200
        await eventually(lambda: is_settled(server, 2))
        stats = server.command("INFO", "commandstats")
        assert stats["cmdstat_evalsha"]["calls"] - before <= 6  # the request and its settlement, the scripts loaded anew
        assert len(server.command("KEYS", "gw:*:req:*")) <= 2


# cached


async def test_a_share_of_what_was_left_is_admitted_while_the_store_is_away_and_charged_when_it_is_back():
    limits = {"limit": 20, "window": "1h"}, {"name": "month", "quota": {"monthly": 1_000}}
    async with a_scene(cached(2), *limits) as (gateway, server, tenant):
        assert await statuses(gateway, tenant, 4) == [200] * 4
        await eventually(lambda: is_settled(server, 4))
        await lose(gateway, server, tenant)
        # 16 were left, which two replicas share
        assert await statuses(gateway, tenant, 12) == [200] * 8 + [503] * 4
        assert "gateway_cached_admissions_total 8.0" in gateway.metrics.exposition()[0].decode()
        assert (await gateway.ask("GET", "/health/ready", host="localhost")).status == 200
        server.start()
        await back(gateway)
        assert (await ask(gateway, tenant)).status == 200
        await eventually(lambda: is_settled(server, 13))
        (log,) = server.command("KEYS", "*:limit:log:*")
        assert server.command("LLEN", log) == 13
        (budget,) = server.command("KEYS", "*:limit:budget:*")
        assert server.command("HGET", budget, "spent") == b"13"
        assert await statuses(gateway, tenant, 9) == [200] * 7 + [429] * 2


async def test_a_share_below_one_admits_nothing():
    async with a_scene(cached(3), {"limit": 5, "window": "1h"}) as (gateway, server, tenant):
        assert await statuses(gateway, tenant, 3) == [200] * 3
        await lose(gateway, server, tenant)
        assert await statuses(gateway, tenant, 3) == [503] * 3


async def test_a_quota_of_which_nothing_is_known_admits_nothing_unless_it_is_a_shadow():
    def asked_for(user: str) -> Awaitable[Message]:
        return gateway.ask("POST", "/v1/x", host=tenant.host, key=tenant.secret, fields=[("x-user", user)], body=b"{}")

    per_user = {"per": ["header:x-user"]}
    for limit, status in (
        ({"quota": {"daily": 100}, **per_user}, 503),
        ({"quota": {"daily": 100}, "shadow": True, **per_user}, 200),
        ({"limit": 100, "window": "1h", **per_user}, 200),
    ):
        async with a_scene(cached(), limit) as (gateway, server, tenant):
            assert (await asked_for("seen")).status == 200
            await lose(gateway, server, tenant)
            assert [(await asked_for(user)).status for user in ("seen", "new", "seen")] == [200, status, 200], limit
            # what is left of the time is counted down from what the store said last
            said = (await asked_for("seen")).get("ratelimit")
            assert said is None or 0 < int(said.rpartition("t=")[2]) <= 86_400, said


async def test_large_bodies_of_those_who_were_confirmed_are_read_and_those_of_others_are_not():
    limit = {"limit": 100, "window": "1h", "per": ["model"]}
    cached_for_s = 4
    large = b'{"model": "m", "messages": [], "x": "%s"}' % (b"x" * 2 * EARLY_BODY_BYTES)
    async with a_scene(cached(cached_for=f"{cached_for_s}s"), limit) as (gateway, server, tenant):

        async def told(key: str, body: bytes) -> int:
            async with gateway.connected() as wire:
                fields = [*gateway.fields(key=key, host=tenant.host, body=large), ("content-type", "application/json")]
                return (await wire.ask("POST", "/v1/chat/completions", fields, body)).status

        assert await told(tenant.secret, large) == 200
        await lose(gateway, server, tenant)
        assert await told(tenant.secret, large) == 200
        # although nothing of them has come
        assert await told(virtual_key.new_secret(), b"") == 503
        await asyncio.sleep(cached_for_s)
        assert await told(tenant.secret, b"") == 503


async def test_whoever_the_store_has_not_confirmed_a_short_time_ago_is_refused():
    async with a_scene(cached(cached_for="1500ms"), {"limit": 1_000, "window": "1h"}) as (gateway, server, tenant):
        await gateway.new_rule(tenant, "http://127.0.0.1:1", path="/old")
        assert (await ask(gateway, tenant, "/old")).status == 502
        await asyncio.sleep(1.6)
        unused, revoked = await gateway.new_key(tenant), await gateway.new_key(tenant)
        for key in (tenant.secret, revoked):
            assert await statuses(gateway, tenant, 1, key) == [200]
        await gateway.revoke(tenant, revoked)
        assert await statuses(gateway, tenant, 1, revoked) == [401]
        other = await gateway.new_tenant("ruleless")
        assert (await ask(gateway, other)).status == 404  # it has no rules; that was confirmed
        assert await statuses(gateway, tenant, 1) == [200]
        confirmed = time.monotonic()
        await lose(gateway, server, tenant)
        for key in (unused, revoked, virtual_key.new_secret()):
            assert await statuses(gateway, tenant, 1, key) == [503]
        assert (await ask(gateway, other)).status == 503
        assert (await ask(gateway, tenant, "/old")).status == 503
        assert (await gateway.ask("GET", "/else", host=tenant.host, key=tenant.secret)).status == 503
        first = await ask(gateway, tenant)
        assert first.status == 200 or time.monotonic() - confirmed > 1.5
        await asyncio.sleep(1.6)
        assert await statuses(gateway, tenant, 1) == [503]
        ready = await gateway.ask("GET", "/health/ready", host="localhost")
        assert ready.status == 503  # there is nobody left who might be served


def utc_in(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


async def test_a_key_ends_at_its_time_also_while_the_store_is_away():
    async with a_scene(cached(), {"limit": 1_000, "window": "1h"}) as (gateway, server, tenant):
        ending = await gateway.new_key(tenant, expires_at=utc_in(3))
        assert await statuses(gateway, tenant, 1, ending) == [200]
        assert await statuses(gateway, tenant, 1) == [200]
        await lose(gateway, server, tenant)
        async with asyncio.timeout(20):
            while (await ask(gateway, tenant, key=ending)).status != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await ask(gateway, tenant, key=ending)).code == "store_unavailable"
        assert await statuses(gateway, tenant, 1) == [200]  # a key without an end is still known


async def test_the_grace_of_a_replaced_secret_ends_also_while_the_store_is_away():
    async with a_scene(cached(), {"limit": 1_000, "window": "1h"}) as (gateway, server, tenant):
        new, another = virtual_key.new_secret(), await gateway.new_key(tenant)
        await gateway.stores.api_keys.rotate(tenant.id, tenant.key_id, lambda key: key, virtual_key.digest(new), 3_000)
        for key in (tenant.secret, new, another):
            assert await statuses(gateway, tenant, 1, key) == [200]
        await lose(gateway, server, tenant)
        async with asyncio.timeout(20):
            while (await ask(gateway, tenant)).status != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        for key in (new, another):
            assert await statuses(gateway, tenant, 1, key) == [200]


async def test_a_suspended_tenant_is_refused_with_all_its_keys():
    async with a_scene(cached(), {"limit": 1_000, "window": "1h"}) as (gateway, server, tenant):
        another, other = await gateway.new_key(tenant), await gateway.new_tenant("other")
        await gateway.new_rule(other, "http://127.0.0.1:1")
        assert await statuses(gateway, other, 1) == [502]
        for key in (tenant.secret, another):
            assert await statuses(gateway, tenant, 1, key) == [200]
        await gateway.change_tenant(tenant, status="suspended")
        assert await statuses(gateway, tenant, 1) == [403]
        await lose(gateway, server, tenant)
        for key in (tenant.secret, another):
            assert await statuses(gateway, tenant, 2, key) == [503, 503]
        assert await statuses(gateway, other, 1) == [502]  # admitted


async def test_what_is_in_flight_without_the_store_is_bounded_and_free_again():
    may_answer = asyncio.Event()
    async with a_scene(cached(2), {"limit": 4, "unit": "concurrency"}, may_answer=may_answer) as (gateway, server, tenant):
        assert await statuses(gateway, tenant, 1) == [200]  # three places were left of which one is ours
        await lose(gateway, server, tenant)
        asked = [asyncio.create_task(ask(gateway, tenant, "/v1/slow")) for _ in range(4)]
        await eventually(lambda: sum(map(asyncio.Task.done, asked)) == 3)
        may_answer.set()
        assert sorted([reply.status for reply in await asyncio.gather(*asked)]) == [200, 503, 503, 503]
        await gateway.idle()
        assert await statuses(gateway, tenant, 3) == [200] * 3
        server.start()
        await back(gateway)
        await eventually(lambda: is_settled(server, 5))


async def test_a_short_window_begins_again_without_the_store():
    async with a_scene(cached(2), {"limit": 4, "window": "3s"}) as (gateway, server, tenant):
        assert await statuses(gateway, tenant, 1) == [200]
        await lose(gateway, server, tenant)
        await asyncio.sleep(3.1)
        assert await statuses(gateway, tenant, 4) == [200, 200, 503, 503]
        await asyncio.sleep(3.1)
        assert await statuses(gateway, tenant, 3) == [200, 200, 503]


def test_shares_of_a_number_that_nobody_told_are_refused():
    with pytest.raises(ValueError, match="needs replicas"):
        Config.model_validate({"limits": {"store_failure": "cached"}})


# Keys on hosts that name no tenant


async def test_a_flood_of_unknown_keys_is_401_however_few_connections_there_are(store_url: str):
    async with running_proxy(store_url, redis={"pool_size": 1, "pool_wait": 50}) as gateway:
        keys = [virtual_key.new_secret() for _ in range(300)]
        replies = await asyncio.gather(*(gateway.ask("GET", "/v1/x", host="localhost", key=key) for key in keys))
        assert {(reply.status, reply.code) for reply in replies} == {(401, "invalid_api_key")}


async def test_those_who_ask_at_once_for_one_key_share_a_call():
    with valkey_server() as server:
        async with opened(server) as stores:
            server.command("CONFIG", "RESETSTAT")
            asking = [asyncio.create_task(stores.admissions.subdomain_of_key("0" * 64)) for _ in range(50)]
            await asyncio.sleep(0)
            asking[0].cancel()
            found = await asyncio.gather(*asking, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert found[1:] == [None] * 49
            assert server.command("INFO", "commandstats")["cmdstat_get"]["calls"] == 1
            assert await stores.admissions.subdomain_of_key("0" * 64) is None  # asked anew: it may have been made


# Eviction


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_store_that_evicts_is_refused_with_what_to_do(policy: str):
    with valkey_server(options={"maxmemory-policy": policy}) as server:
        with pytest.raises(ConfigurationError, match=f"{server.address} evicts .*{policy}.*set maxmemory-policy noeviction"):
            async with opened_stores(Config.model_validate({"redis": {"url": server.url}}), None):
                pass
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        async with opened_stores(Config.model_validate({"redis": {"url": server.url}}), None):
            pass


async def test_every_primary_of_a_cluster_must_not_evict():
    with redis_cluster(find_server()) as cluster:
        cluster.nodes[2].command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        async with connected(cluster.url) as connection:
            with pytest.raises(ConfigurationError, match=cluster.nodes[2].address):
                await open_stores(connection, 60_000)


async def test_a_policy_that_may_not_be_read_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture):
    with valkey_server() as server:
        server.command("ACL", "SETUSER", "gw", "on", ">pw", "~*", "+@all", "-info")
        async with connected(f"redis://gw:pw@{server.address}") as connection:
            await open_stores(connection, 60_000, shebang=True)
    assert f"the store at {server.address} does not tell its maxmemory-policy; it must be noeviction" in caplog.text
