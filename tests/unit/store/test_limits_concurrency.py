"""lib/limit_concurrency.lua: at most L requests in flight, and none for longer than its lease."""

from __future__ import annotations

import random

import pytest

from tests.gate import NOON, Gate, concurrency, log
from tests.stores import LEASE_MS, dump

LIMITS = [concurrency(3)]


async def test_so_many_requests_are_in_flight_and_no_more(gate: Gate):
    for number in range(1, 4):
        decision = await gate.admit(LIMITS, NOON)
        assert (decision.admitted, decision.state.used, decision.state.remaining) == (True, number, 3 - number)
    refused = await gate.admit(LIMITS, NOON)
    assert (refused.word, refused.state.used, refused.state.remaining) == ("limited", 3, 0)


async def test_how_long_to_wait_is_unknown_and_a_cost_above_the_limit_never_passes(gate: Gate):
    await gate.drain(LIMITS, NOON)
    assert (await gate.admit(LIMITS, NOON)).state.retry == -2
    assert (await gate.admit(LIMITS, NOON, cost=3)).state.retry == -2
    assert (await gate.admit(LIMITS, NOON, cost=4)).state.retry == -1


async def test_a_request_that_ends_makes_room_for_exactly_one(gate: Gate):
    for name in ("one", "two", "three"):
        await gate.admit(LIMITS, NOON, admission=name)
    assert await gate.cancel(LIMITS, NOON + 1, "two") == "settled"
    assert await gate.drain(LIMITS, NOON + 1) == 1
    assert await gate.cancel(LIMITS, NOON + 1, "two") == "settled_before"
    assert not (await gate.admit(LIMITS, NOON + 1)).admitted


async def test_what_nobody_ends_or_renews_ends_with_its_lease_and_not_a_millisecond_earlier(gate: Gate):
    await gate.admit(LIMITS, NOON)
    assert await gate.drain(LIMITS, NOON + 10) == 2
    assert not (await gate.admit(LIMITS, NOON + LEASE_MS - 1)).admitted
    assert (await gate.admit(LIMITS, NOON + LEASE_MS)).state.used == 3
    assert not (await gate.admit(LIMITS, NOON + LEASE_MS)).admitted


async def test_looking_never_removes_leases_that_have_ended(gate: Gate):
    """A dry run that pruned was a bug of a first draft."""
    await gate.admit([*LIMITS, log(1, 600_000)], NOON)
    before = await dump(gate.stores.connection)
    refused = await gate.admit([*LIMITS, log(1, 600_000)], NOON + 2 * LEASE_MS)
    assert [state.used for state in refused.states] == [0, 1]
    assert await dump(gate.stores.connection) == before


async def test_taking_a_slot_removes_what_has_ended(gate: Gate):
    await gate.drain(LIMITS, NOON)
    await gate.admit(LIMITS, NOON + LEASE_MS, admission="one")
    assert await gate.stores.connection.client.zrange(LIMITS[0].key, 0, -1) == [b"one"]


async def test_several_units_are_several_slots_and_end_together(gate: Gate):
    assert (await gate.admit(LIMITS, NOON, cost=2, admission="dear")).state.used == 2
    assert await gate.drain(LIMITS, NOON) == 1
    await gate.cancel(LIMITS, NOON, "dear", amount=2)
    assert await gate.drain(LIMITS, NOON) == 2


async def test_the_same_admission_again_takes_no_further_slot(gate: Gate):
    await gate.admit(LIMITS, NOON, admission="one")
    again = await gate.admit(LIMITS, NOON + 5, admission="one")
    assert (again.word, again.state.used) == ("replayed", 1)
    assert await gate.drain(LIMITS, NOON + 5) == 2


async def test_a_shadow_limit_refuses_nothing_and_holds_no_more_than_it_would(gate: Gate):
    shadow = [concurrency(1, shadow=True)]
    await gate.admit(shadow, NOON, admission="one")
    over = await gate.admit(shadow, NOON, admission="two")
    assert (over.admitted, over.state.refuses, over.state.used) == (True, 1, 1)
    await gate.cancel(shadow, NOON, "two")
    assert (await gate.admit(shadow, NOON)).state.refuses == 1
    await gate.cancel(shadow, NOON, "one")
    assert (await gate.admit(shadow, NOON)).state.refuses == 0


async def test_a_lowered_limit_waits_for_what_is_in_flight(gate: Gate):
    await gate.drain(LIMITS, NOON)
    refused = await gate.admit([concurrency(1)], NOON)
    assert (refused.word, refused.state.used, refused.state.remaining) == ("limited", 3, 0)


async def test_the_set_outlives_every_lease_in_it(gate: Gate):
    client = gate.stores.connection.client
    for at in range(3):
        await gate.admit(LIMITS, NOON + at)
        assert await client.pttl(LIMITS[0].key) > LEASE_MS + 5_000
        await client.pexpire(LIMITS[0].key, LEASE_MS)  # as if a lease had passed: one more would outlive it
    await gate.cancel(LIMITS, NOON, "id1")
    await client.pexpire(LIMITS[0].key, 10 * LEASE_MS)  # a lease that was longer before the configuration changed
    await gate.admit(LIMITS, NOON + 3)
    assert await client.pttl(LIMITS[0].key) > 9 * LEASE_MS


async def test_the_life_of_the_set_is_lengthened_once_a_lease(gate: Gate):
    client = gate.stores.connection.client
    await gate.admit(LIMITS, NOON)
    await client.pexpire(LIMITS[0].key, LEASE_MS + 10_000)
    ends = await client.pexpiretime(LIMITS[0].key)
    await gate.admit(LIMITS, NOON)
    assert await client.pexpiretime(LIMITS[0].key) == ends


async def test_a_step_back_of_the_clock_ends_no_lease_and_opens_no_slot(gate: Gate):
    await gate.drain(LIMITS, NOON)
    for step in (1, 5_000, 5_001, 86_400_000):
        assert (await gate.admit(LIMITS, NOON - step)).word == "limited"


@pytest.mark.parametrize("seed", range(3))
async def test_never_more_than_the_limit_are_in_flight_whatever_begins_and_ends(gate: Gate, seed: int):
    chance, now, flying = random.Random(seed), NOON, dict[str, int]()
    for number in range(120):
        now += chance.choice([0, 1, 400, 20_000, LEASE_MS - 1])
        flying = {name: end for name, end in flying.items() if end > now}
        if flying and chance.random() < 0.4:
            name = chance.choice(sorted(flying))
            del flying[name]
            await gate.cancel(LIMITS, now, name)
        else:
            decision = await gate.admit(LIMITS, now, admission=f"n{number}")
            assert decision.admitted == (len(flying) < 3)
            if decision.admitted:
                flying[f"n{number}"] = now + LEASE_MS
            assert decision.state.used == len(flying)


async def test_limits_alone_hold_nothing_so_they_know_no_slots(gate: Gate):
    before = await dump(gate.stores.connection)
    with pytest.raises(Exception, match="failed to handle"):
        await gate.rate_limit([log(5), *LIMITS], NOON)
    assert await dump(gate.stores.connection) == before
