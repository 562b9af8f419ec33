"""What the store said last, and what may be admitted on its word while it is away."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.errors import GatewayError, InvalidApiKey
from gateway.models import LimitKind
from gateway.plugin import LimitState
from gateway.policy import CompiledKey, CompiledRule, CompiledTenant, Recent
from gateway.proxy.caller import Caller
from gateway.store import Admission, BoundLimit

MAX_CALLERS = 100_000
MAX_LIMITS = 100_000
PARTS = 60
"""Units that were admitted in the same such part of a window are remembered together, by the latest of them."""

SETTLED_S = 300.0
"""What was admitted here is charged by then, once the store is back."""


@dataclass(slots=True)
class _Confirmed:
    """A key of which the store has said that it is good, with the configuration that was current, by rules."""

    tenant: CompiledTenant
    key: CompiledKey
    at: float
    now_ms: int
    rules: dict[str, tuple[float, CompiledRule]] = field(default_factory=dict)


@dataclass(slots=True)
class _Used:
    """What was admitted here of a limit while the store was away: units with their times, and those in flight."""

    units: deque[tuple[float, int]] = field(default_factory=deque)
    in_flight: int = 0


class LastKnown:
    """Admits, while the store is away, callers it was seen to admit on the same configuration, from a share of each limit.

    ``shares`` is by how many processes a limit is divided. The share is rounded down, so a limit smaller than that admits
    nothing. It is a share of what the store last said remained, until everything would have been available again, and then of
    the limit; of quotas it is only ever of what remained. What is admitted here is charged when the store is back; until then
    it is remembered, also over several absences. ``on_admitted`` is called for each admission, ``clock`` counts seconds.
    """

    def __init__(
        self, shares: int, cached_for_ms: int, on_admitted: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shares = shares
        self._cached_for = cached_for_ms / 1_000
        self._on_admitted = on_admitted
        self._clock = clock
        self._callers: Recent[tuple[str, str], _Confirmed] = Recent(MAX_CALLERS)
        self._refused: Recent[str, float] = Recent(MAX_CALLERS)
        self._states: Recent[str, tuple[float, LimitState]] = Recent(MAX_LIMITS)
        self._used: Recent[str, _Used] = Recent(MAX_LIMITS)
        self._confirmed_at = float("-inf")

    @property
    def is_fresh(self) -> bool:
        """Whether there is anybody who may still be admitted."""
        return self._clock() - self._confirmed_at < self._cached_for

    def confirm(
        self,
        caller: Caller,
        tenant: CompiledTenant,
        key: CompiledKey,
        rule: CompiledRule,
        limits: Sequence[BoundLimit],
        admission: Admission,
    ) -> None:
        """The store has decided: tenant, key and rule are good, and this is what is left of the limits."""
        now = self._confirmed_at = self._clock()
        name = caller.subdomain, caller.digest
        found = self._callers.get(name)
        if found is None or found.tenant is not tenant or found.key is not key:
            found = _Confirmed(tenant, key, now, admission.now_ms)
        found.at, found.now_ms = now, admission.now_ms
        found.rules[rule.info.id] = now, rule
        self._callers.put(name, found)
        for limit, state in zip(limits, admission.states, strict=True):
            self._states.put(limit.key, (now, state))

    def refused(self, caller: Caller, refusal: GatewayError) -> None:
        """The store has refused the key, or everybody of the tenant."""
        self._callers.forget((caller.subdomain, caller.digest))
        if not isinstance(refusal, InvalidApiKey):
            self._refused.put(caller.subdomain, self._clock())

    def knows(self, caller: Caller) -> bool:
        """Whether the key was good a short time ago, for whatever rule."""
        return self._good(caller) is not None

    def admit(
        self,
        caller: Caller,
        tenant: CompiledTenant,
        key: CompiledKey,
        rule: CompiledRule,
        limits: Sequence[BoundLimit],
    ) -> Admission | None:
        """The admission of a request, None where there is no ground for one. All limits or none are used."""
        now = self._clock()
        good = self._good(caller)
        if good is None or good.tenant is not tenant or good.key is not key:
            return None
        confirmed_at, confirmed = good.rules.get(rule.info.id, (float("-inf"), None))
        if confirmed is not rule or now - confirmed_at >= self._cached_for:
            return None
        states = []
        for limit in limits:
            state = self._state(limit, now)
            if state is None:
                return None
            states.append(state)
        for limit in limits:
            self._use(limit, now)
        self._on_admitted()
        return Admission(True, good.now_ms + round((now - good.at) * 1_000), tuple(states))

    def ended(self, limits: Sequence[BoundLimit]) -> None:
        """A request that was admitted here is no longer in flight."""
        for limit in limits:
            used = self._used.get(limit.key)
            if used is not None and limit.placed.spec.kind is LimitKind.CONCURRENCY:
                used.in_flight = max(0, used.in_flight - limit.cost)

    def _good(self, caller: Caller) -> _Confirmed | None:
        found = self._callers.get((caller.subdomain, caller.digest))
        if found is None:
            return None
        age = self._clock() - found.at
        if age >= self._cached_for or found.at <= (self._refused.get(caller.subdomain) or float("-inf")):
            return None
        if found.key.ends_ms is not None and found.now_ms + age * 1_000 >= found.key.ends_ms:
            return None
        return found

    def _state(self, limit: BoundLimit, now: float) -> LimitState | None:
        """What a limit says after this request, None if the request is not to pass."""
        spec = limit.placed.spec
        known_at, known = self._states.get(limit.key) or (now, None)
        if known is None and spec.kind is LimitKind.BUDGET and not spec.shadow:
            return None
        capacity = min(spec.limit, spec.capacity)
        remaining = capacity
        if known is not None:
            is_over = spec.kind not in (LimitKind.BUDGET, LimitKind.CONCURRENCY) and now >= known_at + known.reset_ms / 1_000
            remaining = capacity if is_over else min(capacity, known.remaining)
        left = remaining // self._shares - self._used_of(limit, now) - limit.cost
        if left < 0 and not spec.shadow:
            return None
        left = max(0, left)
        reset_ms = 0 if known is None else max(0, known.reset_ms - round((now - known_at) * 1_000))
        placed = limit.placed
        return LimitState(
            spec.name, spec.per, spec.unit, placed.capacity, placed.window_seconds, placed.capacity - left, left,
            0, reset_ms, False, spec.shadow, placed.kind, placed.entry,
        )  # fmt: skip

    def _used_of(self, limit: BoundLimit, now: float) -> int:
        used = self._used.get(limit.key)
        if used is None:
            return 0
        oldest = now - self._memory_s(limit)
        while used.units and used.units[0][0] <= oldest:
            used.units.popleft()
        return used.in_flight + sum([units for _, units in used.units])

    def _use(self, limit: BoundLimit, now: float) -> None:
        used = self._used.get(limit.key) or _Used()
        self._used.put(limit.key, used)
        if limit.placed.spec.kind is LimitKind.CONCURRENCY:
            used.in_flight += limit.cost
            return
        units = limit.cost
        part_s = self._memory_s(limit) / PARTS
        if len(used.units) > 1 and now - used.units[-2][0] < part_s:
            units += used.units.pop()[1]
        used.units.append((now, units))

    def _memory_s(self, limit: BoundLimit) -> float:
        spec = limit.placed.spec
        return self._cached_for + SETTLED_S if spec.kind is LimitKind.BUDGET else spec.window_ms / 1_000
