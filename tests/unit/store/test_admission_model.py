"""Random traffic in virtual time against a model of plain lists, on fakeredis and on a real server at once.

Each call must get the very same reply from both servers, and it must be the model's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.gate import NOON, Gate, Limit, bucket, budget, concurrency, log, ring
from tests.servers import Server
from tests.stores import LEASE_MS, opened
from tests.unit.store.test_limits_budget import period_of

HELD_MS = 5_000

POOL = [
    log(3, 1_000, name="short"),
    log(5, 60_000, name="long"),
    log(2, 1_000, name="shadow", shadow=True),
    ring(4, 1_000, name="coarse"),
    ring(6, 600_000, name="fine"),
    ring(3, 100, name="shadow", shadow=True),
    bucket(3, 1_000, burst=4, name="steady"),
    bucket(7, 997, burst=2, name="odd"),
    bucket(1, 5_000, burst=1, name="shadow", shadow=True),
    budget(9, "day", name="daily"),
    budget(20, "month", name="monthly"),
    budget(3, "day", name="shadow", shadow=True),
    concurrency(4, name="flying"),
    concurrency(2, name="shadow", shadow=True),
]

Numbers = tuple[int, int, int, int, int]


@dataclass
class LogModel:
    stamps: list[int] = field(default_factory=list)  # oldest first

    def live(self, limit: Limit, now: int) -> list[int]:
        return [stamp for stamp in self.stamps if stamp > now - int(limit.extent)]

    def look(self, limit: Limit, now: int, cost: int) -> Numbers:
        live, window = self.live(limit, now), int(limit.extent)
        retry = 0
        if cost > limit.limit:
            retry = -1
        elif len(live) + cost > limit.limit:
            leaving = len(live) + cost - limit.limit
            retry = live[leaving - 1] + window - now
        reset = live[-1] + window - now if live else 0
        return (int(retry != 0), len(live), max(0, limit.limit - len(live)), retry, reset)

    def charge(self, limit: Limit, now: int, cost: int, name: str) -> int:
        live = self.live(limit, now)
        stamp = max([now, *live])
        self.stamps = live + [stamp] * cost
        return stamp + int(limit.extent) - now

    def placed(self, limit: Limit, now: int) -> int:
        return max([now, *self.live(limit, now)])

    def settle(self, limit: Limit, placed: int, now: int, change: int, name: str) -> None:
        for _ in range(min(-change, self.stamps.count(placed))):
            self.stamps.remove(placed)
        self.stamps += [max([now, *self.stamps])] * min(change, limit.limit)


@dataclass
class RingModel:
    units: dict[int, int] = field(default_factory=dict)  # by number of the sub-window

    def length(self, limit: Limit) -> int:
        return -(-int(limit.extent) // 60)

    def leaves(self, limit: Limit, number: int) -> int:
        return (number + 1) * self.length(limit) - 1 + int(limit.extent)

    def live(self, limit: Limit, now: int) -> dict[int, int]:
        return {number: units for number, units in sorted(self.units.items()) if self.leaves(limit, number) > now}

    def look(self, limit: Limit, now: int, cost: int) -> Numbers:
        live = self.live(limit, now)
        used, retry = sum(live.values()), 0
        if cost > limit.limit:
            retry = -1
        elif used + cost > limit.limit:
            left = used
            for number, units in live.items():
                left -= units
                if left + cost <= limit.limit:
                    retry = self.leaves(limit, number) - now
                    break
        reset = self.leaves(limit, max(live)) - now if used else 0
        return (int(retry != 0), used, max(0, limit.limit - used), retry, reset)

    def placed(self, limit: Limit, now: int) -> int:
        ahead = max(self.live(limit, now), default=0)
        return max(now, ahead * self.length(limit))

    def charge(self, limit: Limit, now: int, cost: int, name: str) -> int:
        number = self.placed(limit, now) // self.length(limit)
        self.units = self.live(limit, now)
        self.units[number] = self.units.get(number, 0) + cost
        return self.leaves(limit, number) - now

    def settle(self, limit: Limit, placed: int, now: int, change: int, name: str) -> None:
        number = placed // self.length(limit)
        if number in self.units and (change < 0 or self.leaves(limit, number) > now):
            self.units[number] = max(0, self.units[number] + change)
        elif change > 0:
            self.charge(limit, now, change, name)


@dataclass
class BucketModel:
    level: Fraction | None = None
    at: int = 0

    def now(self, limit: Limit, now: int) -> tuple[Fraction, int]:
        if self.level is None:
            return Fraction(limit.burst), now
        refill = Fraction(max(0, now - self.at) * limit.limit, int(limit.extent))
        return min(Fraction(limit.burst), self.level + refill), max(now, self.at)

    def full_in(self, limit: Limit, missing: Fraction, at: int, now: int) -> int:
        return -(-missing * int(limit.extent) // limit.limit) + at - now

    def look(self, limit: Limit, now: int, cost: int) -> Numbers:
        level, at = self.now(limit, now)
        retry = 0
        if cost > limit.burst:
            retry = -1
        elif level < cost:
            retry = self.full_in(limit, cost - level, at, now)
        whole = level // 1
        return (int(retry != 0), limit.burst - whole, max(0, whole), retry, self.full_in(limit, limit.burst - level, at, now))

    def charge(self, limit: Limit, now: int, cost: int, name: str) -> int:
        level, at = self.now(limit, now)
        self.level, self.at = level - cost, at
        return self.full_in(limit, limit.burst - self.level, at, now)

    def settle(self, limit: Limit, placed: int, now: int, change: int, name: str) -> None:
        if change:
            level, self.at = self.now(limit, now)
            self.level = min(Fraction(limit.burst), level - change)

    def placed(self, limit: Limit, now: int) -> int:
        return now


@dataclass
class BudgetModel:
    start: int = 0
    spent: int = 0

    def period(self, limit: Limit, now: int) -> tuple[int, int, int]:
        start, end = period_of(str(limit.extent), max(now, self.start))
        return start, end, self.spent if start == self.start else 0

    def look(self, limit: Limit, now: int, cost: int) -> Numbers:
        _, end, spent = self.period(limit, now)
        retry = 0
        if cost > limit.limit:
            retry = -1
        elif spent + cost > limit.limit:
            retry = end - now
        return (int(retry != 0), spent, max(0, limit.limit - spent), retry, end - now if spent else 0)

    def charge(self, limit: Limit, now: int, cost: int, name: str) -> int:
        self.start, end, spent = self.period(limit, now)
        self.spent = spent + cost
        return end - now

    def placed(self, limit: Limit, now: int) -> int:
        return max(now, self.period(limit, now)[0])

    def settle(self, limit: Limit, placed: int, now: int, change: int, name: str) -> None:
        if change > 0:
            self.charge(limit, now, change, name)
        elif self.start == period_of(str(limit.extent), placed)[0]:
            self.spent = max(0, self.spent + change)


@dataclass
class ConcurrencyModel:
    ends: dict[str, list[int]] = field(default_factory=dict)

    def look(self, limit: Limit, now: int, cost: int) -> Numbers:
        used = sum(end > now for ends in self.ends.values() for end in ends)
        retry = 0
        if used + cost > limit.limit:
            retry = -1 if cost > limit.limit else -2
        return (int(retry != 0), used, max(0, limit.limit - used), retry, LEASE_MS if used else 0)

    def charge(self, limit: Limit, now: int, cost: int, name: str) -> int:
        self.ends = {other: live for other, ends in self.ends.items() if (live := [end for end in ends if end > now])}
        self.renew(now, cost, name)
        return LEASE_MS

    def renew(self, now: int, cost: int, name: str) -> None:
        self.ends[name] = [now + LEASE_MS] * cost

    def settle(self, limit: Limit, placed: int, now: int, change: int, name: str) -> None:
        self.ends.pop(name, None)

    def placed(self, limit: Limit, now: int) -> int:
        return now


MODELS = {"log": LogModel, "ring": RingModel, "bucket": BucketModel, "budget": BudgetModel, "concurrency": ConcurrencyModel}


@dataclass
class Asked:
    """An admission, and once it was admitted what it was charged and where."""

    limits: list[Limit]
    cost: int
    admitted_at: int | None = None
    charged: dict[str, int] = field(default_factory=dict)  # by key, when
    settled: bool = False


class Model:
    """What the scripts promise, without their data structures."""

    def __init__(self) -> None:
        self.clock = 0
        self.limits: dict[str, Any] = {limit.key: MODELS[limit.kind]() for limit in POOL}
        self.asked: dict[str, Asked] = {}

    def held(self, now: int) -> int:
        return self.clock if 0 < self.clock - now <= HELD_MS else now

    def admit(self, name: str, limits: list[Limit], cost: int, now: int) -> list[Any]:
        if not limits:
            return [b"admitted", now]
        now = self.held(now)
        asked = self.asked.setdefault(name, Asked(limits, cost))
        if asked.settled:
            return [b"settled"]
        if asked.admitted_at is not None:
            looks = [self.limits[limit.key].look(limit, now, 0) for limit in limits]
            return [b"replayed", asked.admitted_at, *(n for look in looks for n in (0, *look[1:3], 0, look[4]))]
        looks = [self.limits[limit.key].look(limit, now, cost) for limit in limits]
        if any(look[0] and not limit.shadow for look, limit in zip(looks, limits, strict=True)):
            return [b"limited", now, *(n for look in looks for n in look)]
        self.clock, asked.admitted_at = now, now
        reply: list[Any] = [b"admitted", now]
        for limit, (refuses, used, remaining, retry, reset) in zip(limits, looks, strict=True):
            if refuses:
                reply += [1, used, remaining, retry, reset]
            else:
                asked.charged[limit.key] = self.limits[limit.key].placed(limit, now)
                reply += [0, used + cost, remaining - cost, 0, self.limits[limit.key].charge(limit, now, cost, name)]
        return reply

    def renew(self, name: str, now: int) -> str:
        asked = self.asked[name]
        if asked.settled:
            return "settled_before"
        for limit in asked.limits:
            if limit.kind == "concurrency" and limit.key in asked.charged:
                self.limits[limit.key].renew(self.held(now), asked.cost, name)
        return "renewed"

    def settle(self, name: str, limits: list[Limit], cost: int, actual: int | None, now: int) -> str:
        asked = self.asked.setdefault(name, Asked(limits, cost))
        if asked.settled:
            return "settled_before"
        asked.settled = True
        if asked.admitted_at is None:
            return "not_admitted"
        self.clock = now = self.held(now)
        for limit in limits:
            if limit.key in asked.charged:
                change = 0 if actual is None else actual - cost
                self.limits[limit.key].settle(limit, asked.charged[limit.key], now, change, name)
        return "settled"


class Backends:
    """The same tenant on fakeredis and on a real server."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fake: Gate, real: Gate) -> None:
        self.loop, self.fake, self.real = loop, fake, real

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def both(self, method: str, *arguments: Any) -> Any:
        answers = [self.run(getattr(gate, method)(*arguments)) for gate in (self.fake, self.real)]
        assert answers[0] == answers[1], "fakeredis and the server disagree"
        return answers[1]

    def reset(self) -> None:
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

        return self.run(read())

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


@pytest.mark.real_store
def test_any_traffic_gets_the_replies_of_the_model_on_fakeredis_and_valkey(valkey_store_server: Server):
    run(valkey_store_server, 20, 40)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_much_traffic_gets_the_replies_of_the_model_on_every_server(real_server: Server):
    run(real_server, 800, 60)
