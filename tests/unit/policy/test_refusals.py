"""Which error a refusal by limits becomes."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import BudgetExceeded, LimitExceeded, RateLimited, TooManyConcurrent
from gateway.plugin import LimitState
from gateway.policy import refusal_of
from tests.unit.test_limit_headers import a_state as any_state


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


def refusing(**facts):
    return any_state(**({"refuses": True, "used": 100, "remaining": 0, "retry_after_ms": 500} | facts))


def test_the_first_refusing_entry_is_the_place_and_the_longest_wait_the_message():
    states = [any_state(entry=0), refusing(entry=5, name="long", retry_after_ms=90_000), refusing(entry=2, name="short")]
    place, error = refusal_of(states)
    assert place == 2
    assert type(error) is RateLimited
    assert error.message == "Limit long is spent: 100 of 100 requests used; try again in 1m30s."
    assert [limit["name"] for limit in error.details["limits"]] == ["long", "short"]
    assert dict(error.headers) == {"retry-after-ms": "90000", "retry-after": "90"}


def test_a_limit_for_which_waiting_is_pointless_decides():
    place, error = refusal_of([refusing(retry_after_ms=90_000), refusing(kind="budget", retry_after_ms=-1, entry=-1)])
    assert (place, type(error)) == (-1, BudgetExceeded)
    assert error.message.endswith("waiting does not help.")
    assert dict(error.headers) == {"x-should-retry": "false"}
    assert [limit["retry_after_ms"] for limit in error.details["limits"]] == [90_000, None]


def test_a_shadow_limit_takes_no_part():
    place, error = refusal_of([refusing(entry=0, shadow=True, retry_after_ms=-1), refusing(entry=3)])
    assert place == 3
    assert len(error.details["limits"]) == 1
