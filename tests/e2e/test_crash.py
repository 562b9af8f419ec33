"""A replica that is killed while it holds places and quotas: what it held ends with its lease, and nobody else's does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.calls import Answer
from tests.e2e.processes import Gateway, a_gateway
from tests.servers import Server, short_directory, valkey_server, wait_until
from tests.wire import Call, an_upstream, connected_to, head_of

pytestmark = pytest.mark.real_store

LEASE_MS = 3_000
SETTINGS = {
    "LIMITS__LEASE": f"{LEASE_MS}ms",
    "LIMITS__RENEW_EVERY": "300ms",
    "REDIS__COMMAND_TIMEOUT": "20s",
    "REDIS__CONNECT_TIMEOUT": "20s",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
}
PLACES, CHARGE, RELEASE = "places", "charge-per-month", "release-per-month"
LIMITS = [
    {"name": PLACES, "limit": 5, "unit": "concurrency"},
    {"name": "charge", "quota": {"monthly": 40}, "on_lost": "charge", "cost": 7},
    {"name": "release", "quota": {"monthly": 20}, "on_lost": "release", "cost": 3},
]
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def endless(call: Call) -> None:
    """A stream that has begun and does not end until it is left; what is no stream is answered."""
    await call.read_body()
    if call.request.target == "/stream":
        await call.send(SSE_HEAD)
        await call.send_chunk(b"data: 1\n\n")
        await call.until_gone()
    else:
        await call.answer(200, body=b"ok")


@dataclass
class Tenant:
    """A tenant, seen through one replica."""

    gateway: Gateway
    store: Server
    id: str
    subdomain: str
    key: str

    def used(self) -> dict[str, int]:
        """Of each limit, now."""
        report = self.gateway.admin("GET", f"/tenants/{self.id}/usage", key=self.key).json
        return {limit["name"]: limit["used"] for limit in report["limits"]}

    def ask(self) -> Answer:
        """A short request."""
        return self.gateway.proxy("GET", "/short", tenant=self.subdomain, key=self.key)

    def now_ms(self) -> int:
        """By the store's clock."""
        seconds, micros = self.store.command("TIME")
        return int(seconds) * 1_000 + int(micros) // 1_000

    @contextlib.asynccontextmanager
    async def stream(self, gateway: Gateway) -> AsyncIterator[None]:
        """A client that has the first event of a stream and stays."""
        fields = [("host", f"{self.subdomain}.example.com"), ("authorization", f"Bearer {self.key}")]
        async with connected_to(gateway.proxy_port) as wire:
            await wire.send(head_of("GET", "/stream", fields))
            message = await wire.head()
            assert message.status == 200
            await anext(wire.parts(message))
            yield


def a_tenant(gateway: Gateway, store: Server, target: str) -> Tenant:
    made: dict[str, Any] = gateway.admin("POST", "/tenants", {"name": "Crash", "subdomain": "crash"}).json
    tenant = Tenant(gateway, store, made["id"], "crash", made["api_key"])
    rule = {"path": "/", "target": target, "plugin_chain": [{"name": "rate_limiter", "settings": {"limits": LIMITS}}]}
    answer = gateway.admin("POST", f"/tenants/{tenant.id}/rules", rule, key=tenant.key)
    assert answer.status == 201, answer
    return tenant


async def test_what_a_killed_replica_held_ends_within_a_lease_and_what_the_other_holds_does_not():
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(valkey_server())
        settings = {**SETTINGS, "REDIS__URL": store.url}
        survivor, victim = (
            stack.enter_context(a_gateway(stack.enter_context(short_directory()), settings=settings)) for _ in range(2)
        )
        upstream = await stack.enter_async_context(an_upstream(endless))
        tenant = await asyncio.to_thread(a_tenant, survivor, store, upstream.url)
        kept = await stack.enter_async_context(contextlib.AsyncExitStack())
        for replica in (survivor, survivor, victim, victim, victim):
            await kept.enter_async_context(tenant.stream(replica))
        assert await asyncio.to_thread(tenant.used) == {PLACES: 5, CHARGE: 35, RELEASE: 15}
        refused = await asyncio.to_thread(tenant.ask)
        assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_concurrent")

        victim.program.kill()
        killed_ms = tenant.now_ms()
        # by then, on the clock that decides: three of the places, and what was to be released
        await asyncio.to_thread(wait_until, lambda: tenant.now_ms() >= killed_ms + LEASE_MS, "the end of the lease")
        assert await asyncio.to_thread(tenant.used) == {PLACES: 2, CHARGE: 35, RELEASE: 6}

        # 35 of 40 are spent or held, so a request of 7 finds no room: three were charged for good, and two may come back
        refused = await asyncio.to_thread(tenant.ask)
        assert (refused.status, refused.headers.get("retry-after-ms")) == (429, None)

        # the survivor renews what it holds, lease after lease
        seen = []
        while tenant.now_ms() < killed_ms + 3 * LEASE_MS:
            seen.append(await asyncio.to_thread(tenant.used))
            await asyncio.sleep(0.05)
        assert len(seen) > 10
        assert [used for used in seen if used != {PLACES: 2, CHARGE: 35, RELEASE: 6}] == []

        await kept.aclose()
        await asyncio.to_thread(wait_until, lambda: tenant.used()[PLACES] == 0, "the end of the streams")
        assert await asyncio.to_thread(tenant.used) == {PLACES: 0, CHARGE: 35, RELEASE: 6}
        for key in store.command("KEYS", "*:limit:*"):
            assert store.command("PTTL", key) > 0
