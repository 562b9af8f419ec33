"""Limits as the scripts take them: placed when a configuration is compiled, bound when a request is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.models import LimitKind, LimitSpec
from gateway.periods import PLAIN, Period, period_word_now
from gateway.plugin import LimitState
from gateway.store.keyspace import Keyspace

INTEGERS_PER_LIMIT = 5

PERIOD = 3
"""The place of a budget's period among the words of a limit."""


@dataclass(frozen=True, slots=True)
class PlacedLimit:
    """A limit at its place in a chain.

    ``key`` names its state but for the part that ``levels`` add with their values of a request. ``entry`` is the index of
    the chain entry that declared it, -1 where it stands before the chain. ``rule_id`` is set if it counts one rule only, and
    ``key_id`` if one API key only. ``arguments`` are what the scripts take for the cost that the limit declares. With
    ``in_zone``, a period and its time zone, the word for the period is another one as time passes, so there it is replaced.
    What states of the limit say is worked out once: ``kind``, ``capacity``, ``window_seconds``.
    """

    spec: LimitSpec
    entry: int
    key: str
    levels: tuple[str, ...]
    arguments: tuple[str, ...]
    kind: str
    capacity: int
    window_seconds: int
    rule_id: str | None = None
    key_id: str | None = None
    in_zone: tuple[Period, str] | None = None


class BoundLimit(NamedTuple):
    """A limit for one request; ``key`` is complete. ``values`` are those of its levels."""

    placed: PlacedLimit
    key: str
    cost: int = 1
    values: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """Six words, as in lua/lib/limits.lua; those of a period in a time zone are as of now."""
        placed = self.placed
        words = placed.arguments
        if placed.in_zone is not None:
            words = (*words[:3], period_word_now(*placed.in_zone), *words[4:])
        if self.cost == placed.spec.cost.units:
            return words
        return (words[0], str(self.cost), *words[2:])


def place_limit(
    keyspace: Keyspace,
    tenant_id: str,
    owner: str,
    spec: LimitSpec,
    entry: int,
    levels: Sequence[str],
    *,
    rule_id: str | None = None,
    key_id: str | None = None,
) -> PlacedLimit:
    """Prepare a limit once, when the configuration is compiled."""
    kind: str = spec.kind
    option = str(spec.burst)
    if spec.kind is LimitKind.BUDGET:
        kind = f"{kind}_{spec.on_lost}" if spec.on_lost else kind
        option = "1" if spec.is_in_ledger else "0"
    extent = spec.period or str(spec.window_ms)
    arguments = (kind, str(spec.cost.units), str(spec.limit), extent, option, "1" if spec.shadow else "0")
    return PlacedLimit(
        spec,
        entry,
        keyspace.limit(tenant_id, owner, spec),
        tuple(levels),
        arguments,
        spec.kind.value,
        spec.capacity,
        spec.window_seconds,
        rule_id,
        key_id,
        None if spec.period is None or spec.time_zone == PLAIN else (spec.period, spec.time_zone),
    )


def states_of(limits: Sequence[BoundLimit], numbers: Sequence[int]) -> tuple[LimitState, ...]:
    """What a script replied of these limits."""
    states = []
    position = 0
    for limit in limits:
        refuses, used, remaining, retry_ms, reset_ms = numbers[position : position + INTEGERS_PER_LIMIT]
        position += INTEGERS_PER_LIMIT
        placed, spec = limit.placed, limit.placed.spec
        states.append(
            LimitState(
                spec.name,
                spec.per,
                spec.unit,
                placed.capacity,
                placed.window_seconds,
                used,
                remaining,
                retry_ms,
                reset_ms,
                refuses == 1,
                spec.shadow,
                placed.kind,
                placed.entry,
            )
        )
    return tuple(states)
