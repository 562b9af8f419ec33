"""Which thresholds the limits of a request have reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.limit_headers import NEVER
from gateway.models import LimitSpec
from gateway.plugin import LimitState
from gateway.store import BoundLimit


class Reached(NamedTuple):
    """A limit that has reached thresholds: hundredths, smallest first, never none."""

    limit: BoundLimit
    state: LimitState
    thresholds: tuple[int, ...]

    @property
    def told(self) -> tuple[str, int]:
        """The limit's name and the highest threshold, as a header tells them."""
        return self.state.name, self.thresholds[-1]


def reached_thresholds(limits: Sequence[BoundLimit], states: Sequence[LimitState], entry: int) -> list[Reached]:
    """Of the limits that stand before this entry of the chain or at it: those behind it give their charge back."""
    found = []
    for limit, state in zip(limits, states, strict=True):
        spec = limit.placed.spec
        if spec.alerts and state.entry <= entry and (thresholds := _thresholds(spec, state)):
            found.append(Reached(limit, state, thresholds))
    return found


def _thresholds(spec: LimitSpec, state: LimitState) -> tuple[int, ...]:
    """What is held for requests in flight counts as used, as it does where the limit decides.

    A limit that refuses has reached all, even if something is left that is too little for this request. One that a request
    could never pass has not: that says nothing about what was used.
    """
    if state.refuses and state.retry_after_ms != NEVER:
        return spec.alert_at
    return tuple([percent for percent in spec.alert_at if state.used * 100 >= percent * spec.limit])
