"""A refusal by limits as an answer."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import BudgetExceeded, LimitExceeded, RateLimited
from gateway.headers import duration, retry_headers
from gateway.models import LimitKind
from gateway.plugin import LimitState


def refusal_of(states: Sequence[LimitState]) -> tuple[int, LimitExceeded]:
    """The chain entry at whose place the refusal takes effect, and the error that lists every limit that refuses."""
    refusing = [state for state in states if state.refuses and not state.shadow]
    longest = max(refusing, key=lambda state: (state.retry_after_ms < 0, state.retry_after_ms))
    cls = BudgetExceeded if longest.kind == LimitKind.BUDGET else RateLimited
    wait_ms = longest.retry_after_ms
    advice = "waiting does not help" if wait_ms < 0 else f"try again in {duration(wait_ms)}"
    message = f"Limit {longest.name} is spent: {longest.used} of {longest.limit} {longest.unit} used; {advice}."
    return min(state.entry for state in refusing), cls(
        message,
        headers=retry_headers(refusing),
        details={
            "limits": [
                {
                    "name": state.name,
                    "level": list(state.level),
                    "unit": state.unit,
                    "limit": state.limit,
                    "used": state.used,
                    "remaining": state.remaining,
                    "retry_after_ms": state.retry_after_ms if state.retry_after_ms >= 0 else None,
                }
                for state in refusing
            ]
        },
    )
