"""Clients that leave whenever they like, come slowly, lie or flood: others are served, and nothing is left of them.

``GATEWAY_FAULT_ABORTS`` says how many clients leave at random moments on each engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.amounts import amount
from tests.engines import ENGINE
from tests.faults.table import FaultRow
from tests.gateways import ATenant, Gateway, running_proxy
from tests.wire import Call, Upstream, Wire, an_upstream, connected_to, eventually, head_of

ABORTS = amount("GATEWAY_FAULT_ABORTS", 120)
AT_ONCE = 12
HOLD = {"name": "rate_limiter", "settings": {"limit": 500, "unit": "concurrency"}}
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SHORT = "400ms"
CHUNKED = {"transfer-encoding": "chunked"}
UPLOAD_BYTES, MOST_TAKEN_BYTES = 30 << 20, 16 << 20
SMALL_BUFFER_BYTES = 64 << 10
FIRST_BYTE_S, QUIET_S = 10.0, 1.0


@pytest.fixture(params=["hypercorn", "granian", "uvicorn"])
def engine(request: pytest.FixtureRequest) -> str:
    if ENGINE not in (request.param, "hypercorn"):
        pytest.skip("the run of the default engine covers all")
    return str(request.param)


class Scene:
    """A gateway, its target, and what there was before any client came."""

    def __init__(self, gateway: Gateway, upstream: Upstream, tenant: ATenant) -> None:
        self.gateway, self.upstream, self.tenant = gateway, upstream, tenant
        self.tasks, self.descriptors = len(asyncio.all_tasks()), descriptors()

    def head(self, method: str, path: str, fields: Any = ()) -> bytes:
        return head_of(method, path, self.gateway.fields(key=self.tenant.secret, fields=fields))

    async def others_are_served(self, row: FaultRow) -> None:
        with row.answer():
            reply = await self.gateway.ask("GET", "/v1/ok", key=self.tenant.secret)
        assert reply.status == 200, reply

    async def nothing_is_left(self, row: FaultRow) -> None:
        """Back where it was: requests in flight, places held, tasks and descriptors."""
        with row.recovery():
            await eventually(lambda: not self.gateway.in_flight(), 10)
            async with asyncio.timeout(10):
                while await self._places():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        # what the pool keeps: idle connections, both of whose ends are here, each with a task of the test's own upstream
        await eventually(lambda: len(asyncio.all_tasks()) <= self.tasks + self.upstream.open_connections, 10)
        await eventually(lambda: descriptors() <= self.descriptors + 2 * self.upstream.open_connections + 4, 10)
        await self.others_are_served(row)

    async def _places(self) -> list[bytes]:
        client = self.gateway.stores.connection.client
        found: list[bytes] = []
        for key in await client.keys("*:limit:concurrency:*"):
            found += await client.zrange(key, 0, -1)
        return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Target:
    """Answers, streams without end, or says nothing, by path; ``gone`` counts connections that the gateway gave up."""

    def __init__(self) -> None:
        self.gone = 0
        self.held = 0
        self.hears = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        path = call.request.target
        if path == "/v1/deaf":
            call.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            await self.hears.wait()
            call.reset()
            return
        await call.read_body()
        if path == "/v1/ok":
            await call.answer(200, body=b"hello")
            return
        self.held += 1
        if path == "/v1/stream":
            await call.send(STREAM)
            with contextlib.suppress(ConnectionError):
                while not call.reader.at_eof():
                    await call.send_chunk(b"data: {}\n\n" + b"x" * 500)
                    await asyncio.sleep(0.01)
        await call.until_gone(60)
        self.gone += 1


@contextlib.asynccontextmanager
async def a_scene(store_url: str, engine: str, target: Callable[[Call], Any]) -> AsyncIterator[Scene]:
    server = {"engine": engine, "first_header_timeout": SHORT, "keep_alive": "65s"}
    limits = {"body_idle_timeout": SHORT}
    async with an_upstream(target) as upstream, running_proxy(store_url, server=server, limits=limits) as gateway:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[HOLD])
        assert (await gateway.ask("GET", "/v1/ok", key=tenant.secret)).status == 200
        await gateway.idle()
        yield Scene(gateway, upstream, tenant)


async def leave(wire: Wire, chance: random.Random) -> None:
    """With a reset, or an end."""
    if chance.random() < 0.5:
        sock = wire.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wire.abort()


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(valkey_store_server: Any, engine: str, row: FaultRow):
    row.kind = f"clients that leave at any moment ({engine})"
    valkey_store_server.command("FLUSHALL")
    chance, target = random.Random(), Target()
    row.tried = ABORTS
    async with a_scene(valkey_store_server.url, engine, target) as scene:
        left = iter(range(ABORTS))

        async def before_the_first_byte(wire: Wire) -> None:
            pass

        async def in_the_head(wire: Wire) -> None:
            head = scene.head("GET", "/v1/ok")
            await wire.send(head[: chance.randrange(1, len(head))])

        async def in_the_body(wire: Wire) -> None:
            await wire.send(scene.head("POST", "/v1/ok", {"content-length": "200000"}) + b"x" * chance.randrange(100_000))

        async def in_a_chunk(wire: Wire) -> None:
            await wire.send(scene.head("POST", "/v1/ok", CHUNKED) + b"5\r\nhello\r\n5\r\nhel"[: chance.randrange(16)])

        async def before_the_reply(wire: Wire) -> None:
            await wire.send(scene.head("GET", "/v1/hold"))
            await asyncio.sleep(chance.random() / 5)

        async def in_the_stream(wire: Wire) -> None:
            await wire.send(scene.head("GET", "/v1/stream"))
            assert (await wire.head()).status == 200
            await asyncio.sleep(chance.random() / 5)

        async def after_the_last_byte(wire: Wire) -> None:
            await wire.send(scene.head("GET", "/v1/ok"))
            assert (await wire.reply()).status == 200

        async def with_others_waiting(wire: Wire) -> None:
            await wire.send(scene.head("GET", "/v1/hold") + scene.head("GET", "/v1/ok") * 3)

        phases = [before_the_first_byte, in_the_head, in_the_body, in_a_chunk]
        phases += [before_the_reply, in_the_stream, after_the_last_byte]
        if engine != "granian":  # which does not read on behind a request
            phases.append(with_others_waiting)

        async def client() -> None:
            for number in left:
                async with connected_to(scene.gateway.port) as wire:
                    await phases[number % len(phases)](wire)
                    await asyncio.sleep(chance.choice((0, 0, 0.001, 0.02)))
                    await leave(wire, chance)

        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
        with row.recovery():  # the target is told that nobody waits any more
            await eventually(lambda: target.gone == target.held, 10)
        await scene.nothing_is_left(row)
    row.survived = row.tried


SLOW: dict[str, Callable[[Scene], bytes]] = {
    "no head": lambda scene: b"",
    "half a head": lambda scene: scene.head("GET", "/v1/ok")[:-2],
    "half a body": lambda scene: scene.head("POST", "/v1/ok", {"content-length": "10"}) + b"hello",
    "half a long body": lambda scene: scene.head("POST", "/v1/ok", {"content-length": "100000"}) + b"x" * 70_000,
    "half a chunk": lambda scene: scene.head("POST", "/v1/ok", CHUNKED) + b"5\r\nhel",
    "no last chunk": lambda scene: scene.head("POST", "/v1/ok", CHUNKED) + b"5\r\nhello\r\n",
    "half trailers": lambda scene: scene.head("POST", "/v1/ok", CHUNKED) + b"5\r\nhello\r\n0\r\nX: y\r\n",
    "100-continue and no body": lambda scene: scene.head("POST", "/v1/ok", {"content-length": "5", "expect": "100-continue"}),
}
"""What clients send before they stop."""


async def test_who_does_not_go_on_is_sent_away(valkey_store_server: Any, engine: str, row: FaultRow, tries: int):
    row.kind = f"clients that do not go on ({engine})"
    valkey_store_server.command("FLUSHALL")
    async with a_scene(valkey_store_server.url, engine, Target()) as scene:

        async def client(data: bytes) -> None:
            with row.one_try():
                async with connected_to(scene.gateway.port) as wire:
                    await wire.send(data)
                    async with asyncio.timeout(15):
                        said = await wire.reader.read()
                assert said in (b"", b"HTTP/1.1 100 Continue\r\n\r\n") or b" 408 " in said, said

        waiting = [asyncio.create_task(client(made(scene))) for made in SLOW.values() for _ in range(tries)]
        while not all(task.done() for task in waiting):
            await scene.others_are_served(row)
            await asyncio.sleep(0.05)
        await asyncio.gather(*waiting)
        await scene.nothing_is_left(row)


async def test_who_dribbles_a_head_gains_no_time(valkey_store_server: Any, engine: str, row: FaultRow, tries: int):
    row.kind = f"clients that dribble their heads ({engine})"
    valkey_store_server.command("FLUSHALL")
    async with a_scene(valkey_store_server.url, engine, Target()) as scene:

        async def client() -> None:
            with row.one_try(), contextlib.suppress(ConnectionError):
                async with connected_to(scene.gateway.port) as wire, asyncio.timeout(15):
                    await wire.send(b"GET /v1/ok HTTP/1.1\r\nX: ")
                    while not wire.reader.at_eof():
                        await wire.send(b"y")
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(wire.reader.read(100), 0.05)

        waiting = [asyncio.create_task(client()) for _ in range(10 * tries)]
        while not all(task.done() for task in waiting):
            await scene.others_are_served(row)
            await asyncio.sleep(0.05)
        await asyncio.gather(*waiting)
        await scene.nothing_is_left(row)


async def test_who_does_not_read_holds_nobody_up(valkey_store_server: Any, engine: str, row: FaultRow, tries: int):
    row.kind = f"clients that do not read ({engine})"
    valkey_store_server.command("FLUSHALL")
    target = Target()
    async with a_scene(valkey_store_server.url, engine, target) as scene, contextlib.AsyncExitStack() as stack:
        row.tried = 5 * tries
        wires = [await stack.enter_async_context(connected_to(scene.gateway.port)) for _ in range(row.tried)]
        for wire in wires:
            wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await wire.send(scene.head("GET", "/v1/stream"))
        await eventually(lambda: target.held == len(wires), 10)
        for _ in range(20):
            await scene.others_are_served(row)
        for wire in wires:
            wire.abort()
        await eventually(lambda: target.gone == target.held, 15)
        await scene.nothing_is_left(row)
        row.survived = row.tried


async def test_an_upload_to_a_target_that_does_not_read_is_held_back(
    valkey_store_server: Any, engine: str, row: FaultRow, tries: int
):
    row.kind = f"huge uploads to a target that does not read ({engine})"
    valkey_store_server.command("FLUSHALL")
    target = Target()
    async with a_scene(valkey_store_server.url, engine, target) as scene:
        for _ in range(tries):
            with row.one_try():
                async with connected_to(scene.gateway.port) as wire:
                    wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)
                    wire.writer.write(scene.head("POST", "/v1/deaf", {"content-length": str(UPLOAD_BYTES)}))
                    wire.writer.write(bytes(UPLOAD_BYTES))
                    taken = await taken_bytes(wire)
                    # buffers of the kernel between the gateway and either end, and of one connection; not the body
                    assert taken < MOST_TAKEN_BYTES
                    await scene.others_are_served(row)
                    wire.abort()
        target.hears.set()
        await scene.nothing_is_left(row)


async def taken_bytes(wire: Wire) -> int:
    """How much of an upload has left the client when no more does."""
    left = UPLOAD_BYTES
    since = time.monotonic()
    while time.monotonic() - since < QUIET_S:
        await asyncio.sleep(0.05)
        if (now := wire.writer.transport.get_write_buffer_size()) != left:
            left, since = now, time.monotonic()
    return UPLOAD_BYTES - left


async def test_floods_lies_and_churn_are_borne(valkey_store_server: Any, engine: str, row: FaultRow, tries: int):
    row.kind = f"floods, lies about lengths, churn ({engine})"
    valkey_store_server.command("FLUSHALL")
    async with a_scene(valkey_store_server.url, engine, Target()) as scene:
        ok = scene.head("GET", "/v1/ok")
        more = scene.head("POST", "/v1/ok", {"content-length": "2"}) + b"hello"
        fields = scene.head("GET", "/v1/ok", [(f"x-{number}", "y") for number in range(5_000)])

        async def said_to(data: bytes, *, end: bool = False) -> bytes:
            async with connected_to(scene.gateway.port) as wire:
                said = b""
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(FIRST_BYTE_S) as patience:
                        await wire.send(data)
                        if end:
                            wire.writer.write_eof()
                        while part := await wire.reader.read(1 << 16):
                            said += part
                            patience.reschedule(asyncio.get_running_loop().time() + QUIET_S)
                return said

        for _ in range(tries):
            with row.one_try():
                flood, lie, many = await asyncio.gather(said_to(ok * 500), said_to(more), said_to(fields))
                assert set(statuses(flood)) == {200}
                assert statuses(lie) in ([200, 400], [200])
                assert statuses(many) in ([431], [])
                half = await said_to(ok, end=True)
                assert statuses(half) in ([200], [])
                for _ in range(30):
                    assert (await scene.gateway.ask("GET", "/v1/ok", key=scene.tenant.secret)).status == 200
                await scene.others_are_served(row)
        await scene.nothing_is_left(row)


def statuses(said: bytes) -> list[int]:
    return [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]]
