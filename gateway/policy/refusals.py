"""A refusal by limits as an answer."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import BudgetExceeded, LimitExceeded, RateLimited, TooManyConcurrent
from gateway.limit_headers import NEVER, UNKNOWN, duration, retry_headers
from gateway.models import MEASURED, LimitKind, shown_amount
from gateway.plugin import LimitState

_ERRORS: dict[str, type[LimitExceeded]] = {LimitKind.BUDGET: BudgetExceeded, LimitKind.CONCURRENCY: TooManyConcurrent}


def refusal_of(states: Sequence[LimitState]) -> tuple[int, LimitExceeded]:
    """The chain entry at whose place the refusal takes effect, and the error that lists every limit that refuses.

    The limit that takes longest to have room again gives the error its code; one for which waiting cannot help goes first.
    """
    refusing = [state for state in states if state.refuses and not state.shadow]
    longest = max(refusing, key=lambda state: (state.retry_after_ms == NEVER, state.retry_after_ms))
    return min(state.entry for state in refusing), _ERRORS.get(longest.kind, RateLimited)(
        _message(longest),
        headers=retry_headers(refusing),
        details={
            "limits": [
                {
                    "name": state.name,
                    "level": list(state.level),
                    "unit": state.unit,
                    "limit": shown_amount(state.unit, state.limit),
                    "used": shown_amount(state.unit, state.used),
                    "remaining": shown_amount(state.unit, state.remaining),
                    "retry_after_ms": state.retry_after_ms if state.retry_after_ms >= 0 else None,
                }
                for state in refusing
            ]
        },
    )


def _message(state: LimitState) -> str:
    advice = {NEVER: "waiting does not help", UNKNOWN: "try again when a request in flight has ended"}.get(
        state.retry_after_ms, f"try again in {duration(state.retry_after_ms)}"
    )
    if state.unit in MEASURED:
        used, limit = shown_amount(state.unit, state.used), shown_amount(state.unit, state.limit)
        unit = state.unit.replace("_", " ")
        return f"Limit {state.name} has too little left: {used} of {limit} {unit} used or reserved; {advice}."
    used_up = "requests in flight" if state.kind == LimitKind.CONCURRENCY else f"{state.unit} used"
    return f"Limit {state.name} is spent: {state.used} of {state.limit} {used_up}; {advice}."
