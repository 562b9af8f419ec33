"""Limits as the scripts take them: placed when a configuration is compiled, bound when a request is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.models import LimitKind, LimitSpec
from gateway.plugin import LimitState
from gateway.store.keyspace import Keyspace

INTEGERS_PER_LIMIT = 5


@dataclass(frozen=True, slots=True)
class PlacedLimit:
    """A limit at its place in a chain.

    ``key`` names its state but for the part that ``levels`` add with their values of a request. ``entry`` is the index of
    the chain entry that declared it, -1 where it stands before the chain. ``rule_id`` is set if it counts one rule only, and
    ``key_id`` if one API key only. ``arguments`` are what the scripts take for the cost that the limit declares. What states of
    the limit say is worked out once: ``kind``, ``capacity``, ``window_seconds``.
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


class BoundLimit(NamedTuple):
    """A limit for one request; ``key`` is complete. ``values`` are those of its levels."""

    placed: PlacedLimit
    key: str
    cost: int = 1
    values: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """Six words, as in lua/lib/limits.lua."""
        fixed = self.placed.arguments
        if self.cost == self.placed.spec.cost.units:
            return fixed
        return (fixed[0], str(self.cost), *fixed[2:])


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
    key = keyspace.limit(tenant_id, owner, spec)
    return PlacedLimit(
        spec, entry, key, tuple(levels), arguments, spec.kind.value, spec.capacity, spec.window_seconds, rule_id, key_id
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
