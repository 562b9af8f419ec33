"""lib/limit_budget.lua with holds: what is in flight counts, and what becomes of it is exact however the request ends."""

from __future__ import annotations

import pytest

from tests.gate import DAY, NOON, Gate, Limit, State, budget, ms
from tests.stores import LEASE_MS, dump, keys_without_end

ON_LOST = ["charge", "release"]
MIDNIGHT = ms(2026, 3, 11)
STEP = LEASE_MS // 20


def held_until(now: int) -> int:
    return (now + LEASE_MS) // STEP * STEP


async def state(gate: Gate, limit: Limit, now: int) -> State:
    return (await gate.peek([limit], now)).state


async def used(gate: Gate, limit: Limit, now: int) -> int:
    return (await state(gate, limit, now)).used


@pytest.fixture(params=ON_LOST)
def limit(request: pytest.FixtureRequest) -> Limit:
    return budget(100, on_lost=request.param)


async def test_what_is_held_counts_until_it_is_settled_with_what_it_has_cost(gate: Gate, limit: Limit):
    spent = 0
    for actual, due in ((7, 7), (None, 30), (0, 0), (50, 50)):
        name = f"actual {actual}"
        assert (await gate.admit([limit], NOON, 30, name)).state.used == spent + 30
        assert await gate.settle([limit], NOON + 10, name, 30, actual) == "settled"
        spent += due
        assert await used(gate, limit, NOON + 10) == spent


async def test_spent_and_held_together_never_pass_the_limit(gate: Gate, limit: Limit):
    await gate.admit([limit], NOON, 60, "one")
    await gate.settle([limit], NOON, "one", 60)
    await gate.admit([limit], NOON, 30, "two")
    assert not (await gate.admit([limit], NOON, 11)).admitted
    assert (await gate.admit([limit], NOON, 10)).admitted


async def test_only_requests_in_flight_stand_in_the_way_so_nobody_knows_for_how_long(gate: Gate, limit: Limit):
    await gate.admit([limit], NOON, 80, "one")
    assert (await gate.admit([limit], NOON, 21)).state == State(1, 80, 20, -2, MIDNIGHT - NOON)
    assert (await gate.admit([limit], NOON, 101)).state.retry == -1
    await gate.settle([limit], NOON, "one", 80, 80)
    assert (await gate.admit([limit], NOON, 21)).state.retry == MIDNIGHT - NOON


async def test_more_than_was_held_is_charged_on_top(gate: Gate, limit: Limit):
    await gate.admit([limit], NOON, 10, "one")
    await gate.settle([limit], NOON, "one", 10, 150)
    assert await state(gate, limit, NOON) == State(1, 150, 0, MIDNIGHT - NOON, MIDNIGHT - NOON)


@pytest.mark.parametrize(("on_lost", "left"), [("charge", 40), ("release", 0)])
async def test_what_nobody_settles_is_charged_or_comes_back_when_its_lease_ends(gate: Gate, on_lost: str, left: int):
    limit = budget(100, on_lost=on_lost)
    await gate.admit([limit], NOON, 40, "lost")
    end = held_until(NOON)
    assert NOON + LEASE_MS - STEP < end <= NOON + LEASE_MS
    assert (await gate.admit([limit], end - 1, 61)).state.retry == -2
    assert await used(gate, limit, end) == left
    assert (await gate.admit([limit], end, 61)).admitted == (on_lost == "release")
    assert (await gate.admit([limit], end, 60 if on_lost == "charge" else 39)).admitted


async def test_a_single_unit_lapses_like_many(gate: Gate):
    limit = budget(1, on_lost="release")
    await gate.admit([limit], NOON, 1, "lost")
    assert (await gate.admit([limit], NOON)).state.retry == -2
    assert (await gate.admit([limit], NOON + LEASE_MS)).admitted


async def test_a_settlement_after_the_lease_still_makes_it_what_it_has_cost(gate: Gate, limit: Limit):
    for swept in (False, True):
        name, before = f"swept {swept}", await used(gate, limit, NOON)
        await gate.admit([limit], NOON, 40, name)
        if swept:
            await gate.admit([limit], NOON + LEASE_MS, 1, "sweeps")
            await gate.settle([limit], NOON + LEASE_MS, "sweeps", 1, 0)
        assert await gate.settle([limit], NOON + LEASE_MS + 5, name, 40, 11) == "settled"
        assert await used(gate, limit, NOON + LEASE_MS + 5) == before + 11


async def test_a_renewed_hold_is_held_for_another_lease(gate: Gate, limit: Limit):
    await gate.admit([limit], NOON, 40, "one")
    assert await gate.renew([limit], NOON + 20_000, "one", cost=40) == "renewed"
    end = held_until(NOON + 20_000)
    assert (await gate.admit([limit], end - 1, 61)).state.retry == -2
    await gate.settle([limit], end - 1, "one", 40, 5)
    assert await used(gate, limit, end - 1) == 5


async def test_a_renewal_after_the_lease_holds_again_what_was_charged_or_had_come_back(gate: Gate, limit: Limit):
    for swept in (False, True):
        now = NOON + swept * 10 * LEASE_MS
        await gate.admit([limit], now, 40, f"swept {swept}")
        now += LEASE_MS
        if swept:
            await gate.admit([limit], now, 1, "sweeps")
            await gate.settle([limit], now, "sweeps", 1, 0)
        assert await gate.renew([limit], now, f"swept {swept}", cost=40) == "renewed"
        assert (await state(gate, limit, now)).used == 40 + swept * 3
        assert (await gate.admit([limit], now, 61)).state.retry == -2
        assert await gate.settle([limit], now, f"swept {swept}", 40, 3) == "settled"
        assert await used(gate, limit, now) == 3 + swept * 3


async def test_renewing_twice_in_one_step_changes_nothing(gate: Gate, limit: Limit):
    await gate.admit([limit], NOON, 40, "one")
    for now in (NOON, NOON + 1, NOON + 20_000, NOON + 20_000):
        await gate.renew([limit], now, "one", cost=40)
        assert await used(gate, limit, now) == 40
    await gate.settle([limit], NOON + 20_001, "one", 40, 40)
    assert await used(gate, limit, NOON + 10 * LEASE_MS) == 40


async def test_many_with_one_end_share_it_and_leave_it_one_by_one(gate: Gate, limit: Limit):
    for number in range(5):
        await gate.admit([limit], NOON + number, 10, f"n{number}")
    for number in range(5):
        assert await used(gate, limit, NOON + 5) == 50 - number * 10 + number
        await gate.settle([limit], NOON + 5, f"n{number}", 10, 1)
    assert await gate.stores.connection.client.hkeys(limit.key) == [b"start", b"spent", b"held"]


async def test_a_hold_outlives_the_period_and_is_spent_in_the_one_in_which_it_is_settled(gate: Gate, limit: Limit):
    late = MIDNIGHT - 1_000
    await gate.admit([limit], late, 40, "before")
    await gate.settle([limit], late, "before", 40)
    await gate.admit([limit], late, 40, "across")
    assert await used(gate, limit, late) == 80
    assert await used(gate, limit, MIDNIGHT) == 40
    assert (await gate.admit([limit], MIDNIGHT, 61)).state.retry == -2
    await gate.settle([limit], MIDNIGHT, "across", 40, 25)
    assert await used(gate, limit, MIDNIGHT) == 25


async def test_what_lapsed_in_an_earlier_period_is_charged_there_and_only_more_than_it_now(gate: Gate):
    limit = budget(100, on_lost="charge")
    lapsed = MIDNIGHT - LEASE_MS - 1
    for name, actual, spent in (("less", 10, 0), ("more", 55, 15)):
        await gate.admit([limit], lapsed, 40, name)
        await gate.settle([limit], MIDNIGHT + 5, name, 40, actual)
        assert await used(gate, limit, MIDNIGHT + 5) == spent


async def test_a_hold_that_lapses_in_the_next_period_is_charged_to_that(gate: Gate):
    limit = budget(100, on_lost="charge")
    await gate.admit([limit], MIDNIGHT - 1_000, 40, "lost")
    assert await used(gate, limit, MIDNIGHT + LEASE_MS) == 40
    assert await used(gate, limit, MIDNIGHT + DAY) == 0


async def test_what_a_server_that_took_over_does_not_know_is_settled_with_its_cost(gate: Gate, limit: Limit):
    await gate.admit([limit], NOON, 40, "one")
    await gate.stores.connection.client.delete(limit.key, gate.keyspace.marker("one"))
    assert await gate.settle([limit], NOON, "one", 40, 25, admitted=NOON) == "settled"
    assert await used(gate, limit, NOON) == 25
    assert await gate.settle([limit], NOON, "one", 40, 25, admitted=NOON) == "settled_before"


async def test_after_a_loss_every_request_still_ends_at_what_it_has_cost(gate: Gate, limit: Limit):
    for name in ("one", "two"):
        await gate.admit([limit], NOON, 40, name)
    await gate.stores.connection.client.delete(limit.key)
    assert await gate.renew([limit], NOON, "one", cost=40) == "renewed"
    assert await used(gate, limit, NOON) == 40
    for name in ("two", "one"):
        await gate.settle([limit], NOON, name, 40, 1)
    assert await used(gate, limit, NOON + LEASE_MS) == 2


async def test_a_cancelled_hold_leaves_nothing(gate: Gate, limit: Limit):
    await gate.admit([limit], NOON, 10)
    before = await gate.stores.connection.client.hgetall(limit.key)
    await gate.admit([limit], NOON, 40, "one")
    assert await gate.cancel([limit], NOON, "one", 40) == "settled"
    assert await gate.stores.connection.client.hgetall(limit.key) == before


async def test_a_shadow_that_was_not_charged_is_neither_renewed_nor_settled(gate: Gate):
    shadow = [budget(10, on_lost="charge", shadow=True)]
    await gate.admit(shadow, NOON, 8, "one")
    await gate.admit(shadow, NOON, 8, "over")
    await gate.renew(shadow, NOON, "over", cost=8)
    await gate.settle(shadow, NOON, "over", 8, 8)
    assert await used(gate, shadow[0], NOON) == 8


async def test_limits_that_hold_and_limits_that_do_not_share_their_count(gate: Gate):
    held, plain = budget(100, on_lost="charge"), budget(100)
    assert held.key == plain.key
    await gate.admit([held], NOON, 40, "one")
    await gate.admit([plain], NOON, 30, "two")
    assert (await gate.admit([plain], NOON, 31)).state.retry == -2
    await gate.cancel([plain], NOON, "two", 30)
    assert await used(gate, held, NOON) == 40
    await gate.settle([held], NOON, "one", 40, 7)
    assert await used(gate, plain, NOON) == 7


async def test_the_smallest_lease_has_an_end(gate: Gate):
    names, limit = gate.keyspace, budget(100, on_lost="release")
    keys = [names.tenant, names.rules, names.api_key("d" * 64), names.marker("one"), names.clock, limit.key]
    reply = await gate.stores.runner.call("admit", keys, ["v1", "r1", "5", "one", str(NOON), *limit.arguments(40)])
    assert reply[0] == b"admitted"
    assert await used(gate, limit, NOON + 4) == 40
    assert await used(gate, limit, NOON + 5) == 0


async def test_everything_that_is_held_has_an_end_and_looking_writes_nothing(gate: Gate, limit: Limit):
    kept = await keys_without_end(gate.stores.connection)
    await gate.admit([limit], NOON, 40, "one")
    await gate.renew([limit], NOON + 20_000, "one", cost=40)
    assert await keys_without_end(gate.stores.connection) == kept
    before = await dump(gate.stores.connection)
    for now in (NOON, NOON + 5 * LEASE_MS, MIDNIGHT + 5):
        await gate.peek([limit], now)
        await gate.admit([limit], now, 101)
    assert await dump(gate.stores.connection) == before


async def test_what_is_held_needs_an_admission_that_can_be_settled(gate: Gate):
    with pytest.raises(Exception, match="failed to handle"):
        await gate.rate_limit([budget(5, on_lost="charge")], NOON)
