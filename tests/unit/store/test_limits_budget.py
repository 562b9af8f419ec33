"""lib/limit_budget.lua and lib/calendar.lua: at most L units in a day, week or month. Zones are in test_calendar.py."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from tests.gate import DAY, NOON, Gate, budget, ms
from tests.periods import period_of
from tests.stores import age, dump


def moments() -> list[int]:
    """First and last millisecond of months in ordinary, leap and century years, and some at random."""
    found = []
    for year in (1970, 2000, 2023, 2024, 2100, 2400):
        for month in (1, 2, 3, 12):
            start = round(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1_000)
            found += [start - 1, start, start + 27 * DAY, start + 28 * DAY - 1, start + 28 * DAY, start + 30 * DAY]
    chance = random.Random(4)
    return [now for now in found if now >= 0] + [chance.randrange(ms(2150, 1, 1)) for _ in range(20)]


@pytest.mark.parametrize("period", ["day", "week", "month"])
async def test_periods_begin_and_end_as_in_pythons_calendar(gate: Gate, period: str):
    client = gate.stores.connection.client
    for now in moments():
        limits = [budget(1, period, name=f"at-{now}")]
        spent = await gate.rate_limit(limits, now)
        # the tenant's clock would hold a moment that lies shortly before the one before
        await client.delete(gate.keyspace.clock)
        start, end = period_of(period, now)
        assert spent.state.reset == end - now, now
        assert await client.hget(limits[0].key, "start") == str(start).encode(), now


@pytest.mark.parametrize(
    ("period", "last", "first"),
    [
        ("day", ms(2026, 3, 10, 23, 59, 59), ms(2026, 3, 11)),
        ("week", ms(2026, 3, 15, 23, 59, 59), ms(2026, 3, 16)),
        ("week", ms(2027, 1, 3, 23, 59, 59), ms(2027, 1, 4)),
        ("month", ms(2026, 12, 31, 23, 59, 59), ms(2027, 1, 1)),
        ("month", ms(2028, 2, 29, 23, 59, 59), ms(2028, 3, 1)),
        ("month", ms(2027, 2, 28, 23, 59, 59), ms(2027, 3, 1)),
        ("month", ms(2026, 4, 30, 23, 59, 59), ms(2026, 5, 1)),
    ],
)
async def test_a_spent_quota_is_whole_again_in_the_next_period_and_not_a_millisecond_earlier(
    gate: Gate, period: str, last: int, first: int
):
    limits = [budget(2, period)]
    assert await gate.drain(limits, last - 3_600_000) == 2
    refused = await gate.admit(limits, last)
    assert (refused.word, refused.state.retry, refused.state.reset) == ("limited", first - last, first - last)
    assert not (await gate.admit(limits, first - 1)).admitted
    assert (await gate.admit(limits, first)).state.used == 1
    assert await gate.drain(limits, first) == 1


@pytest.mark.parametrize("cost", [1, 2, 3])
async def test_units_are_counted_up_to_the_limit_and_no_further(gate: Gate, cost: int):
    spent = 0
    for step in range(10):
        decision = await gate.admit([budget(7)], NOON + step, cost)
        assert decision.admitted == (spent + cost <= 7)
        spent += cost if decision.admitted else 0
        assert (decision.state.used, decision.state.remaining) == (spent, 7 - spent)
    assert await gate.drain([budget(7)], NOON + 10) == 7 - spent


async def test_a_cost_above_the_limit_never_passes_and_says_so(gate: Gate):
    decision = await gate.admit([budget(2)], NOON, cost=3)
    assert (decision.word, decision.state.retry, decision.state.reset) == ("limited", -1, 0)


async def test_a_lowered_quota_counts_what_was_spent_and_a_raised_one_keeps_it(gate: Gate):
    assert await gate.drain([budget(5)], NOON) == 5
    refused = await gate.admit([budget(3)], NOON)
    assert (refused.word, refused.state.used, refused.state.remaining) == ("limited", 5, 0)
    assert await gate.drain([budget(7)], NOON) == 2


async def test_day_week_and_month_are_counted_apart(gate: Gate):
    limits = [budget(2, "day"), budget(3, "week"), budget(4, "month")]
    assert await gate.drain(limits, NOON) == 2
    assert await gate.drain(limits, NOON + DAY) == 1
    refused = await gate.admit(limits, NOON + 2 * DAY)
    assert [state.refuses for state in refused.states] == [0, 1, 0]
    assert refused.states[1].retry == ms(2026, 3, 16) - (NOON + 2 * DAY)
    assert await gate.drain(limits, NOON + 7 * DAY) == 1
    refused = await gate.admit(limits, NOON + 7 * DAY)
    assert [state.refuses for state in refused.states] == [0, 0, 1]
    assert refused.states[2].retry == ms(2026, 4, 1) - (NOON + 7 * DAY)


async def test_cancelling_refunds_exactly_what_was_spent(gate: Gate):
    await gate.admit([budget(9)], NOON, cost=2)
    before = (await dump(gate.stores.connection))[budget(9).key.encode()][0]
    await gate.admit([budget(9)], NOON, cost=3, admission="dear")
    assert await gate.cancel([budget(9)], NOON + 1, "dear", amount=3) == "settled"
    assert (await dump(gate.stores.connection))[budget(9).key.encode()][0] == before


async def test_a_refund_that_comes_after_the_period_does_not_touch_the_next_one(gate: Gate):
    late = ms(2026, 3, 10, 23, 59, 59)
    await gate.admit([budget(5)], late, admission="late")
    await gate.admit([budget(5)], late + 1_000)
    assert await gate.cancel([budget(5)], late + 1_001, "late") == "settled"
    assert (await gate.admit([budget(5)], late + 1_002)).state.used == 2


async def test_a_refund_that_comes_after_the_period_reaches_the_period_if_nobody_spent_since(gate: Gate):
    late = ms(2026, 3, 10, 23, 59, 59)
    await gate.admit([budget(5)], late, admission="late")
    await gate.cancel([budget(5)], late + 1_001, "late")
    assert await gate.stores.connection.client.hget(budget(5).key, "spent") == b"0"


async def test_a_refund_never_makes_the_spending_negative(gate: Gate):
    await gate.admit([budget(5)], NOON, admission="one")
    await gate.cancel([budget(5)], NOON, "one", amount=4)
    assert await gate.drain([budget(5)], NOON) == 5


async def test_a_refund_without_a_record_leaves_none_behind(gate: Gate):
    await gate.admit([budget(5)], NOON, admission="one")
    await gate.stores.connection.client.delete(budget(5).key)
    await gate.cancel([budget(5)], NOON, "one")
    assert not await gate.stores.connection.client.exists(budget(5).key)


async def test_setting_the_clock_back_over_the_edge_does_not_start_spending_over(gate: Gate):
    midnight = ms(2026, 3, 11)
    limits = [budget(3)]
    await gate.admit(limits, midnight - 60_000)
    assert await gate.drain(limits, midnight + 60_000) == 3
    back = await gate.admit(limits, midnight - 30_000)
    assert (back.word, back.now) == ("limited", midnight - 30_000)
    assert back.state.retry == DAY + 30_000
    assert not (await gate.admit(limits, midnight + DAY - 1)).admitted
    assert (await gate.admit(limits, midnight + DAY)).admitted


async def test_a_small_step_back_over_the_edge_is_held(gate: Gate):
    midnight = ms(2026, 3, 11)
    assert await gate.drain([budget(2)], midnight) == 2
    held = await gate.admit([budget(2)], midnight - 5_000)
    assert (held.word, held.now) == ("limited", midnight)


@pytest.mark.parametrize("period", ["day", "week", "month"])
@pytest.mark.parametrize("now", [ms(2026, 3, 1), NOON, ms(2026, 3, 31, 23, 59, 59)])
async def test_the_record_outlives_its_period(gate: Gate, period: str, now: int):
    for step in (0, 1, 500, 2 * DAY, 31 * DAY):
        await age(gate.stores.connection, budget(5, period).key, step)
        now += step
        decision = await gate.admit([budget(5, period)], now)
        left = await gate.stores.connection.client.pttl(budget(5, period).key)
        assert left > decision.state.reset + 5_000
    for _ in range(3):  # the clock is behind while time passes
        await age(gate.stores.connection, budget(5, period).key, DAY)
        decision = await gate.peek([budget(5, period)], now - 32 * DAY)
        await gate.admit([budget(9, period)], now - 32 * DAY)
        assert await gate.stores.connection.client.pttl(budget(5, period).key) > decision.state.reset + 5_000


async def test_a_settlement_finds_what_was_spent_after_the_clock_was_set_back_over_the_edge(gate: Gate):
    midnight = ms(2026, 3, 11)
    await gate.admit([budget(9)], midnight + 60_000)
    await gate.admit([budget(9)], midnight - 30_000, 3, "back")
    await gate.cancel([budget(9)], midnight - 30_000, "back", amount=3)
    assert (await gate.admit([budget(9)], midnight + 60_000)).state.used == 2
