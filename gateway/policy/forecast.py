"""What a limit would say once its count is known, and once a request is admitted, told from what it says before."""

from __future__ import annotations

from gateway.limit_headers import NEVER
from gateway.models import RING_PARTS, LimitKind, LimitSpec
from gateway.periods import period_end_ms
from gateway.plugin import LimitState


def seeded_state(state: LimitState, spec: LimitSpec, cost: int, spent: int, now_ms: int) -> LimitState:
    """The state of a budget that has no count in the store, with what it has spent by the ledger."""
    left_ms = _period_end_ms(spec, now_ms) - now_ms
    fits = spent + cost <= spec.limit
    return state._replace(
        used=spent,
        remaining=max(0, spec.limit - spent),
        reset_ms=left_ms if spent else 0,
        retry_after_ms=0 if fits else NEVER if cost > spec.limit else left_ms,
        refuses=not fits,
    )


def admitted_state(state: LimitState, spec: LimitSpec, cost: int, now_ms: int) -> LimitState:
    """The state after the charge. Of requests in flight, ``reset_ms`` stays as it was."""
    if state.refuses:
        return state  # in shadow: what it would have refused counts nothing
    reset_ms = _reset_ms(state, spec, cost, now_ms)
    return state._replace(used=state.used + cost, remaining=state.remaining - cost, reset_ms=reset_ms)


def _reset_ms(state: LimitState, spec: LimitSpec, cost: int, now_ms: int) -> int:
    match spec.kind:
        case LimitKind.LOG:
            return max(state.reset_ms, spec.window_ms)
        case LimitKind.RING:
            part_ms = -(-spec.window_ms // RING_PARTS)
            return max(state.reset_ms, (now_ms // part_ms + 1) * part_ms - 1 + spec.window_ms - now_ms)
        case LimitKind.BUCKET:
            return state.reset_ms + -(-cost * spec.window_ms // spec.limit)
        case LimitKind.BUDGET if state.reset_ms == 0:
            return _period_end_ms(spec, now_ms) - now_ms
        case _:
            return state.reset_ms


def _period_end_ms(spec: LimitSpec, now_ms: int) -> int:
    if spec.period is None:
        raise AssertionError("a budget has a period")
    return period_end_ms(spec.period, spec.time_zone, now_ms)
