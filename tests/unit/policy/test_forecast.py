"""What a limit is foretold to say after a request is what the scripts say when they admit it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.models import LimitKind, LimitSpec
from gateway.plugin import LimitState
from gateway.policy.forecast import admitted_state, seeded_state
from tests.gate import DAY, NOON, Gate, Limit, State, bucket, budget, concurrency, log, ms, ring
from tests.stores import opened

LIMITS = [log(9), ring(9, 3_601_000), bucket(7, burst=9), budget(9), budget(9, "week"), budget(9, "month"), concurrency(9)]
LIMITS += [budget(9, period, zone="Asia/Beirut") for period in ("day", "week", "month")]


def a_spec(limit: Limit) -> LimitSpec:
    extent: Any = limit.extent
    window, period = (extent, None) if isinstance(extent, int) else (0, extent)
    kind, zone = LimitKind(limit.kind), limit.zone
    return LimitSpec("a", kind, limit.limit, ("rule",), window_ms=window, burst=limit.burst, period=period, time_zone=zone)


def a_state(seen: State, *, shadow: bool = False) -> LimitState:
    return LimitState(
        name="a",
        level=("rule",),
        unit="requests",
        limit=9,
        window_seconds=1,
        used=seen.used,
        remaining=seen.remaining,
        retry_after_ms=seen.retry,
        reset_ms=seen.reset,
        refuses=bool(seen.refuses),
        shadow=shadow,
        kind="log",
        entry=0,
    )


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit.kind} {limit.extent} {limit.zone}")
async def test_the_state_after_a_charge_is_foretold(limit: Limit):
    async with opened(None) as stores:
        gate = await Gate(stores).prepare()
        # at the end the clock is set back by more than is held
        changes = [ms(2026, 3, 28, 22), ms(2026, 10, 24, 21)]
        for now in (NOON, NOON, NOON + 1, NOON + 17_123, NOON + DAY - 1, *changes, ms(2026, 12, 31, 23), NOON + 10 * DAY):
            seen = (await gate.peek([limit], now, 2)).state
            foretold = admitted_state(a_state(seen), a_spec(limit), 2, now)
            decision = await gate.admit([limit], now, 2)
            if not decision.admitted:
                assert foretold.used == decision.state.used
                continue
            assert (foretold.used, foretold.remaining) == (decision.state.used, decision.state.remaining)
            if limit.kind != "concurrency":
                # two roundings in place of one
                assert 0 <= foretold.reset_ms - decision.state.reset <= (limit.kind == "bucket")


def test_a_limit_in_shadow_that_refuses_counts_nothing():
    state = a_state(State(1, 9, 0, 5_000, 5_000), shadow=True)
    assert admitted_state(state, a_spec(log(9)), 1, NOON) == state


@pytest.mark.parametrize(("spent", "cost"), [(0, 1), (8, 1), (9, 1), (12, 1), (0, 10)])
@pytest.mark.parametrize("period", ["day", "week", "month"])
async def test_a_budget_whose_count_is_lost_is_told_by_the_ledger(period: str, spent: int, cost: int):
    limit, missing = budget(9, period), State(0, 0, 9, 0, 0)
    async with opened(None) as stores:
        gate = await Gate(stores).prepare()
        await stores.runner.call("seed_budget", [limit.key], [str(NOON), period, str(spent)])
        seen = a_state((await gate.peek([limit], NOON, cost)).state)
    assert seeded_state(a_state(missing), a_spec(limit), cost, spent, NOON) == seen
