"""Random traffic in virtual time against a model of plain lists, on fakeredis and on a real server at once.

Each call must get the very same reply from both servers, and it must be the model's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Coroutine, Iterator
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.gate import NOON, Ending, Gate, Limit
from tests.servers import Server
from tests.stores import LEASE_MS, opened
from tests.unit.store.model import HELD_MS, POOL, Model

BUDGETS = [limit for limit in POOL if limit.kind.startswith("budget")]
LEDGERED = [limit for limit in BUDGETS if limit.kind == "budget" and limit.burst]

LIFE_S = 6.0
"""As long as every key lives on the servers' own clocks, which do not stand still while time in the calls does."""


class Backends:
    """The same tenant on fakeredis and on a real server."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fake: Gate, real: Gate) -> None:
        self.loop, self.fake, self.real = loop, fake, real
        self._began = time.monotonic()
        self.judged = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def both(self, method: str, *arguments: Any) -> Any:
        answers = [self.run(getattr(gate, method)(*arguments)) for gate in (self.fake, self.real)]
        self._judge()
        assert answers[0] == answers[1], "fakeredis and the server disagree"
        return answers[1]

    def _judge(self) -> None:
        """What took longer than keys live says nothing, on a machine that is that busy."""
        if time.monotonic() > self._began + LIFE_S:
            reject()

    def reset(self) -> None:
        self._began = time.monotonic()
        for gate in (self.fake, self.real):
            self.run(gate.stores.connection.client.flushall())
            self.run(gate.prepare())

    def picture(self) -> Any:
        """Every key of the real server, its serialisation and its end; only small values, whose serialisation is stable."""

        async def read() -> Any:
            client = self.real.stores.connection.client
            names = sorted(await client.keys("*"))
            async with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.dump(name)
                    pipe.pexpiretime(name)
                return names, await pipe.execute()

        seen = self.run(read())
        self._judge()
        return seen

    def lose(self, key: str) -> None:
        for gate in (self.fake, self.real):
            self.run(gate.stores.connection.client.delete(key))

    def flush_scripts(self) -> None:
        for gate in (self.fake, self.real):
            self.run(gate.stores.connection.client.script_flush())


@contextlib.contextmanager
def backends(server: Server) -> Iterator[Backends]:
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        gates = []
        for place in (None, server):
            context = opened(place)
            gates.append(Gate(runner.run(context.__aenter__())))
            stack.callback(_leave, runner, context)
        yield Backends(runner.get_loop(), *gates)


def _leave(runner: asyncio.Runner, context: contextlib.AbstractAsyncContextManager[Any]) -> None:
    runner.run(context.__aexit__(None, None, None))


@st.composite
def asked_limits(draw: st.DrawFn) -> list[Limit]:
    """Any of the pool in any order; now and then with another number than usual, as after an edit."""
    chosen = draw(st.lists(st.sampled_from(POOL), unique=True, max_size=6))
    factor = st.sampled_from([1, 1, 1, 1, 2, 3])
    return [
        dataclasses.replace(limit, limit=max(1, limit.limit * draw(factor) // 2), burst=limit.burst and draw(factor))
        if draw(st.integers(0, 9)) == 0
        else limit
        for limit in chosen
    ]


class Admissions(RuleBasedStateMachine):
    """One tenant under traffic."""

    def __init__(self, backends: Backends) -> None:
        super().__init__()
        self.servers = backends
        self.model = Model()
        self.now = NOON
        self.edges: list[int] = []
        self.names = 0
        self.latest = NOON
        self.begun = False

    @initialize()
    def begin(self) -> None:
        self.servers.reset()
        self.begun = True

    def ask(self, name: str, limits: list[Limit], cost: int) -> list[Any]:
        before = self.servers.picture()
        reply: list[Any] = self.servers.both("ask", limits, self.now, cost, name)
        assert reply == self.model.admit(name, limits, cost, self.now)
        if reply[0] != b"admitted":
            assert self.servers.picture() == before, f"{reply[0]!r} has written"
        if len(reply) > 2:
            self.edges += [int(reply[1]) + number for number in (*reply[5::5], *reply[6::5]) if number > 0]
            del self.edges[:-12]
        return reply

    @rule(limits=asked_limits(), cost=st.sampled_from([1, 1, 1, 1, 2, 3]))
    def admit(self, limits: list[Limit], cost: int) -> None:
        self.names += 1
        self.ask(f"id{self.names}", limits, cost)

    @rule(limit=st.sampled_from(POOL), cost=st.integers(1, 3))
    def fill(self, limit: Limit, cost: int) -> None:
        for _ in range(4):
            self.admit([limit], cost)

    @precondition(lambda self: self.model.asked)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.asked)))
        asked = self.model.asked[name]
        self.ask(name, asked.limits, asked.cost)

    @precondition(lambda self: self.model.asked)
    @rule(data=st.data(), everything=st.booleans(), actual=st.sampled_from([0, 0, None, 1, 2, 5, 30]))
    def end(self, data: st.DataObject, everything: bool, actual: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.asked)))
        asked = self.model.asked[name]
        limits = asked.limits
        if not everything and limits:
            limits = data.draw(st.lists(st.sampled_from(limits), unique=True))
        self.settle(name, limits, asked.cost, actual)

    @precondition(lambda self: self.model.asked)
    @rule(data=st.data(), actual=st.sampled_from([0, None, 2]))
    def end_together(self, data: st.DataObject, actual: int | None) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(self.model.asked)), min_size=2, max_size=5))
        asked = [(name, self.model.asked[name].limits, self.model.asked[name].cost) for name in names]
        words = self.servers.both("settle_each", self.now, [Ending(*one, actual) for one in asked])
        assert words == [self.model.settle(*one, actual, self.now) for one in asked]
        self.edges.append(self.now + LEASE_MS)

    @precondition(lambda self: self.flying())
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.flying()))
        asked = self.model.asked[name]
        before = self.servers.picture()
        word = self.servers.both("renew", asked.limits, self.now, name, asked.admitted_at, asked.cost)
        assert word == self.model.renew(name, self.now)
        if word == "settled_before":
            assert self.servers.picture() == before
        self.edges.append(self.now + LEASE_MS)

    @rule(limits=asked_limits(), cost=st.integers(1, 3))
    def look(self, limits: list[Limit], cost: int) -> None:
        before = self.servers.picture()
        seen = self.servers.both("peek", limits, self.now, cost)
        now = self.model.held(self.now)
        assert seen.now == now
        assert [dataclasses.astuple(state) for state in seen.states] == [
            self.model.limits[limit.key].look(limit, now, cost) for limit in limits
        ]
        assert self.servers.picture() == before, "looking has written"

    @rule(back=st.sampled_from([0, 0, 0, 1, 86_400_000]), units=st.integers(0, 9))
    def seed(self, back: int, units: int) -> None:
        at = self.now - back
        seeded = self.servers.both("seed", LEDGERED, at, units)
        assert seeded == sum(self.model.limits[limit.key].seed(limit, at, units) for limit in LEDGERED)

    @rule(limit=st.sampled_from(BUDGETS))
    def lose(self, limit: Limit) -> None:
        self.servers.lose(limit.key)
        self.model.limits[limit.key].lose()

    def flying(self) -> list[str]:
        """What was admitted, also if it is settled already."""
        return sorted(name for name, asked in self.model.asked.items() if asked.admitted_at is not None)

    @rule(limits=asked_limits())
    def cancel_before_it_arrives(self, limits: list[Limit]) -> None:
        self.names += 1
        self.settle(f"id{self.names}", limits, 1, 0)

    def settle(self, name: str, limits: list[Limit], cost: int, actual: int | None) -> None:
        before = self.servers.picture()
        word = self.servers.both("settle", limits, self.now, name, cost, actual)
        assert word == self.model.settle(name, limits, cost, actual, self.now)
        if word == "settled_before":
            assert self.servers.picture() == before
        self.edges.append(self.now + LEASE_MS)

    @precondition(lambda self: self.edges)
    @rule(data=st.data(), beside=st.sampled_from([-1, 0, 0, 1]))
    def go_to_an_edge(self, data: st.DataObject, beside: int) -> None:
        self.now = max(self.now, data.draw(st.sampled_from(self.edges)) + beside)

    @rule(step=st.one_of(st.sampled_from([1, 999, 1_000, 1_001, 60_000, 86_400_000]), st.integers(1, 3_000)))
    def advance(self, step: int) -> None:
        self.now += step

    @rule(step=st.one_of(st.sampled_from([1, HELD_MS, HELD_MS + 1, 86_400_000]), st.integers(1, 70_000)))
    def step_back(self, step: int) -> None:
        self.now -= step

    @rule()
    def forget_scripts(self) -> None:
        self.servers.flush_scripts()

    def teardown(self) -> None:
        """A lease after the last traffic nothing is held any more, whether its replica has settled it or died."""
        if not self.begun:
            return
        self.now = self.latest + LEASE_MS
        flying = [limit for limit in POOL if limit.kind == "concurrency"]
        reply = self.servers.both("ask", flying, self.now, 1, "last")
        assert reply[0] == b"admitted"
        assert reply[3::5] == [1] * len(flying)
        holding = [limit for limit in POOL if limit.kind.startswith("budget_")]
        seen = self.servers.both("peek", holding, self.now)
        spent = [self.model.limits[limit.key].at(limit, self.now)[2] for limit in holding]
        assert [state.used for state in seen.states] == spent, "something is still held"
        self.servers.judged += 1

    @invariant()
    def time_has_been(self) -> None:
        self.latest = max(self.latest, self.now)

    @invariant()
    def every_key_of_a_limit_has_an_end(self) -> None:
        names, facts = self.servers.picture()
        kept = {name for name, end in zip(names, facts[1::2], strict=True) if end == -1}
        assert all(name.endswith((b":tenant", b":keys")) or b":key:" in name for name in kept), kept


def run(server: Server, examples: int, steps: int) -> None:
    with backends(server) as servers:
        run_state_machine_as_test(  # takes whatever makes a machine
            cast("type[Admissions]", lambda: Admissions(servers)),
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                derandomize=examples < 100,
                phases=[Phase.explicit, Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert servers.judged >= examples // 2


@pytest.mark.real_store
def test_any_traffic_gets_the_replies_of_the_model_on_fakeredis_and_valkey(valkey_store_server: Server):
    run(valkey_store_server, 20, 40)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_much_traffic_gets_the_replies_of_the_model_on_every_server(real_server: Server):
    run(real_server, 800, 60)
