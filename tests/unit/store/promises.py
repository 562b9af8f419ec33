"""What is promised of each kind of limit, checked on receipts of what was admitted and nothing else.

The clock may be held, but is never set back further: then a window is no window.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

from tests.gate import Limit
from tests.periods import period_of
from tests.stores import LEASE_MS


class LogPromise:
    """At most L units in any (now - W, now]."""

    def __init__(self) -> None:
        self.units: list[tuple[int, str, int]] = []

    def admitted(self, limit: Limit, name: str, now: int, cost: int) -> None:
        self.units = [taken for taken in self.units if taken[0] > now - int(limit.extent)]
        assert sum(units for _, _, units in self.units) + cost <= limit.limit, f"{limit.kind}: more than L in a window"
        self.units.append((now, name, cost))

    def renewed(self, name: str, now: int) -> None:
        """Nothing is held."""

    def settled(self, limit: Limit, name: str, now: int, cost: int, actual: int) -> None:
        if actual < cost:
            self.units = [(at, who, actual if who == name else units) for at, who, units in self.units]
        elif actual > cost:
            self.units.append((now, "", actual - cost))


class RingPromise(LogPromise):
    """The charges of the trailing window and this reservation are <= L; what is owed on top counts where it was charged."""

    def __init__(self) -> None:
        super().__init__()
        self.since: dict[str, int] = {}

    def admitted(self, limit: Limit, name: str, now: int, cost: int) -> None:
        super().admitted(limit, name, now, cost)
        self.since[name] = now

    def settled(self, limit: Limit, name: str, now: int, cost: int, actual: int) -> None:
        since, length = self.since.pop(name), -(-int(limit.extent) // 60)
        has_left = (since // length + 1) * length - 1 + int(limit.extent) <= now
        super().settled(limit, name, now if has_left else since, cost, actual)


class BucketPromise(LogPromise):
    """Any interval of t milliseconds takes at most burst + L * t / W; what is given back counts where it is."""

    def __init__(self) -> None:
        self.most, self.at = Fraction(0), 0  # the worst interval that ends at `at`: what it took beyond its L * t / W

    def admitted(self, limit: Limit, name: str, now: int, cost: int) -> None:
        self.take(limit, now, cost)
        assert self.most <= limit.burst, "bucket: more than burst + L * t / W in an interval of t"

    def take(self, limit: Limit, now: int, units: int) -> None:
        leaked = Fraction(max(0, now - self.at) * limit.limit, int(limit.extent))
        self.most, self.at = max(Fraction(0), max(Fraction(0), self.most - leaked) + units), max(now, self.at)

    def settled(self, limit: Limit, name: str, now: int, cost: int, actual: int) -> None:
        self.take(limit, now, actual - cost)


class BudgetPromise(LogPromise):
    """Settled spend + live holds + this hold <= budget."""

    def __init__(self) -> None:
        self.spent: dict[int, int] = defaultdict(int)  # by period
        self.held: dict[str, tuple[int, int]] = {}  # until when, units
        self.charged: dict[str, int] = {}  # in which period

    def period(self, limit: Limit, now: int) -> int:
        return period_of(str(limit.extent), now, limit.zone)[0]

    def admitted(self, limit: Limit, name: str, now: int, cost: int) -> None:
        live = sum(units for end, units in self.held.values() if end > now)
        lost = sum(units for end, units in self.held.values() if self.is_charged(limit, end, now))
        spent = self.spent[self.period(limit, now)]
        assert spent + lost + live + cost <= limit.limit, "budget: spent + held + this is more than the budget"
        if limit.kind == "budget":
            self.spent[self.period(limit, now)] += cost
            self.charged[name] = self.period(limit, now)
        else:
            self.held[name] = (lease_end(now), cost)

    def is_charged(self, limit: Limit, end: int, now: int) -> bool:
        """True for what a dead replica held, if that is charged, and in the present period."""
        return limit.kind == "budget_charge" and end <= now and self.period(limit, end) == self.period(limit, now)

    def renewed(self, name: str, now: int) -> None:
        if name in self.held:
            self.held[name] = (lease_end(now), self.held[name][1])

    def settled(self, limit: Limit, name: str, now: int, cost: int, actual: int) -> None:
        if limit.kind == "budget":
            period = self.charged.pop(name, None)
            if period is not None:
                self.spent[self.period(limit, now) if actual > cost else period] += actual - cost
            return
        end, units = self.held.pop(name, (now + 1, 0))
        if limit.kind == "budget_charge" and end <= now and not self.is_charged(limit, end, now):
            actual = max(0, actual - units)
        self.spent[self.period(limit, now)] += actual


class ConcurrencyPromise(LogPromise):
    """Live leases <= L; a lease ends with the request, or `lease_ms` after its last renewal."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[int, int]] = {}

    def admitted(self, limit: Limit, name: str, now: int, cost: int) -> None:
        live = sum(units for since, units in self.held.values() if since > now - LEASE_MS)
        assert live + cost <= limit.limit, "concurrency: more than L in flight"
        self.held[name] = (now, cost)

    def renewed(self, name: str, now: int) -> None:
        if name in self.held:
            self.held[name] = (now, self.held[name][1])

    def settled(self, limit: Limit, name: str, now: int, cost: int, actual: int) -> None:
        self.held.pop(name, None)


PROMISES: dict[str, type[LogPromise]] = {
    "log": LogPromise,
    "ring": RingPromise,
    "bucket": BucketPromise,
    "budget": BudgetPromise,
    "budget_charge": BudgetPromise,
    "budget_release": BudgetPromise,
    "concurrency": ConcurrencyPromise,
}


def lease_end(now: int) -> int:
    """When a hold that is neither settled nor renewed ends: at most a twentieth of the lease before the lease does."""
    step = LEASE_MS // 20
    return (now + LEASE_MS) // step * step
