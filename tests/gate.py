"""Limits in virtual time: the scripts themselves, called with the moment that a test names."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, cast

from gateway.periods import period_word
from gateway.store import Keyspace, Stores
from tests.stores import LEASE_MS

NOON = int(datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp() * 1_000)
DAY = 86_400_000

RETENTION_MS = 40 * DAY

SUBDOMAIN = "testcompany"
VERSION, REVISION, DIGEST = "v1", "r1", "d" * 64
DAY_OF_NOON = date(2026, 3, 10)
LEDGER = Keyspace(SUBDOMAIN).usage("ten_1", DAY_OF_NOON)


def ms(*moment: int) -> int:
    """Milliseconds since 1970 of a UTC date and time."""
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 1_000  # type: ignore[arg-type, misc]


@dataclass(frozen=True)
class Limit:
    """A limit as the scripts take it. ``extent`` is a window in milliseconds, or a period, then with a ``zone``."""

    kind: str
    limit: int
    extent: int | str
    burst: int = 0
    shadow: bool = False
    name: str = "a"
    tenant: str = SUBDOMAIN
    zone: str = "UTC"

    @property
    def key(self) -> str:
        extent = self.extent if self.zone == "UTC" else f"{self.extent}@{self.zone}"
        return f"gw:{{{self.tenant}}}:limit:{self.kind.partition('_')[0]}:{extent}:{self.name}"

    def extent_at(self, now: int | str) -> str:
        """The word for it; of a period in a zone, as a replica makes it whose clock may be wrong by some days."""
        if self.zone == "UTC":
            return str(self.extent)
        seconds = int(now or time.time() * 1_000) // 1_000
        return period_word(cast("Any", self.extent), self.zone, seconds // 86_400 + seconds % 41 - 20)

    def arguments(self, cost: int, now: int | str = NOON) -> list[str]:
        extent = self.extent_at(now)
        return [self.kind, str(cost), str(self.limit), extent, str(self.burst), "1" if self.shadow else "0"]


def log(limit: int, window: int = 60_000, **more: Any) -> Limit:
    """The exact sliding window."""
    return Limit("log", limit, window, **more)


def ring(limit: int, window: int = 60_000, **more: Any) -> Limit:
    """The sliding window of large amounts."""
    return Limit("ring", limit, window, **more)


def bucket(limit: int, window: int = 60_000, *, burst: int, **more: Any) -> Limit:
    """The token bucket."""
    return Limit("bucket", limit, window, burst, **more)


def budget(limit: int, period: str = "day", on_lost: str | None = None, **more: Any) -> Limit:
    """The quota of a calendar period; with ``on_lost`` units are held until the request is settled."""
    return Limit(f"budget_{on_lost}" if on_lost else "budget", limit, period, **more)


def concurrency(limit: int, **more: Any) -> Limit:
    """The requests in flight."""
    return Limit("concurrency", limit, 0, **more)


@dataclass(frozen=True)
class State:
    """What a reply says of one limit."""

    refuses: int
    used: int
    remaining: int
    retry: int
    reset: int


@dataclass(frozen=True)
class Decision:
    """A reply of admit.lua or rate_limit.lua that names limits."""

    word: str
    now: int
    states: tuple[State, ...]

    @property
    def admitted(self) -> bool:
        return self.word == "admitted"

    @property
    def state(self) -> State:
        """Of the only limit."""
        (only,) = self.states
        return only


@dataclass(frozen=True)
class Ending:
    """The end of an admission as settle.lua takes it. ``admitted`` is what the caller knows, ``row`` is one of ``ledger``."""

    admission: str
    limits: Sequence[Limit] = ()
    cost: int = 1
    actual: int | None = None
    admitted: int | None = None
    row: str = ""
    model: str = ""
    amounts: Sequence[int] = (1, 0, 0, 0, 0)
    ledger: str = LEDGER


def settle_call(keyspace: Keyspace, now: int, endings: Sequence[Ending]) -> tuple[list[str], list[str]]:
    """Keys and arguments of settle.lua, as wordy as they may be: a run, a row and limits of its own for each ending."""
    rows = [ending for ending in endings if ending.row]
    limits = [(limit, ending.cost) for ending in endings for limit in ending.limits]
    keys = [keyspace.clock, *(keyspace.marker(ending.admission) for ending in endings)]
    keys += [*(ending.ledger for ending in rows), *(limit.key for limit, _ in limits)]
    arguments = [str(LEASE_MS), str(now), str(RETENTION_MS), str(len(endings)), str(len(rows)), ""]
    for ending in rows:
        arguments += [ending.row, ending.model]
    for limit, cost in limits:
        arguments += limit.arguments(cost, now)
    place, row = 0, 0
    for ending in endings:
        row += bool(ending.row)
        arguments += ["1", str(row if ending.row else 0), *map(str, ending.amounts), str(len(ending.limits))]
        for _ in ending.limits:
            place += 1
            arguments += [str(place), "" if ending.actual is None else str(ending.actual)]
        arguments += [ending.admission, "" if ending.admitted is None else str(ending.admitted)]
    return keys, arguments


@dataclass
class Gate:
    """One tenant with one key in front of limits."""

    stores: Stores
    subdomain: str = SUBDOMAIN
    ids: Any = field(default_factory=lambda: (f"id{number}" for number in itertools.count(1)))

    @property
    def keyspace(self) -> Keyspace:
        return Keyspace(self.subdomain)

    async def prepare(self, **record: Any) -> Gate:
        """Write tenant and key as the admin scripts do. ``record`` overrides fields of the key's."""
        keys = [self.keyspace.tenant, self.keyspace.key_index, self.keyspace.api_key(DIGEST), self.keyspace.idempotency("none")]
        tenant = [f"{self.subdomain}-0123456789ab", VERSION, "{tenant}"]
        await self.stores.runner.call("create_tenant", keys, [*tenant, "key_1", DIGEST, REVISION, "", "{key}", "", "", "1000"])
        if record:
            await self.stores.connection.client.hset(keys[2], mapping=record)
        return self

    async def ask(
        self,
        limits: Sequence[Limit],
        now: int | str,
        cost: int = 1,
        admission: str | None = None,
        *,
        version: str = VERSION,
        revision: str = REVISION,
        digest: str = DIGEST,
    ) -> list[Any]:
        """admit.lua; its reply as it is."""
        names = self.keyspace
        admission = admission or next(self.ids)
        marker = names.marker(admission)
        keys = [names.tenant, names.rules, names.api_key(digest), marker, names.clock, *(limit.key for limit in limits)]
        arguments = [word for limit in limits for word in limit.arguments(cost, now)]
        facts = [version, revision, str(LEASE_MS), admission, str(now)]
        return await self.stores.runner.call("admit", keys, [*facts, *arguments])

    async def admit(self, limits: Sequence[Limit], now: int, cost: int = 1, admission: str | None = None) -> Decision:
        """admit.lua, for a known tenant and key."""
        return _decision(await self.ask(limits, now, cost, admission), len(limits))

    async def rate_limit(self, limits: Sequence[Limit], now: int, cost: int = 1) -> Decision:
        """rate_limit.lua."""
        keys = [self.keyspace.clock, *(limit.key for limit in limits)]
        arguments = [word for limit in limits for word in limit.arguments(cost, now)]
        return _decision(await self.stores.runner.call("rate_limit", keys, [str(now), *arguments]), len(limits))

    async def peek(self, limits: Sequence[Limit], now: int, cost: int = 1) -> Decision:
        """peek.lua; which budgets have no count is left out."""
        keys = [self.keyspace.clock, *(limit.key for limit in limits)]
        arguments = [word for limit in limits for word in limit.arguments(cost, now)]
        reply = await self.stores.runner.call("peek", keys, [str(LEASE_MS), str(now), *arguments])
        return _decision(reply[: 2 + 5 * len(limits)], len(limits))

    async def cancel(self, limits: Sequence[Limit], now: int, admission: str, amount: int = 1) -> str:
        """settle.lua, giving everything back."""
        return await self.settle(limits, now, admission, amount, 0)

    async def settle(
        self,
        limits: Sequence[Limit],
        now: int,
        admission: str,
        cost: int = 1,
        actual: int | None = None,
        *,
        admitted: int | None = None,
        row: str = "",
        model: str = "",
        amounts: Sequence[int] = (1, 0, 0, 0, 0),
    ) -> str:
        """settle.lua; the only word of its reply. ``row`` goes to the day of NOON."""
        (word,) = await self.settle_each(now, [Ending(admission, limits, cost, actual, admitted, row, model, amounts)])
        return word

    async def settle_each(self, now: int, endings: Sequence[Ending]) -> list[str]:
        """settle.lua; its reply."""
        reply = await self.stores.runner.call("settle", *settle_call(self.keyspace, now, endings))
        return [word.decode() for word in reply]

    async def seed(self, limits: Sequence[Limit], at: int, units: int) -> int:
        """seed_budget.lua; how many were missing."""
        arguments = [word for limit in limits for word in (limit.extent_at(at), str(units))]
        word, seeded = await self.stores.runner.call("seed_budget", [limit.key for limit in limits], [str(at), *arguments])
        assert word == b"seeded"
        return int(seeded)

    async def renew(self, limits: Sequence[Limit], now: int, admission: str, admitted: int = NOON, cost: int = 1) -> str:
        """renew.lua; the only word of its reply."""
        keys = [self.keyspace.marker(admission), self.keyspace.clock, *(limit.key for limit in limits)]
        arguments = [word for limit in limits for word in limit.arguments(cost, now)]
        facts = [str(LEASE_MS), admission, str(admitted), str(now)]
        (word,) = await self.stores.runner.call("renew", keys, [*facts, *arguments])
        return str(word.decode())

    async def drain(self, limits: Sequence[Limit], now: int) -> int:
        """How many requests of cost 1 are admitted now until one is refused."""
        for count in range(10_000):
            if not (await self.admit(limits, now)).admitted:
                return count
        raise AssertionError("10 000 requests were admitted")


def _decision(reply: list[Any], limits: int) -> Decision:
    word, now, *numbers = reply
    assert all(type(number) is int for number in (now, *numbers)), reply
    assert len(numbers) == 5 * limits, reply
    states = tuple(State(*numbers[start : start + 5]) for start in range(0, len(numbers), 5))
    return Decision(word.decode(), now, states)
