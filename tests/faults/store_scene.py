"""A whole proxy under load whose store fails, and what must hold whatever the fault: nothing is decided but by the store."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.table import FaultRow
from tests.gateways import ATenant, Gateway, running_proxy
from tests.servers import Server
from tests.traffic import INTERNAL, recorded_in
from tests.wire import Call, Message, an_upstream

# As shipped but for the deadline, which a busy machine may miss without any fault.
REDIS = {"command_timeout": 500, "connect_timeout": 500, "pool_wait": 50}
TIGHT, WIDE = 5, 9_999
PATIENCE_S = 20.0
PAUSE_S = 0.02

Step = Callable[[], Any]


@dataclass
class Told:
    """What the callers of one tenant were told."""

    tenant: ATenant
    limit: int
    told: list[tuple[float, Message]] = field(default_factory=list)

    @property
    def served(self) -> int:
        """How many were admitted."""
        return sum(reply.status == 200 for _, reply in self.told)


@dataclass
class Scene:
    """A running proxy, a tenant with more than it needs and one whose limit is nearly spent."""

    gateway: Gateway
    servers: Sequence[Server]
    wide: Told
    tight: Told
    caplog: pytest.LogCaptureFixture

    async def ask(self, told: Told, row: FaultRow | None = None) -> int:
        """One request of a tenant; its status."""
        began = time.perf_counter()
        reply = await self.gateway.ask("GET", "/v1/x", host=told.tenant.host, key=told.tenant.secret)
        if row is not None:
            row.answered((time.perf_counter() - began) * 1_000)
        told.told.append((time.monotonic(), reply))
        return reply.status

    @contextlib.asynccontextmanager
    async def load(self, row: FaultRow) -> AsyncIterator[None]:
        """Callers that ask on until the context ends."""
        stop = asyncio.Event()

        async def ask_on(told: Told) -> None:
            while not stop.is_set():
                await self.ask(told, row)
                await asyncio.sleep(PAUSE_S)

        async with asyncio.TaskGroup() as group:
            for told in (self.wide, self.wide, self.wide, self.tight):
                group.create_task(ask_on(told))
            try:
                yield
            finally:
                stop.set()

    async def a_try(self, row: FaultRow, begin: Step, end: Step, *, lasting_s: float = 0.5, exact: bool = True) -> None:
        """The fault comes and goes under load."""
        with row.one_try():
            async with self.load(row):
                await _done(begin)
                await asyncio.sleep(lasting_s)
                await _done(end)
                with row.recovery():
                    await self.until_served()
            self.check_answers()
            if exact:
                await self.check_counts()

    async def until_served(self) -> None:
        """Returns when the store decides again."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.ask(self.wide) != 200:  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_S)

    def check_answers(self) -> None:
        """Nobody was served beyond a limit, or told anything but 503 because of the fault; nothing of it is shown."""
        for told in (self.wide, self.tight):
            for _, reply in told.told:
                if reply.status == 503:
                    assert reply.code in ("store_unavailable", "overloaded"), reply
                    assert reply.get("retry-after") == "1"
                elif reply.status == 429:
                    assert told.limit == TIGHT, f"refused because of a fault: {reply}"
                else:
                    assert reply.status == 200, reply
                assert not [word for word in INTERNAL if word in reply.body], reply
        assert self.tight.served <= TIGHT
        traced = [record for record in self.caplog.records if record.exc_info and record.levelno >= logging.WARNING]
        assert not traced, traced[0].getMessage()

    async def check_counts(self) -> None:
        """The store counts what clients were told, once each, when what was lost is given back."""
        wanted = sorted([self.wide.served, self.tight.served]), self.wide.served + self.tight.served
        found: Any = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while (found := await asyncio.to_thread(self.counts)) != wanted:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"clients were told {wanted}, the store says {found}") from None

    def counts(self) -> tuple[list[int], int]:
        """Units in windows, and requests in the ledger."""
        units = []
        for server in self.servers:
            with server.admin() as client:
                units += [client.llen(key) for key in client.keys("*:limit:log:*")]
        return sorted(units), sum(map(recorded_in, self.servers))


async def _done(step: Step) -> None:
    if inspect.iscoroutinefunction(step):
        await step()
    else:
        await asyncio.to_thread(step)


async def _answer(call: Call) -> None:
    await call.read_body()
    await call.answer(200, body=b"ok")


@contextlib.asynccontextmanager
async def a_scene(
    url: str,
    servers: Iterable[Server],
    caplog: pytest.LogCaptureFixture,
    names: tuple[str, str] = ("wide", "tight"),
) -> AsyncIterator[Scene]:
    """Everything up and calm. The tight limit has one unit left, so that what is lost or counted twice is seen."""
    async with running_proxy(url, redis=REDIS) as gateway, an_upstream(_answer) as upstream:
        made = []
        for name, limit in zip(names, (WIDE, TIGHT), strict=True):
            tenant = await gateway.new_tenant(name)
            limits = {"limit": limit, "window": "1h"}
            await gateway.new_rule(tenant, upstream.url, plugin_chain=[{"name": "rate_limiter", "settings": limits}])
            made.append(Told(tenant, limit))
        scene = Scene(gateway, tuple(servers), made[0], made[1], caplog)
        for told in made:
            for _ in range(TIGHT - 1):
                assert await scene.ask(told) == 200
        yield scene
