"""Which error a refusal by limits becomes."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import BudgetExceeded, LimitExceeded, RateLimited, TooManyConcurrent
from gateway.plugin import LimitState
from gateway.proxy.refusals import refusal_of


def a_state(kind: str = "log", retry: int = 1_500, **fields: Any) -> LimitState:
    facts: dict[str, Any] = {"name": kind, "level": ("rule",), "unit": "requests", "window_seconds": 60}
    facts |= {"limit": 5, "used": 5, "remaining": 0}
    more = {"retry_after_ms": retry, "reset_ms": 0, "refuses": True, "shadow": False, "kind": kind, "entry": 0}
    return LimitState(**(facts | more | fields))


@pytest.mark.parametrize(
    ("states", "error", "advice"),
    [
        ([a_state()], RateLimited, "Limit log is spent: 5 of 5 requests used; try again in 1.5s."),
        ([a_state("budget")], BudgetExceeded, "try again in 1.5s"),
        ([a_state("concurrency", -2)], TooManyConcurrent, "5 of 5 requests in flight; try again when a request in flight has"),
        ([a_state("concurrency", -2), a_state()], RateLimited, "try again in 1.5s"),
        ([a_state("concurrency", -2), a_state(retry=-1)], RateLimited, "waiting does not help"),
        ([a_state("concurrency", -1), a_state()], TooManyConcurrent, "waiting does not help"),
    ],
)
def test_the_limit_that_keeps_a_client_waiting_longest_gives_the_code(
    states: list[LimitState], error: type[LimitExceeded], advice: str
):
    place, refusal = refusal_of([a_state("shadow", 9_000, shadow=True), *states, a_state("room", 0, refuses=False)])
    assert (place, type(refusal)) == (0, error)
    assert advice in refusal.message
    assert [limit["name"] for limit in refusal.details["limits"]] == [state.name for state in states]


def test_what_is_not_known_of_the_wait_is_not_told():
    refusal = refusal_of([a_state("concurrency", -2)])[1]
    assert refusal.headers == (("retry-after", "1"),)
    assert refusal.details["limits"][0]["retry_after_ms"] is None
