"""What callers know of limits that were asked in real time, and what follows from it for each kind.

Times are milliseconds of the machine's clock, which is also the server's: what happened between a call and its reply happened
at a millisecond between the two. So a sum is known as the least and the most that it may have been.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.models import RING_PARTS, LimitKind, LimitSpec

_NEVER = 2**60


class Steps:
    """A sum that changes by known amounts at known milliseconds."""

    def __init__(self, changes: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(changes)
        self._times = [at for at, _ in ordered]
        self._sums = list(itertools.accumulate((change for _, change in ordered), initial=0))

    def at(self, now: int) -> int:
        """After all that happened until ``now``."""
        return self._sums[bisect_right(self._times, now)]

    def between(self, after: int, until: int) -> int:
        """What came in (after, until]."""
        return self.at(until) - self.at(after)


@dataclass
class Charge:
    """Units that were admitted at ``at``. ``settled`` is when that was asked and answered, ``actual`` what they became.

    ``ends`` is when a lease without renewal is over, for those that nobody settles. One that was renewed late may have been
    ``doubtful`` in between.
    """

    at: int
    units: int
    settled: tuple[int, int] | None = None
    actual: int = 0
    ends: int = _NEVER
    doubtful: bool = False


@dataclass(frozen=True)
class Refusal:
    """Units that found no room at ``at``."""

    at: int
    units: int


@dataclass
class Book:
    """All receipts of one limit."""

    spec: LimitSpec
    charges: list[Charge] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def check(self) -> None:
        """Fails where more was admitted than is promised, or refused without a reason."""
        if self.spec.kind in (LimitKind.LOG, LimitKind.RING):
            self._check_window()
        elif self.spec.kind is LimitKind.BUCKET:
            self._check_bucket()
        else:
            self._check_held()

    def _check_window(self) -> None:
        limit, window = self.spec.limit, self.spec.window_ms
        # a unit of a ring leaves with the last one of its part of the window
        late = -(-window // RING_PARTS) if self.spec.kind is LimitKind.RING else 0
        units = Steps((charge.at, charge.units) for charge in self.charges)
        for charge in self.charges:  # the fullest of all windows is one that ends with a charge
            used = units.between(charge.at - window, charge.at)
            assert used <= limit, f"{self.spec.name}: {used} of {limit} in the window until {charge.at}"
        for refusal in self.refusals:
            used = units.between(refusal.at - window - late, refusal.at)
            assert used + refusal.units > limit, f"{self.spec.name}: refused at {refusal.at} with {used} of {limit} used"

    def _check_bucket(self) -> None:
        spec, window = self.spec, self.spec.window_ms
        # within a millisecond nothing is refilled, so those that found room came first
        asked = [(charge.at, 0, charge.units) for charge in self.charges]
        asked += [(refusal.at, 1, refusal.units) for refusal in self.refusals]
        level, before = spec.burst * window, 0
        for now, refused, units in sorted(asked):
            level, before = min(spec.burst * window, level + (now - before) * spec.limit), now
            if refused:
                assert level < units * window, f"{spec.name}: refused at {now} with room"
            else:
                level -= units * window
                assert level >= 0, f"{spec.name}: more than the bucket held at {now}"

    def _check_held(self) -> None:
        least, most = self._least(), self._most()
        for charge in self.charges:
            used = least.at(charge.at - 1) + charge.units
            assert used <= self.spec.limit, f"{self.spec.name}: at least {used} of {self.spec.limit} at {charge.at}"
        for refusal in self.refusals:
            used = most.at(refusal.at) + refusal.units
            assert used > self.spec.limit, f"{self.spec.name}: refused at {refusal.at} with at most {used} used"

    def _least(self) -> Steps:
        def changes(charge: Charge) -> Iterable[tuple[int, int]]:
            due, held = self._due(charge), 0 if charge.doubtful else charge.units
            asked, answered = charge.settled or (charge.ends, charge.ends)
            yield charge.at, held
            yield asked - 1, min(held, due) - held  # it may have happened before whatever came in that millisecond
            yield answered, due - min(held, due)

        return Steps(change for charge in self.charges for change in changes(charge))

    def _most(self) -> Steps:
        def changes(charge: Charge) -> Iterable[tuple[int, int]]:
            due = self._due(charge)
            asked, answered = charge.settled or (charge.ends, charge.ends - 1)
            yield charge.at, charge.units
            yield asked, max(charge.units, due) - charge.units
            yield answered + 1, due - max(charge.units, due)

        return Steps(change for charge in self.charges for change in changes(charge))

    def _due(self, charge: Charge) -> int:
        """What is left of a charge when nothing is held any more."""
        if self.spec.kind is LimitKind.CONCURRENCY:
            return 0
        if charge.settled is None:
            return charge.units if self.spec.on_lost == "charge" else 0
        return charge.actual

    def spent(self) -> int:
        """What a budget has spent when nothing is held any more."""
        return sum(self._due(charge) for charge in self.charges)
