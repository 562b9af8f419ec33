"""Faults of one server of the store and of the way to it, under load through a whole proxy. None fails open."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from tests.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.faults.store_scene import Scene, a_scene
from tests.faults.table import FaultRow
from tests.servers import Server, valkey_server
from tests.users import GATEWAY, password_of

pytestmark = pytest.mark.real_store

OPTIONS = {"appendfsync": "always", "busy-reply-threshold": 300}


@pytest.fixture
def server() -> Iterator[Server]:
    with valkey_server(persistent=True, options=OPTIONS) as running:
        yield running


@pytest.fixture
async def scene(server: Server, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Scene]:
    async with a_scene(server.url, [server], caplog) as made:
        yield made


def nothing() -> None:
    """The fault ends by itself."""


# The process


async def test_killed(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis killed (-9)"
    for _ in range(tries):
        await scene.a_try(row, server.kill, server.start)
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


async def test_stopped(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis stopped (SIGSTOP)"
    for _ in range(tries):
        await scene.a_try(row, lambda: server.signal(signal.SIGSTOP), lambda: server.signal(signal.SIGCONT), lasting_s=1.2)
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


async def test_loading(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis loads its data (LOADING)"
    arguments = server.args

    def restart() -> None:
        with server.admin() as client:
            client.mset({f"filling:{number}": "x" * 64 for number in range(600)})
            client.execute_command("BGREWRITEAOF")
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.01)
            delay_us = 1_000_000 // client.dbsize()  # of each key: there are more with every try
        server.args = (*arguments, "--key-load-delay", f"{delay_us}", "--loading-process-events-interval-bytes", "1024")
        server.kill()
        server.start()  # returns when it is loaded

    for _ in range(tries):
        await scene.a_try(row, restart, nothing, lasting_s=0)
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


async def test_busy(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis runs a script for long (BUSY)"

    def run_long() -> None:
        with server.admin() as client, contextlib.suppress(redis.RedisError):
            client.eval("while true do end", 0)

    for _ in range(tries):
        running = threading.Thread(target=run_long)
        await scene.a_try(row, running.start, lambda: server.command("SCRIPT", "KILL"), lasting_s=0.8)
        await asyncio.to_thread(running.join)
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


async def test_out_of_memory(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis is out of memory (OOM)"

    def fill() -> None:
        with server.admin() as client:
            client.config_set("maxmemory", "3mb")
            with contextlib.suppress(redis.OutOfMemoryError):
                for number in range(10_000):
                    client.set(f"filling:{number}", "x" * 10_000)

    def free() -> None:
        with server.admin() as client:
            client.delete(*client.keys("filling:*"))
            client.config_set("maxmemory", "0")

    for _ in range(tries):
        await scene.a_try(row, fill, free)
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


async def test_read_only(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis is demoted (READONLY)"
    for _ in range(tries):
        await scene.a_try(
            row, lambda: server.command("REPLICAOF", "127.0.0.1", 1), lambda: server.command("REPLICAOF", "NO", "ONE")
        )
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


async def test_scripts_are_forgotten(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis forgets scripts (SCRIPT FLUSH every 100 ms)"

    async def flush() -> None:
        for _ in range(6):
            await asyncio.to_thread(server.command, "SCRIPT", "FLUSH")
            await asyncio.sleep(0.1)

    for _ in range(tries):
        await scene.a_try(row, flush, nothing, lasting_s=0)
    assert {reply.status for _, reply in scene.wide.told} == {200}


async def test_the_password_is_changed(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis has another password"
    with server.admin() as client:

        def become(password: str) -> None:
            client.execute_command("ACL", "SETUSER", GATEWAY, "resetpass", f">{password}")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        for _ in range(tries):
            await scene.a_try(row, lambda: become("another"), lambda: become(password_of(GATEWAY)), lasting_s=0.4)
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


async def test_no_more_clients_are_taken(row: FaultRow, tries: int, scene: Scene, server: Server):
    row.kind = "redis takes no more clients (maxclients)"
    with server.admin() as client:

        def fill() -> None:
            client.config_set("maxclients", "1")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        for _ in range(tries):
            await scene.a_try(row, fill, lambda: client.config_set("maxclients", "1000"), lasting_s=0.4)
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


# The way to it


@pytest.fixture
def way(server: Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.port, seed=11, delay_ms=(100, 900)) as proxy:
        yield proxy


@pytest.fixture
async def distant(server: Server, way: FaultProxy, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Scene]:
    async with a_scene(server.url_over(way.port), [server], caplog) as made:
        yield made


@pytest.mark.parametrize("fault", Fault, ids=str)
async def test_network(row: FaultRow, tries: int, distant: Scene, way: FaultProxy, fault: Fault):
    row.kind = f"redis's network: {fault.replace('_', ' ')}"
    for _ in range(tries):
        await distant.a_try(row, lambda: way.at_random({fault: 0.5}), lambda: way.at_random({}), lasting_s=0.25)
    assert way.seen[fault] >= tries


async def test_every_reply_is_slow(row: FaultRow, tries: int, server: Server, caplog: pytest.LogCaptureFixture):
    row.kind = "redis is slower than its deadline"
    with fault_proxy(server.port, delay_ms=(700, 800)) as slow:
        async with a_scene(server.url_over(slow.port), [server], caplog) as scene:
            for _ in range(tries):
                await scene.a_try(
                    row, lambda: slow.at_random({Fault.DELAY_REPLY: 1}), lambda: slow.at_random({}), lasting_s=1.2
                )
            assert [reply for _, reply in scene.wide.told if reply.status == 503]


async def test_connections_are_refused(row: FaultRow, tries: int, distant: Scene, way: FaultProxy):
    row.kind = "redis refuses connections"
    for _ in range(tries):
        await distant.a_try(row, way.refuse, way.accept)
    assert [reply for _, reply in distant.wide.told if reply.status == 503]


def test_a_count_that_is_wrong_is_seen():
    """What the rows above rest on."""

    class Lying(Scene):
        def counts(self) -> tuple[list[int], int]:
            return [0, 1], 1

    async def check() -> None:
        told: Any = type("None served", (), {"served": 0})()
        async with asyncio.timeout(60):
            await Lying(None, (), told, told, None).check_counts()  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.faults.store_scene.PATIENCE_S", 0.2)
        with pytest.raises(AssertionError, match="the store says"):
            asyncio.run(check())
