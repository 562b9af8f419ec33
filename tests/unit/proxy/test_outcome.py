"""What a request turned out to cost, as plugins and replies say it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.models import Cost, LimitKind, LimitSpec
from gateway.plugin import ApiKeyInfo, Exchange, Headers, Request, RuleInfo, TenantInfo
from gateway.proxy.outcome import Outcome
from gateway.store import BoundLimit, Keyspace, place_limit

SPEC = LimitSpec("bill", LimitKind.LOG, 9, ("rule",), window_ms=1_000, cost=Cost(2, reply_header="x-units"))


def a_limit() -> BoundLimit:
    return BoundLimit(place_limit(Keyspace("t"), "t-1", "o", SPEC, 0, ()), "k", 2)


def served(said: Any) -> Outcome:
    request = Request("GET", "/", "", Headers(), "203.0.113.7")
    exchange = Exchange(
        "r", request, TenantInfo("t-1", "T", "t", "basic"), ApiKeyInfo("k", "k"), RuleInfo("r", "/", "https://x")
    )
    exchange.costs["bill"] = said
    return Outcome(exchange=exchange)


@pytest.mark.parametrize(("said", "cost"), [(7, 7), (0, 0), (-3, 0), (10**30, 10**10)])
def test_a_plugin_says_the_cost_within_bounds(said: int, cost: int):
    assert served(said).cost_of(a_limit()) == cost


@pytest.mark.parametrize("said", [1.5, "7", None, [], float("nan")])
def test_what_is_no_whole_number_leaves_what_the_reply_says(said: Any):
    outcome = served(said)
    assert outcome.cost_of(a_limit()) is None
    outcome.note_reply([a_limit()], Headers.of([("x-units", "5")]))
    assert outcome.cost_of(a_limit()) == 5
