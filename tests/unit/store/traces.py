"""Long random traces of script calls, with the reply that each must get."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gateway.store import Keyspace
from tests.gate import DAY, DIGEST, NOON, REVISION, SUBDOMAIN, VERSION, Ending, Limit, settle_call
from tests.stores import LEASE_MS
from tests.unit.store.model import HELD_MS, POOL, Model
from tests.unit.store.promises import PROMISES, LogPromise

SPACE = Keyspace(SUBDOMAIN)
LEDGERED = [limit for limit in POOL if limit.kind == "budget" and limit.burst]
REMEMBERED = 40


@dataclass(frozen=True)
class Call:
    """One script call, the reply it must get, and whether it may write."""

    script: str
    keys: list[str]
    arguments: list[str]
    reply: list[Any]
    writes: bool


class Trace:
    """A tenant under random traffic. What it yields, it has already done to the model and checked against the promises."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.model = Model()
        self.promises: dict[str, LogPromise] = {limit.key: PROMISES[limit.kind]() for limit in POOL}
        self.now = self.latest = NOON
        self.edges: list[int] = []
        self.names = 0
        self.recent: list[str] = []
        self.checked = dict.fromkeys(PROMISES, 0)

    def calls(self, count: int) -> Iterator[Call]:
        """So many calls, then those that show that a lease later nothing is held."""
        kinds = [self.admit, self.settle, self.renew, self.repeat, self.look, self.cancel_unknown, self.seed]
        for _ in range(count):
            self.tick()
            yield self.chance.choices(kinds, [50, 22, 8, 6, 8, 2, 4])[0]()
        self.now = self.latest + LEASE_MS
        yield self.look([limit for limit in POOL if limit.kind == "concurrency"], 1, 0)
        for limit in POOL:
            if limit.kind.startswith("budget_"):
                yield self.look([limit], 1, self.model.limits[limit.key].at(limit, self.now)[2])

    def tick(self) -> None:
        draw = self.chance.random()
        if draw < 0.35:
            self.now += self.chance.choice([0, 1, 1, 7, 50, 333, 999, 1_000, 1_001])
        elif draw < 0.55 and self.edges:
            self.now = max(self.now, self.chance.choice(self.edges) + self.chance.choice([-1, 0, 0, 1]))
        elif draw < 0.58:
            self.now += self.chance.choice([20_000, LEASE_MS, 3_600_000, DAY, 31 * DAY])
        elif draw < 0.62:
            self.now = self.latest - self.chance.randint(1, HELD_MS)  # the clock is held
        self.latest = max(self.latest, self.now)

    def limits(self) -> list[Limit]:
        return self.chance.sample(POOL, self.chance.choice([0, 1, 1, 1, 2, 3, 5]))

    def known(self) -> str | None:
        return self.chance.choice(self.recent) if self.recent else None

    def admit(self) -> Call:
        self.names += 1
        name = f"id{self.names}"
        self.recent = [*self.recent[-REMEMBERED:], name]
        return self.ask(name, self.limits(), self.chance.choice([1, 1, 1, 2, 3, 5]))

    def repeat(self) -> Call:
        name = self.known()
        if name is None or name not in self.model.asked:
            return self.admit()
        asked = self.model.asked[name]
        return self.ask(name, asked.limits, asked.cost)

    def ask(self, name: str, limits: list[Limit], cost: int) -> Call:
        reply = self.model.admit(name, limits, cost, self.now)
        if reply[0] == b"admitted":
            for limit, refuses in zip(limits, reply[2::5], strict=True):
                if not refuses:
                    self.checked[limit.kind] += 1
                    self.promises[limit.key].admitted(limit, name, int(reply[1]), cost)
        if reply[0] in (b"admitted", b"limited"):
            self.edges += [int(reply[1]) + wait for wait in (*reply[5::5], *reply[6::5]) if wait > 0]
            del self.edges[:-12]
        keys = [SPACE.tenant, SPACE.rules, SPACE.api_key(DIGEST), SPACE.marker(name), SPACE.clock]
        facts = [VERSION, REVISION, str(LEASE_MS), name, str(self.now)]
        return self.call("admit", keys, facts, limits, cost, reply, writes=reply[0] == b"admitted")

    def settle(self) -> Call:
        names = [name for _ in range(self.chance.choice([1, 1, 1, 2, 3, 8])) if (name := self.known()) in self.model.asked]
        if not names:
            return self.admit()
        return self.settlement([self.ending(str(name)) for name in names])

    def ending(self, name: str) -> tuple[Ending, str]:
        """The end of an admission, and the word for it."""
        actual = self.chance.choice([None, None, 0, 0, 1, 2, 4, 9])
        asked = self.model.asked[name]
        fresh = asked.admitted_at is not None and not asked.settled
        word = self.model.settle(name, asked.limits, asked.cost, actual, self.now)
        for limit in asked.limits:
            if fresh and limit.key in asked.charged:
                due = asked.cost if actual is None else actual
                self.promises[limit.key].settled(limit, name, self.model.held(self.now), asked.cost, due)
        return Ending(name, asked.limits, asked.cost, actual), word

    def cancel_unknown(self) -> Call:
        self.names += 1
        limits = self.limits()
        word = self.model.settle(f"id{self.names}", limits, 1, 0, self.now)
        self.recent.append(f"id{self.names}")
        return self.settlement([(Ending(f"id{self.names}", limits, 1, 0), word)])

    def settlement(self, ended: list[tuple[Ending, str]]) -> Call:
        keys, arguments = settle_call(SPACE, self.now, [ending for ending, _ in ended])
        words = [word for _, word in ended]
        return Call("settle", keys, arguments, [word.encode() for word in words], set(words) != {"settled_before"})

    def renew(self) -> Call:
        name = self.known()
        asked = None if name is None else self.model.asked.get(name)
        if name is None or asked is None or asked.admitted_at is None:
            return self.admit()
        word = self.model.renew(name, self.now)
        if word == "renewed":
            for limit in asked.limits:
                self.promises[limit.key].renewed(name, self.model.held(self.now))
        self.edges.append(asked.ending)
        keys = [SPACE.marker(name), SPACE.clock]
        facts = [str(LEASE_MS), name, str(asked.admitted_at), str(self.now)]
        return self.call("renew", keys, facts, asked.limits, asked.cost, [word.encode()], writes=word == "renewed")

    def look(self, limits: list[Limit] | None = None, cost: int | None = None, used: int | None = None) -> Call:
        limits = self.limits() if limits is None else limits
        cost = cost or self.chance.choice([1, 1, 2, 3])
        now = self.model.held(self.now)
        seen = [self.model.limits[limit.key].look(limit, now, cost) for limit in limits]
        if used is not None:
            assert [state[1] for state in seen] == [used] * len(seen), "a lease after the last call something is still held"
        reply = [b"peeked", now, *(number for state in seen for number in state), *self.model.unseeded(limits)]
        return self.call("peek", [SPACE.clock], [str(LEASE_MS), str(self.now)], limits, cost, reply, writes=False)

    def seed(self) -> Call:
        units = self.chance.randint(0, 3)
        seeded = sum(self.model.limits[limit.key].seed(limit, self.now, units) for limit in LEDGERED)
        if seeded:
            for limit in LEDGERED:
                promise: Any = self.promises[limit.key]
                promise.spent[promise.period(limit, self.now)] += units
        words = [part for limit in LEDGERED for part in (limit.extent_at(self.now), str(units))]
        return Call("seed_budget", [limit.key for limit in LEDGERED], [str(self.now), *words], [b"seeded", seeded], seeded > 0)

    def call(
        self, script: str, keys: list[str], facts: list[str], limits: list[Limit], cost: int, reply: list[Any], *, writes: bool
    ) -> Call:
        words = [word for limit in limits for word in limit.arguments(cost, self.now)]
        return Call(script, [*keys, *(limit.key for limit in limits)], [*facts, *words], reply, writes)
