"""Replicas restarted one after another under load, behind a balancer that asks for their health: nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.amounts import amount, figure
from tests.e2e.processes import Gateway, a_demo_upstream, a_gateway, a_rule, answers_200
from tests.faults.balancer import Balancer, a_balancer
from tests.faults.callers import Callers
from tests.faults.table import FaultRow
from tests.servers import short_directory, valkey_server, wait_until
from tests.wire import connected_to

pytestmark = pytest.mark.real_store

DRAIN_DELAY_MS = 2_000
LIFE_S = 3_600.0
SHORT, STREAMING = 6, 6
REPLICAS = 2
SETTINGS = {
    "SERVER__DRAIN_DELAY": f"{DRAIN_DELAY_MS}ms",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
    # patient, because a busy machine is no fault of the store
    "REDIS__COMMAND_TIMEOUT": "10s",
    "REDIS__CONNECT_TIMEOUT": "10s",
}


@dataclass
class Fleet:
    """Replicas that keep their ports over restarts, what they share, and the balancer in front of them."""

    settings: Mapping[str, str]
    replicas: list[Gateway]
    leave: list[contextlib.ExitStack]
    balancer: Balancer
    callers: Callers

    async def restart(self, number: int, row: FaultRow) -> None:
        """Stop a replica in order, look at what it says meanwhile, and start it again."""
        leaving = self.replicas[number]
        leaving.program.signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: not answers_200(leaving.proxy_port, "/health/ready"), "not ready")
        # whoever has not heard of it yet is served
        with row.answer():
            async with connected_to(leaving.proxy_port) as wire:
                reply = await wire.ask("GET", "/v1/models", self.callers.fields(b""))
        assert (reply.status, reply.get("connection")) == (200, "close")
        assert await asyncio.to_thread(leaving.program.wait, 60) == 0
        assert '"level": "error"' not in leaving.program.stderr()
        with row.recovery():
            self.start(number, leaving.admin_port, leaving.proxy_port)
            await self.is_ready(number)

    def start(self, number: int, admin_port: int, proxy_port: int) -> None:
        """Another process on the ports of the one before."""
        self.leave[number].close()
        folder = self.leave[number].enter_context(short_directory())
        more = {**self.settings, "SERVER__ADMIN_PORT": str(admin_port), "SERVER__PROXY_PORT": str(proxy_port)}
        self.replicas[number] = self.leave[number].enter_context(a_gateway(folder, settings=more, wait=False, seconds=LIFE_S))

    async def is_ready(self, number: int) -> None:
        """Returns once a replica is, and the balancer knows it."""
        replica = self.replicas[number]
        await asyncio.to_thread(replica.program.wait_until, replica.is_ready, "ready")
        async with asyncio.timeout(30):
            while replica.proxy_port not in self.balancer.ready:  # noqa: ASYNC110  # asked by a task at intervals
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def a_fleet(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[Fleet]:
    """Two replicas on one store, ready, with a tenant that leads to the demo upstream."""
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(valkey_server())
        more = {**SETTINGS, **settings, "REDIS__URL": store.url}
        upstream = stack.enter_context(a_demo_upstream(folder, seconds=LIFE_S))
        leave = [stack.enter_context(contextlib.ExitStack()) for _ in range(REPLICAS)]
        replicas = [
            each.enter_context(
                a_gateway(each.enter_context(short_directory()), settings=more, wait=False, seconds=LIFE_S),
            )
            for each in leave
        ]
        balancer = await stack.enter_async_context(a_balancer([replica.proxy_port for replica in replicas]))
        fleet = Fleet(more, replicas, leave, balancer, Callers(balancer.port, "fleet.example.com", ""))
        for number in range(REPLICAS):
            await fleet.is_ready(number)
        fleet.callers.key = await asyncio.to_thread(a_tenant, replicas[0], upstream)
        yield fleet


def a_tenant(gateway: Gateway, upstream: int) -> str:
    """The key of a tenant whose requests take a place each."""
    limits = [{"limit": 1_000_000, "window": "1h"}, {"limit": 500, "unit": "concurrency"}]
    return gateway.new_tenant("fleet", a_rule(f"http://127.0.0.1:{upstream}", limits)).key


def restarts(kind: str, settings: Mapping[str, str], ordinary: int, *marks: pytest.MarkDecorator) -> Any:
    """A kind of replica, and how often one is restarted."""
    count = amount("GATEWAY_RESTARTS", ordinary)
    return pytest.param(kind, settings, count, marks=[pytest.mark.timeout(60 * (count + 3)), *marks], id=kind)


@pytest.mark.parametrize(
    ("kind", "settings", "count"),
    [
        restarts("hypercorn", {"SERVER__ENGINE": "hypercorn"}, 2),
        restarts("granian", {"SERVER__ENGINE": "granian"}, 1),
        restarts("uvicorn", {"SERVER__ENGINE": "uvicorn"}, 2, pytest.mark.long),
        restarts("two workers", {"SERVER__ENGINE": "hypercorn", "SERVER__WORKERS": "2"}, 1),
    ],
)
async def test_a_rolling_restart_fails_no_request_and_cuts_no_stream(
    row: FaultRow, folder: Path, kind: str, settings: Mapping[str, str], count: int
):
    row.kind = f"rolling restart by SIGTERM ({kind})"
    async with a_fleet(folder, settings) as fleet:
        callers = fleet.callers
        async with callers.at_work(SHORT, STREAMING):
            for number in range(count):
                before = callers.told.total(), callers.whole_streams
                with row.one_try():
                    await fleet.restart(number % len(fleet.replicas), row)
                    assert callers.failures == []
                assert callers.told.total() > before[0]
                assert callers.whole_streams > before[1]
        assert callers.failures == []
        assert set(callers.told) == {"200"}
        figure(
            f"{kind}: {count} restarts, {callers.told.total()} answers, all 200, {callers.whole_streams} whole streams, 0 cut"
        )
