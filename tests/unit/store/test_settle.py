"""settle.lua: a cancelled admission takes nothing, an ended one what it is due, and each is settled once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gate import NOON, Gate, Limit, bucket, budget, concurrency, log, ms
from tests.stores import dump

LIMITS = [log(5), bucket(60, burst=5), budget(5), budget(50, "month")]


async def contents(gate: Gate, limits: list[Limit]) -> dict[str, Any]:
    found = await dump(gate.stores.connection)
    return {limit.key: found[limit.key.encode()][0] for limit in limits}


@pytest.mark.parametrize("cost", [1, 3])
async def test_cancelling_puts_every_limit_back_where_it_was(gate: Gate, cost: int):
    await gate.admit(LIMITS, NOON)
    before = await contents(gate, LIMITS)
    assert (await gate.admit(LIMITS, NOON, cost, "one")).admitted
    assert await contents(gate, LIMITS) != before
    assert await gate.cancel(LIMITS, NOON, "one", amount=cost) == "settled"
    assert await contents(gate, LIMITS) == before


async def test_cancelling_twice_is_cancelling_once(gate: Gate):
    for name in ("one", "two"):
        await gate.admit(LIMITS, NOON, admission=name)
    assert await gate.cancel(LIMITS, NOON, "one") == "settled"
    before = await dump(gate.stores.connection)
    for later in (0, 10, 100_000):
        assert await gate.cancel(LIMITS, NOON + later, "one") == "settled_before"
    assert await dump(gate.stores.connection) == before
    assert (await gate.admit(LIMITS, NOON)).states[0].used == 2


async def test_a_settled_admission_is_not_replayed(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    await gate.cancel(LIMITS, NOON, "one")
    assert await gate.ask(LIMITS, NOON, admission="one") == [b"settled"]


async def test_only_the_named_limits_give_back(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    assert await gate.cancel([LIMITS[2], LIMITS[1]], NOON, "one") == "settled"
    assert [state.used for state in (await gate.admit(LIMITS, NOON)).states] == [2, 1, 1, 2]


async def test_a_second_cancel_for_the_other_limits_comes_too_late(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    await gate.cancel([LIMITS[0]], NOON, "one")
    assert await gate.cancel([LIMITS[2]], NOON, "one") == "settled_before"
    assert [state.used for state in (await gate.admit(LIMITS, NOON)).states] == [1, 2, 2, 2]


async def test_cancelling_what_was_never_admitted_leaves_only_the_void_marker(gate: Gate):
    await gate.admit(LIMITS, NOON)
    before = await dump(gate.stores.connection)
    assert await gate.cancel(LIMITS, NOON, "unseen") == "not_admitted"
    after = await dump(gate.stores.connection)
    assert after.keys() - before.keys() == {gate.keyspace.marker("unseen").encode()}
    assert {key: after[key] for key in before} == before


async def test_a_shadow_limit_that_counted_nothing_gives_nothing_back(gate: Gate):
    shadows = [log(1, shadow=True), bucket(1, 3_600_000, burst=1, shadow=True), budget(1, shadow=True)]
    assert (await gate.admit([*shadows, log(9, name="real")], NOON)).admitted
    before = await contents(gate, shadows)
    over = await gate.admit([*shadows, log(9, name="real")], NOON, admission="over")
    assert [state.refuses for state in over.states] == [1, 1, 1, 0]
    assert await gate.cancel([*shadows, log(9, name="real")], NOON, "over") == "settled"
    assert await contents(gate, shadows) == before
    assert [state.used for state in (await gate.admit([*shadows, log(9, name="real")], NOON)).states] == [1, 1, 1, 2]


async def test_a_shadow_limit_that_counted_gives_back(gate: Gate):
    shadows = [log(1, shadow=True), log(1, shadow=True, name="full")]
    await gate.admit([shadows[1]], NOON)
    await gate.admit(shadows, NOON, admission="one")
    await gate.cancel(shadows, NOON, "one")
    assert [state.used for state in (await gate.admit(shadows, NOON)).states] == [1, 1]


async def test_a_limit_that_was_declared_after_the_admission_gives_back_nothing_it_does_not_have(gate: Gate):
    await gate.admit([log(5)], NOON, admission="one")
    assert await gate.cancel([log(5), log(5, name="new"), budget(5, name="new")], NOON, "one") == "settled"
    assert not await gate.stores.connection.client.exists(log(5, name="new").key, budget(5, name="new").key)


async def test_a_cancel_while_the_clock_is_held_counts_from_the_held_time(gate: Gate):
    limits = [bucket(1, 1_000, burst=2)]
    await gate.admit(limits, NOON)
    await gate.admit(limits, NOON + 400, admission="one")
    await gate.cancel(limits, NOON - 4_000, "one")
    decision = await gate.admit(limits, NOON + 400)
    assert (decision.state.used, decision.state.reset) == (2, 1_600)


# What a request turned out to cost


@pytest.mark.parametrize("actual", [0, 1, 2, 3, 4, 5])
async def test_what_was_charged_becomes_what_is_due(gate: Gate, actual: int):
    limits = [log(9), bucket(60, burst=9), budget(9)]
    await gate.admit(limits, NOON, 3, "one")
    assert await gate.settle(limits, NOON, "one", 3, actual) == "settled"
    after = await gate.admit(limits, NOON)
    assert [state.used for state in after.states] == [actual + 1] * 3
    assert await gate.settle(limits, NOON, "one", 3, 0) == "settled_before"
    assert await gate.drain(limits, NOON) == 9 - actual - 1


async def test_without_an_amount_the_charge_stays_and_only_what_is_held_ends(gate: Gate):
    limits = [*LIMITS, concurrency(2)]
    await gate.admit(limits, NOON, admission="one")
    before = await contents(gate, LIMITS)
    assert await gate.settle(limits, NOON + 5, "one") == "settled"
    assert await contents(gate, LIMITS) == before
    assert (await gate.admit([concurrency(2)], NOON + 5)).state.used == 1


async def test_an_overdraft_of_a_window_leaves_it_when_it_is_as_old_as_the_window(gate: Gate):
    limits = [log(5, 1_000)]
    await gate.admit(limits, NOON, admission="one")
    await gate.settle(limits, NOON + 400, "one", 1, 4)
    assert (await gate.admit(limits, NOON + 400, cost=6)).state.used == 4
    assert (await gate.admit(limits, NOON + 1_000, cost=6)).state.used == 3
    assert (await gate.admit(limits, NOON + 1_399, cost=6)).state.used == 3
    assert (await gate.admit(limits, NOON + 1_400, cost=6)).state.used == 0


async def test_an_overdraft_fills_a_window_and_takes_no_more_memory_than_that(gate: Gate):
    limits = [log(5, 1_000)]
    await gate.admit(limits, NOON, admission="one")
    await gate.settle(limits, NOON, "one", 1, 1_000_000_000)
    refused = await gate.admit(limits, NOON)
    assert (refused.state.used, refused.state.remaining, refused.state.retry) == (6, 0, 1_000)


async def test_an_overdraft_of_a_bucket_is_a_debt_that_refills_first(gate: Gate):
    limits = [bucket(1, 1_000, burst=2)]
    await gate.admit(limits, NOON, admission="one")
    await gate.settle(limits, NOON, "one", 1, 5)
    refused = await gate.admit(limits, NOON)
    assert (refused.state.used, refused.state.remaining, refused.state.retry, refused.state.reset) == (5, 0, 4_000, 5_000)
    assert not (await gate.admit(limits, NOON + 3_999)).admitted
    assert (await gate.admit(limits, NOON + 4_000)).admitted
    assert await gate.stores.connection.client.pttl(limits[0].key) > 2_000


@pytest.mark.parametrize(("burst", "window"), [(1, 100), (1_000_000, 31 * 86_400_000)])
async def test_the_largest_debt_of_a_bucket_still_counts_exactly(gate: Gate, burst: int, window: int):
    limits = [bucket(1_000_000, window, burst=burst)]
    await gate.admit(limits, NOON, admission="one")
    await gate.settle(limits, NOON, "one", 1, 10**12)
    level = int((await gate.stores.connection.client.get(limits[0].key)).split()[0])
    assert burst * window - 2**53 < level < 0, "above that a script's numbers are not exact"
    retry = (await gate.admit(limits, NOON)).state.retry
    assert retry > window
    assert not (await gate.admit(limits, NOON + retry - 1)).admitted
    assert (await gate.admit(limits, NOON + retry)).admitted


async def test_what_is_overdrawn_after_midnight_is_spent_on_the_new_day(gate: Gate):
    late = ms(2026, 3, 10, 23, 59, 59)
    await gate.admit([budget(9)], late, admission="one")
    await gate.settle([budget(9)], late + 1_000, "one", 1, 4)
    assert (await gate.admit([budget(9)], late + 1_000)).state.used == 4


async def test_an_overdraft_keeps_the_limiters_alive(gate: Gate):
    limits = [log(5), bucket(1, 60_000, burst=5), budget(5)]
    await gate.admit(limits, NOON, admission="one")
    for limit in limits:
        await gate.stores.connection.client.delete(limit.key)
    await gate.settle(limits, NOON, "one", 1, 3)
    for limit in limits:
        assert await gate.stores.connection.client.pttl(limit.key) > 60_000


async def test_an_overdraft_does_not_lie_ahead_of_the_tenants_clock(gate: Gate):
    """A step back would otherwise be held at an earlier moment than that of the overdraft."""
    limits = [log(5, 10_000)]
    await gate.admit(limits, NOON, admission="one")
    await gate.settle(limits, NOON + 3_000, "one", 1, 2)
    assert (await gate.admit(limits, NOON + 1_000)).now == NOON + 3_000
