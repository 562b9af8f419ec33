"""What the scripts promise of limits, in plain Python: lists, dictionaries and fractions, none of their data structures."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tests.gate import Limit, bucket, budget, concurrency, log, ring
from tests.periods import period_of
from tests.stores import LEASE_MS

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
    budget(8, "day", name="ledgered", burst=1),
    budget(12, "day", on_lost="charge", name="charged"),
    budget(15, "month", on_lost="release", name="released"),
    budget(14, "week", name="weekly"),
    budget(8, "day", name="abroad", zone="Asia/Beirut"),
    budget(11, "week", on_lost="charge", name="abroad", zone="Africa/Cairo"),
    budget(17, "month", on_lost="release", name="abroad", zone="America/Havana"),
    budget(3, "day", on_lost="charge", name="shadow-held", shadow=True),
    concurrency(4, name="flying"),
    concurrency(2, name="shadow", shadow=True),
]

LEASE_STEP_MS = LEASE_MS // 20

Numbers = tuple[int, int, int, int, int]


def edges(limit: Limit, now: int) -> tuple[int, int]:
    """Start and end of the period of a budget."""
    return period_of(str(limit.extent), now, limit.zone)


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
    known: bool = False
    start: int = 0
    spent: int = 0
    held: dict[int, int] = field(default_factory=dict)  # units by the end of their lease

    def at(self, limit: Limit, now: int) -> tuple[int, int, int, dict[int, int]]:
        """Start and end of the period, what is spent in it, and what is held."""
        start, end = edges(limit, max(now, self.start))
        spent = self.spent if start == self.start else 0
        if limit.kind == "budget_charge":
            lapsed = {ending: units for ending, units in self.held.items() if ending <= now}
            spent += sum(units for ending, units in lapsed.items() if edges(limit, ending)[0] == start)
        return start, end, spent, {ending: units for ending, units in self.held.items() if ending > now}

    def look(self, limit: Limit, now: int, cost: int) -> Numbers:
        _, end, spent, held = self.at(limit, now)
        used, retry = spent + sum(held.values()), 0
        if cost > limit.limit:
            retry = -1
        elif spent + cost > limit.limit:
            retry = end - now
        elif used + cost > limit.limit:
            retry = -2
        return (int(retry != 0), used, max(0, limit.limit - used), retry, end - now if used else 0)

    def write(self, limit: Limit, now: int) -> int:
        """Lapsed holds are spent or gone from now on."""
        self.start, end, self.spent, self.held = self.at(limit, now)
        self.known = True
        return end - now

    def charge(self, limit: Limit, now: int, cost: int, name: str) -> int:
        reset = self.write(limit, now)
        if limit.kind == "budget":
            self.spent += cost
        else:
            self.hold(lease_end(now), cost)
        return reset

    def hold(self, ending: int, cost: int) -> None:
        self.held[ending] = self.held.get(ending, 0) + cost

    def free(self, ending: int, cost: int) -> None:
        self.held[ending] = max(0, self.held.get(ending, 0) - cost)

    def was_charged(self, limit: Limit, now: int, ending: int) -> bool:
        """True if units held until then, which has passed, are among what is spent now."""
        return limit.kind == "budget_charge" and edges(limit, ending)[0] == self.start

    def renew(self, limit: Limit, now: int, cost: int, ending: int) -> None:
        self.write(limit, now)
        if ending > now:
            self.free(ending, cost)
        elif self.was_charged(limit, now, ending):
            self.spent = max(0, self.spent - cost)
        self.hold(lease_end(now), cost)

    def settle_hold(self, limit: Limit, now: int, cost: int, actual: int, ending: int) -> None:
        self.write(limit, now)
        if ending > now:
            self.free(ending, cost)
        elif self.was_charged(limit, now, ending):
            actual -= cost
        elif limit.kind == "budget_charge":
            actual = max(0, actual - cost)
        self.spent = max(0, self.spent + actual)

    def placed(self, limit: Limit, now: int) -> int:
        return max(now, self.at(limit, now)[0])

    def settle(self, limit: Limit, placed: int, now: int, change: int, name: str) -> None:
        if change > 0:
            self.charge(limit, now, change, name)
        elif change < 0 and self.known and self.start == edges(limit, placed)[0]:
            self.spent = max(0, self.spent + change)

    def seed(self, limit: Limit, at: int, units: int) -> bool:
        missing, self.known = not self.known, True
        if missing:
            self.start, self.spent = edges(limit, at)[0], units
        return missing

    def lose(self) -> None:
        self.known, self.start, self.spent = False, 0, 0
        self.held.clear()


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


MODELS = {
    "log": LogModel,
    "ring": RingModel,
    "bucket": BucketModel,
    "budget": BudgetModel,
    "budget_charge": BudgetModel,
    "budget_release": BudgetModel,
    "concurrency": ConcurrencyModel,
}


def lease_end(now: int) -> int:
    """Until when something is held from now on."""
    return (now + LEASE_MS) // LEASE_STEP_MS * LEASE_STEP_MS


@dataclass
class Asked:
    """An admission, and once it was admitted what it was charged and where."""

    limits: list[Limit]
    cost: int
    admitted_at: int | None = None
    ending: int = 0  # of its lease
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
        if asked.admitted_at is None and (missing := self.unseeded(limits)):
            return [b"unseeded", now, *missing]
        if asked.admitted_at is not None:
            looks = [self.limits[limit.key].look(limit, now, 0) for limit in limits]
            return [b"replayed", asked.admitted_at, *(n for look in looks for n in (0, *look[1:3], 0, look[4]))]
        looks = [self.limits[limit.key].look(limit, now, cost) for limit in limits]
        if any(look[0] and not limit.shadow for look, limit in zip(looks, limits, strict=True)):
            return [b"limited", now, *(n for look in looks for n in look)]
        self.clock, asked.admitted_at, asked.ending = now, now, lease_end(now)
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
        now = self.held(now)
        for limit in asked.limits:
            if limit.key in asked.charged and limit.kind == "concurrency":
                self.limits[limit.key].renew(now, asked.cost, name)
            elif limit.key in asked.charged and limit.kind in ("budget_charge", "budget_release"):
                self.limits[limit.key].renew(limit, now, asked.cost, asked.ending)
        asked.ending = lease_end(now)
        return "renewed"

    def unseeded(self, limits: list[Limit]) -> list[int]:
        return [
            place
            for place, limit in enumerate(limits, 1)
            if limit.kind == "budget" and limit.burst == 1 and not self.limits[limit.key].known
        ]

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
                due = cost if actual is None else actual
                if limit.kind in ("budget_charge", "budget_release"):
                    self.limits[limit.key].settle_hold(limit, now, cost, due, asked.ending)
                else:
                    self.limits[limit.key].settle(limit, asked.charged[limit.key], now, due - cost, name)
        return "settled"
