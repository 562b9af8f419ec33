"""A real gateway that may open few files: clients and targets use them up, and it serves on once some are free again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.processes import GATEWAY, Gateway, a_gateway, a_rule
from tests.engines import ENGINE
from tests.faults.table import FaultRow
from tests.servers import Server, valkey_server
from tests.wire import Call, Message, Wire, an_upstream, connected_to, eventually, head_of

pytestmark = pytest.mark.real_store

FILES = 128
# the shell lowers the bound and becomes the gateway
BOUNDED = ("/bin/sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh", *GATEWAY)
SETTINGS = {
    "REDIS__COMMAND_TIMEOUT": "5s",
    "REDIS__CONNECT_TIMEOUT": "5s",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
    "UPSTREAM__KEEP_ALIVE": "1s",
}
# clients shall be able to use up what there is, not only what is set aside for them
UNBOUNDED = {"SERVER__MAX_CONNECTIONS": "100000", "SERVER__MAX_CONNECTIONS_PER_IP": "100000"}
RECOVERY_S = 20.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Bounded:
    """The gateway, and a tenant's way through it."""

    gateway: Gateway
    key: str

    @property
    def pid(self) -> int:
        return self.gateway.program.process.pid

    def files(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - names are enough

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def is_running(self) -> bool:
        return self.gateway.program.process.poll() is None

    def request(self, path: str) -> bytes:
        return head_of("GET", path, [("host", "one.example.com"), ("authorization", f"Bearer {self.key}")])

    async def ask(self, path: str, seconds: float = 30.0) -> Message:
        async with asyncio.timeout(seconds), connected_to(self.gateway.proxy_port) as wire:
            await wire.send(self.request(path))
            return await wire.reply()

    async def serves(self, path: str = "/v1/quick") -> bool:
        """Whether a request is served now."""
        try:
            return (await self.ask(path, 5)).status == 200
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            return False

    async def until_it_serves(self) -> None:
        async with asyncio.timeout(RECOVERY_S):
            while not await self.serves():  # noqa: ASYNC110 - another process decides
                await asyncio.sleep(0.1)


@pytest.fixture
def store() -> Iterator[Server]:
    with valkey_server() as server:
        yield server


@contextlib.asynccontextmanager
async def bounded(folder: Path, store: Server) -> AsyncIterator[tuple[Bounded, asyncio.Event]]:
    """With a target that answers at once on ``/v1/quick``, and when the event is set elsewhere."""
    may_answer = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.read_body()
        if call.request.target != "/v1/quick":
            await may_answer.wait()
        await call.answer(200, body=b"ok")

    settings = {**SETTINGS, **UNBOUNDED, "REDIS__URL": store.url}
    async with an_upstream(answer) as upstream:
        with contextlib.ExitStack() as stack:
            started = a_gateway(folder, settings=settings, command=BOUNDED)
            gateway = await asyncio.to_thread(stack.enter_context, started)
            made = await asyncio.to_thread(gateway.new_tenant, "one", a_rule(upstream.url, path="/v1"))
            served = Bounded(gateway, made.key)
            await served.until_it_serves()
            yield served, may_answer
            assert served.is_running()


@contextlib.asynccontextmanager
async def idle_clients(port: int, count: int) -> AsyncIterator[list[Wire]]:
    """Clients that connect and say nothing."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected_to(port)) for _ in range(count)]


async def test_idle_clients_that_use_up_all_files_stop_nothing_for_good(folder: Path, store: Server, row: FaultRow, tries: int):
    row.kind = "files used up by idle clients"
    async with bounded(folder, store) as (served, _):
        for _ in range(tries):
            with row.one_try():
                async with idle_clients(served.gateway.proxy_port, 2 * FILES):
                    await eventually(lambda: served.files() >= FILES - 8, seconds=20)
                    before, began = served.cpu_s(), time.monotonic()
                    await asyncio.sleep(2)
                    if ENGINE != "granian":  # which tries again at once, see docs/servers.md
                        assert served.cpu_s() - before < 0.6 * (time.monotonic() - began)
                    assert served.is_running()
                    # and the store goes away meanwhile, so that its connection needs a file as well
                    store.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                with row.recovery():
                    await served.until_it_serves()


async def test_requests_to_a_slow_target_that_use_up_all_files_are_told_so_and_the_rest_is_served(
    folder: Path, store: Server, row: FaultRow, tries: int
):
    row.kind = "files used up by targets"
    async with bounded(folder, store) as (served, may_answer):
        for _ in range(tries):
            with row.one_try():
                may_answer.clear()
                asked = [asyncio.create_task(served.ask("/v1/slow")) for _ in range(FILES)]
                await eventually(lambda: served.files() >= FILES - 8, seconds=20)
                await asyncio.sleep(1)
                assert served.is_running()
                may_answer.set()
                told = await asyncio.gather(*asked, return_exceptions=True)
                statuses = [reply.status for reply in told if isinstance(reply, Message)]
                assert set(statuses) == {200, 503}
                # what has no answer was closed or never accepted, and is no longer waited for
                assert all(isinstance(reply, Message | OSError | asyncio.IncompleteReadError) for reply in told), told
                assert not any(isinstance(reply, TimeoutError) for reply in told), told
                with row.recovery():
                    await served.until_it_serves()
                await eventually(lambda: served.files() < FILES // 2, seconds=20)
