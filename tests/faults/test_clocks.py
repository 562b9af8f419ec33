"""Clocks that are set while requests run: a replica's matters to nobody, and what the store's does is bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.store.embedded import find_server
from tests.e2e.processes import Gateway, a_gateway, a_rule
from tests.faults.clocks import Clock, a_clock, needs_faketime
from tests.faults.table import FaultRow
from tests.servers import Server, redis_server, short_directory, valkey_server
from tests.traffic import recorded_in
from tests.wire import Call, an_upstream, connected_to, eventually, head_of

pytestmark = [pytest.mark.real_store, needs_faketime]

LEASE_MS, RENEW_MS = 1_500, 300
HOUR, DAY = 3_600, 86_400
HOST = "clocks.example.com"
SETTINGS = {
    "LIMITS__LEASE": f"{LEASE_MS}ms",
    "LIMITS__RENEW_EVERY": f"{RENEW_MS}ms",
    "REDIS__COMMAND_TIMEOUT": "20s",
    "REDIS__CONNECT_TIMEOUT": "20s",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
}
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PLACES = {"name": "places", "limit": 5, "unit": "concurrency"}
DAILY = {"name": "daily", "quota": {"daily": 1_000}}


@dataclass
class Scene:
    """Replicas on one store, and a tenant whose streams last until the test lets them end."""

    store: Server
    replicas: Sequence[Gateway]
    end: asyncio.Event
    tenant_id: str = ""
    key: str = ""

    async def used(self, replica: int = -1) -> dict[str, int]:
        """Of each limit."""
        report = await asyncio.to_thread(self.replicas[replica].admin, "GET", f"/tenants/{self.tenant_id}/usage", key=self.key)
        return {limit["name"].removesuffix("-per-day"): limit["used"] for limit in report.json["limits"]}

    def fields(self, key: str = "") -> list[tuple[str, str]]:
        return [("host", HOST), ("authorization", f"Bearer {key or self.key}")]

    async def statuses(self, count: int, replica: int = 0) -> list[int]:
        """Of so many short requests, one after the other."""
        async with connected_to(self.replicas[replica].proxy_port) as wire:
            return [(await wire.ask("GET", "/short", self.fields())).status for _ in range(count)]

    @contextlib.asynccontextmanager
    async def a_stream(self, replica: int = 0) -> AsyncIterator[None]:
        """A client in the middle of a stream; at the end of the context it must get the rest of it."""
        async with connected_to(self.replicas[replica].proxy_port) as wire:
            await wire.send(head_of("GET", "/stream", self.fields()))
            message = await wire.head()
            assert message.status == 200
            parts = wire.parts(message)
            assert await anext(parts) == b"data: 1\n\n"
            yield
            self.end.set()
            assert b"".join([part async for part in parts]) == b"data: [DONE]\n\n"
            self.end.clear()


@contextlib.asynccontextmanager
async def a_scene(store: Server, limits: Sequence[Mapping[str, Any]], *clocks: Clock | None) -> AsyncIterator[Scene]:
    """One replica for each clock, None for the true one."""
    async with contextlib.AsyncExitStack() as stack:
        settings = {**SETTINGS, "REDIS__URL": store.url}
        replicas = [
            stack.enter_context(
                a_gateway(
                    stack.enter_context(short_directory()),
                    settings=settings,
                    wait=False,
                    environment={} if clock is None else clock.environment(),
                )
            )
            for clock in clocks
        ]
        for replica in replicas:
            await asyncio.to_thread(replica.program.wait_until, replica.is_ready, "ready")
        end = asyncio.Event()

        async def serve(call: Call) -> None:
            await call.read_body()
            if call.request.target == "/stream":
                await call.send(SSE_HEAD)
                await call.send_chunk(b"data: 1\n\n")
                await end.wait()
                await call.send_chunk(b"data: [DONE]\n\n")
                await call.send(b"0\r\n\r\n")
            else:
                await call.answer(200, body=b"ok")

        upstream = await stack.enter_async_context(an_upstream(serve))
        scene = Scene(store, replicas, end)
        made = await asyncio.to_thread(replicas[0].new_tenant, "clocks", a_rule(upstream.url, limits))
        scene.tenant_id, scene.key = made.id, made.key
        yield scene


def ttls(store: Server, pattern: str) -> list[int]:
    with store.admin() as client:
        return [client.pttl(key) for key in client.scan_iter(pattern)]


def logged_time(gateway: Gateway) -> datetime:
    return datetime.fromisoformat(gateway.program.access_log()[-1]["time"])


async def test_a_replica_whose_clock_is_set_goes_on_as_if_nothing_had_happened(row: FaultRow, folder: Path):
    row.kind = "clock of a replica set by an hour, a day, and back"
    steps = (HOUR, -HOUR, DAY, -DAY)
    clock = a_clock(folder)
    windowed = {"name": "windowed", "limit": 3 * len(steps) + 2, "window": "1h"}
    with valkey_server() as store:
        async with a_scene(store, [windowed, PLACES, DAILY], clock, None) as scene:
            soon = (datetime.now(UTC) + timedelta(minutes=30)).isoformat(timespec="seconds").replace("+00:00", "Z")
            path = f"/tenants/{scene.tenant_id}/api-keys"
            made = await asyncio.to_thread(
                scene.replicas[1].admin, "POST", path, {"name": "short", "expires_at": soon}, key=scene.key
            )
            assert made.status == 201, made
            short_lived = made.json["api_key"]
            asked = 0
            async with connected_to(scene.replicas[0].proxy_port) as idle:
                for step in steps:
                    with row.one_try():
                        async with scene.a_stream():
                            clock.set(step)
                            # its connections are as idle as they were, and a key ends when the store says so
                            with row.answer():
                                reply = await idle.ask("GET", "/short", scene.fields(short_lived))
                            assert reply.status == 200
                            assert await scene.statuses(1, 1) == [200]
                            asked += 3
                            await asyncio.sleep(LEASE_MS / 1_000 + 0.5)
                            # renewed all the while, and counted by both as by one
                            for replica in (0, 1):
                                assert await scene.used(replica) == {"windowed": asked, "places": 1, "daily": asked}
                        await eventually(lambda asked=asked: recorded_in(store) == asked, 20)  # type: ignore[misc]
                        await eventually(scene.replicas[0].program.access_log)
                        ahead = logged_time(scene.replicas[0]) - datetime.now(UTC)
                        assert abs(ahead.total_seconds() - step) < 60, "the clock was not set"
                        assert all(0 < left <= 2 * HOUR * 1_000 + 10_000 for left in ttls(store, "*:limit:log:*"))
                        assert all(0 < left <= LEASE_MS for left in ttls(store, "*:req:*"))
            # to the last one, on either of them
            assert await scene.statuses(2, 0) == [200, 200]
            assert [await scene.statuses(1, replica) for replica in (0, 1)] == [[429], [429]]
            days = {key.rpartition(b":")[2].decode() for key in store.command("KEYS", "*:usage:*")}
            assert days <= {(datetime.now(UTC) - timedelta(days=ago)).date().isoformat() for ago in (0, 1)}
            errors = scene.replicas[0].program.stderr()
            assert '"level": "error"' not in errors, errors


async def test_when_the_clock_of_the_store_is_set_no_window_is_open_twice_and_live_requests_keep_their_places(
    row: FaultRow, folder: Path
):
    row.kind = "clock of Redis set forward and back by an hour"
    clock, now = a_clock(folder), datetime.now(UTC)
    noon = 12 * HOUR - (now.hour * HOUR + now.minute * 60 + now.second)
    clock.set(noon)  # far from the ends of the day
    with redis_server(clock.program(find_server())) as store:
        async with a_scene(store, [{"name": "windowed", "limit": 6, "window": "1m"}, PLACES, DAILY], None) as scene:
            with row.one_try():
                async with scene.a_stream():
                    assert await scene.statuses(6) == [200] * 5 + [429]

                    # forward: a window has passed on the clock that decides, and so it is open once more
                    clock.set(noon + HOUR)
                    with row.answer():
                        assert await scene.statuses(7) == [200] * 6 + [429]
                    # the lease of the stream had ended, too; its renewal takes the place again
                    with row.recovery():
                        await _until_used(scene, "places", 1)
                    admitted = 12
                    assert await scene.used() == {"windowed": 6, "places": 1, "daily": admitted}

                    # back: what was admitted is still counted, and the day goes on with what it has used
                    clock.set(noon)
                    assert await scene.statuses(2) == [429, 429]
                    await asyncio.sleep(LEASE_MS / 1_000 + 0.5)
                    assert await scene.used() == {"windowed": 6, "places": 1, "daily": admitted}
                # the end of a request is the end of its place, whatever the clock says
                await _until_used(scene, "places", 0)

                # no longer than until the clock has caught up
                clock.set(noon + HOUR + 65)
                assert await scene.statuses(7) == [200] * 6 + [429]
                assert (await scene.used())["daily"] == admitted + 6
            assert '"level": "error"' not in scene.replicas[0].program.stderr()


async def _until_used(scene: Scene, name: str, wanted: int) -> None:
    async with asyncio.timeout(20):
        while (await scene.used())[name] != wanted:  # noqa: ASYNC110  # asked of another process
            await asyncio.sleep(0.05)
