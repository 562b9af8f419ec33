"""lib/limit_ring.lua: the charges of the trailing window never exceed L, counted in sixtieths of the window."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.gate import NOON, Gate, State, ring
from tests.servers import Server
from tests.stores import age, dump, opened

WINDOW = 60_000
PART = 1_000


async def used(gate: Gate, limit: int, now: int) -> int:
    """What counts now; asks for more than there can be, so nothing is charged."""
    return (await gate.admit([ring(limit)], now, cost=limit + 1)).state.used


async def fields(gate: Gate, limit: int = 5, window: int = WINDOW) -> dict[str, int]:
    stored = await gate.stores.connection.client.hgetall(ring(limit, window).key)
    return {name.decode(): int(value) for name, value in stored.items()}


@pytest.mark.parametrize("window", [100, 997, 60_000])
async def test_no_trailing_window_has_more_than_the_limit_and_none_waits_a_part_longer_than_needed(gate: Gate, window: int):
    limit, part, chance = 50, -(-window // 60), random.Random(window)
    now, admitted = NOON, list[tuple[int, int]]()
    for _ in range(150):
        now += chance.choice([0, 0, 1, part - 1, part, part + 1, window // 7, window - 1, window])
        cost = chance.choice([1, 5, 20])
        decision = await gate.admit([ring(limit, window)], now, cost)
        in_window = sum(units for at, units in admitted if at > now - window)
        in_more = sum(units for at, units in admitted if at > now - window - part)
        if decision.admitted:
            admitted.append((now, cost))
            assert in_window + cost <= limit
        else:
            assert in_more + cost > limit
        assert in_window <= decision.state.used - cost * decision.admitted <= in_more


@pytest.mark.parametrize("cost", [1, 7, 20])
async def test_retry_is_tight_refused_a_millisecond_before_and_admitted_then(gate: Gate, cost: int):
    limits, chance, now = [ring(20)], random.Random(cost), NOON
    for _ in range(12):
        while (decision := await gate.admit(limits, now, cost)).admitted:
            now += chance.choice([0, 1, 999, 1_000, 9_000])
        retry = decision.state.retry
        assert retry > 0
        assert (await gate.admit(limits, now + retry - 1, cost)).word == "limited"
        assert (await gate.admit(limits, now + retry, cost)).admitted
        now += retry


async def test_a_cost_above_the_limit_never_passes_and_says_so(gate: Gate):
    decision = await gate.admit([ring(5)], NOON, cost=6)
    assert (decision.word, decision.state) == ("limited", State(refuses=1, used=0, remaining=5, retry=-1, reset=0))
    assert (await gate.admit([ring(5)], NOON, cost=5)).admitted


async def test_reset_is_when_everything_has_left(gate: Gate):
    await gate.admit([ring(5)], NOON)
    reset = (await gate.admit([ring(5)], NOON + 400)).state.reset
    assert reset == PART - 1 + WINDOW - 400
    assert await used(gate, 5, NOON + 400 + reset - 1) == 2
    assert await used(gate, 5, NOON + 400 + reset) == 0


async def test_a_unit_counts_until_its_whole_part_has_left_the_window(gate: Gate):
    for at in (0, PART - 1):
        await gate.admit([ring(5)], NOON + at)
    assert await used(gate, 5, NOON + WINDOW + PART - 2) == 2
    assert await used(gate, 5, NOON + WINDOW + PART - 1) == 0


async def test_what_remains_is_what_a_follow_up_loop_gets(gate: Gate):
    for at in (0, 5_000, 20_000, 61_500):
        decision = await gate.admit([ring(9)], NOON + at, 2)
    assert await gate.drain([ring(9)], NOON + 61_500) == decision.state.remaining == 3


async def test_the_largest_amounts_are_counted_exactly(gate: Gate):
    most, window = 10**12, 31 * 86_400_000
    limits = [ring(most, window)]
    assert (await gate.admit(limits, NOON, cost=most - 1)).state.remaining == 1
    assert (await gate.admit(limits, NOON)).state.used == most
    refused = await gate.admit(limits, NOON)
    assert (await gate.admit(limits, NOON + refused.state.retry - 1)).word == "limited"
    assert (await gate.admit(limits, NOON + refused.state.retry)).admitted


@pytest.mark.parametrize("window", [100, 997, 60_000])
async def test_there_are_never_more_than_61_parts_and_none_that_has_left(gate: Gate, window: int):
    part = -(-window // 60)
    for step in range(150):
        await gate.admit([ring(10_000, window)], NOON + step * part)
        stored = await fields(gate, 10_000, window)
        assert len(stored) <= 61 + 3
        parts = {int(name): units for name, units in stored.items() if name.isdigit()}
        assert sum(parts.values()) == stored["total"]
        assert (min(parts), max(parts)) == (stored["oldest"], stored["newest"])


async def test_after_a_long_pause_nothing_old_is_left(gate: Gate):
    for step in range(20):
        await gate.admit([ring(50)], NOON + step * PART)
    await gate.admit([ring(50)], NOON + 10 * WINDOW)
    number = (NOON + 10 * WINDOW) // PART
    assert await fields(gate, 50) == {str(number): 1, "total": 1, "oldest": number, "newest": number}


async def test_looking_removes_nothing(gate: Gate):
    for step in range(5):
        await gate.admit([ring(5)], NOON + step * PART)
    before = await dump(gate.stores.connection)
    for at in (5 * PART, WINDOW + 3 * PART, 9 * WINDOW):
        assert (await gate.admit([ring(5)], NOON + at, cost=6)).word == "limited"
    assert await dump(gate.stores.connection) == before


# Settlement


async def test_what_was_too_much_comes_back_where_it_was_charged(gate: Gate):
    await gate.admit([ring(50)], NOON, 10)
    await gate.admit([ring(50)], NOON + 5 * PART, 10, "one")
    assert await gate.settle([ring(50)], NOON + 30 * PART, "one", 10, 3) == "settled"
    assert await used(gate, 50, NOON + 30 * PART) == 13
    # the first has left, what remains of the other has not
    assert await used(gate, 50, NOON + WINDOW + PART) == 3
    assert await used(gate, 50, NOON + WINDOW + 6 * PART) == 0


async def test_what_was_overdrawn_counts_where_it_was_charged(gate: Gate):
    await gate.admit([ring(50)], NOON, 1, "one")
    await gate.settle([ring(50)], NOON + 30 * PART, "one", 1, 80)
    assert await used(gate, 50, NOON + 30 * PART) == 80
    refused = await gate.admit([ring(50)], NOON + 30 * PART)
    assert (refused.state.remaining, refused.state.retry) == (0, PART - 1 + WINDOW - 30 * PART)
    assert (await gate.admit([ring(50)], NOON + 30 * PART + refused.state.retry)).admitted


async def test_an_overdraft_of_an_admission_that_has_left_counts_from_now(gate: Gate):
    await gate.admit([ring(50)], NOON, 1, "one")
    late = NOON + WINDOW + 5 * PART
    await gate.settle([ring(50)], late, "one", 1, 8)
    assert await used(gate, 50, late + WINDOW) == 7
    assert await used(gate, 50, late + WINDOW + PART) == 0


@pytest.mark.parametrize(("late", "counted"), [(-1, 0), (0, 1)])
async def test_what_is_owed_counts_where_it_was_charged_until_the_very_millisecond_in_which_that_leaves(
    gate: Gate, late: int, counted: int
):
    leaves = NOON + PART - 1 + WINDOW
    await gate.admit([ring(50)], NOON, 1, "one")
    await gate.settle([ring(50)], leaves + late, "one", 1, 2)
    assert await used(gate, 50, leaves) == counted


async def test_no_more_comes_back_than_is_there(gate: Gate):
    for name in ("one", "two"):
        await gate.admit([ring(50)], NOON, 10, name)
    await gate.stores.connection.client.delete(ring(50).key)
    await gate.admit([ring(50)], NOON, 5)
    await gate.settle([ring(50)], NOON, "one", 10, 0)
    await gate.settle([ring(50)], NOON, "two", 10, 0)
    assert await used(gate, 50, NOON) == 0
    assert await gate.drain([ring(50)], NOON) == 50


async def test_what_has_left_gives_nothing_back_to_others(gate: Gate):
    await gate.admit([ring(50)], NOON, 10, "one")
    await gate.admit([ring(50)], NOON + WINDOW + PART, 10)
    await gate.settle([ring(50)], NOON + WINDOW + PART, "one", 10, 0)
    assert await used(gate, 50, NOON + WINDOW + PART) == 10


async def test_a_settlement_finds_its_charge_after_the_clock_was_set_back(gate: Gate):
    """Charged in the newest part, which lies ahead: correcting the part of the admission's own time hit another one."""
    limits = [ring(50, name="a-b.(c)")]
    await gate.admit(limits, NOON, 10, "first")
    await gate.admit(limits, NOON + 20 * PART, 10)
    await gate.admit(limits, NOON, 10, "back")
    await gate.settle(limits, NOON, "back", 10, 0)
    parts = await gate.stores.connection.client.hmget(limits[0].key, str(NOON // PART), str(NOON // PART + 20))
    assert parts == [b"10", b"10"]
    await gate.settle(limits, NOON, "first", 10, 0)
    assert (await gate.admit(limits, NOON, cost=51)).state.used == 10


async def test_an_overdraft_never_lies_ahead_of_the_tenants_clock(gate: Gate):
    """The newest part must not be later than any time that the tenant has seen, or a held clock would charge behind it."""
    limits = [ring(50)]
    await gate.admit(limits, NOON, 1, "one")
    late = NOON + 2 * WINDOW
    await gate.settle(limits, late, "one", 1, 9)
    assert int(await gate.stores.connection.client.get(gate.keyspace.clock)) == late
    decision = await gate.admit(limits, late - 4_000)
    assert (decision.now, decision.state.used) == (late, 9)


@pytest.mark.parametrize("steps", [(0, 6_000, -6_001, 100, -5_500, 7_000), (3, -5_002, -5_003, 10_000, -9_000)])
async def test_no_window_of_the_order_of_requests_is_exceeded_while_the_clock_jumps_back(gate: Gate, steps: tuple[int, ...]):
    now, total = NOON, 0
    for step in steps:
        now += step
        total += await gate.drain([ring(4)], now)
    assert total == 4


@pytest.mark.parametrize("window", [100, 60_000, 31 * 86_400_000])
async def test_the_hash_outlives_every_sub_window_in_it_by_the_held_step(gate: Gate, window: int):
    connection, limits, part = gate.stores.connection, [ring(100, window)], -(-window // 60)
    now = NOON - NOON % part
    steps = (0, 1, part // 3, part // 3, part // 3, part - 1, 1, part, 7 * part, window // 2, 2 * window)
    for number, step in enumerate(steps):
        await age(connection, limits[0].key, step)
        now += step
        decision = await gate.admit(limits, now, admission=f"n{number}")
        assert await connection.client.pttl(limits[0].key) > decision.state.reset + 5_000
    await age(connection, limits[0].key, window // 2)
    await gate.settle(limits, now + 3 * window, "n0", 1, 9)
    assert await connection.client.pttl(limits[0].key) > window + 5_000
    for _ in range(5):  # the clock is behind while time passes
        await age(connection, limits[0].key, 2_000)
        decision = await gate.admit(limits, now + 3 * window - 6_000)
    assert await connection.client.pttl(limits[0].key) > window + 5_000


async def test_under_steady_traffic_in_real_time_no_window_exceeds_the_limit(real_server: Server):
    """A hash whose life is not refreshed would expire under steady traffic; virtual time never sees that."""
    limit, window, admitted = 20, 240, list[int]()
    async with opened(real_server, replacing={"RING_TTL_MARGIN_MS = 6000": "RING_TTL_MARGIN_MS = 50"}) as stores:
        gate = await Gate(stores).prepare()
        end = time.monotonic() + 1.2
        while time.monotonic() < end or len(admitted) < 4 * limit:
            word, now, *_ = await gate.ask([ring(limit, window)], "")
            if word == b"admitted":
                admitted.append(now)
            await asyncio.sleep(0.001)
    for index in range(limit, len(admitted)):
        assert admitted[index] - admitted[index - limit] >= window
