"""lib/limit_log.lua: fewer than L in (now - W, now], exactly."""

from __future__ import annotations

import asyncio
import bisect
import random
import time

import pytest

from tests.gate import NOON, Gate, State, log
from tests.servers import Server
from tests.stores import age, dump, opened


async def test_a_request_is_admitted_iff_fewer_than_the_limit_were_in_the_window_before_it(gate: Gate):
    limit, window = 7, 1_000
    chance = random.Random(11)
    now = NOON
    admitted: list[int] = []
    outcomes = set()
    for _ in range(200):
        now += chance.choice([0, 0, 1, 1, 7, 93, 150, 151, window - 1, window, window + 1, 5 * window])
        live = len(admitted) - bisect.bisect_right(admitted, now - window)
        decision = await gate.admit([log(limit, window)], now)
        assert decision.admitted == (live < limit), (now, admitted[-10:])
        assert decision.state.used == live + decision.admitted
        assert decision.state.remaining == limit - decision.state.used
        outcomes.add((decision.admitted, live))
        if decision.admitted:
            admitted.append(now)
    assert {(False, 7), (True, 6), (True, 0)} <= outcomes


async def test_a_unit_leaves_the_window_when_it_is_exactly_as_old_as_the_window_is_long(gate: Gate):
    assert (await gate.admit([log(1, 1_000)], NOON)).admitted
    assert not (await gate.admit([log(1, 1_000)], NOON + 999)).admitted
    assert (await gate.admit([log(1, 1_000)], NOON + 1_000)).admitted


@pytest.mark.parametrize("cost", [1, 2, 3])
async def test_retry_is_tight_refused_a_millisecond_before_and_admitted_then(gate: Gate, cost: int):
    limits, now = [log(4, 1_000)], NOON + 400
    for at in (0, 100, 100, 350):
        assert (await gate.admit(limits, NOON + at)).admitted
    for _ in range(6):
        await gate.drain(limits, now)
        refused = await gate.admit(limits, now, cost)
        assert refused.word == "limited"
        retry = refused.state.retry
        assert retry > 0
        assert (await gate.admit(limits, now + retry - 1, cost)).word == "limited"
        assert (await gate.admit(limits, now + retry, cost)).admitted
        now += retry


async def test_a_cost_above_the_limit_never_passes_and_says_so(gate: Gate):
    decision = await gate.admit([log(2)], NOON, cost=3)
    assert (decision.word, decision.state) == ("limited", State(refuses=1, used=0, remaining=2, retry=-1, reset=0))
    assert (await gate.admit([log(2)], NOON, cost=2)).admitted


async def test_reset_is_when_the_newest_unit_has_left(gate: Gate):
    await gate.admit([log(3, 1_000)], NOON)
    decision = await gate.admit([log(3, 1_000)], NOON + 400)
    assert decision.state.reset == 1_000
    assert (await gate.admit([log(3, 1_000)], NOON + 1_399, cost=3)).state.reset == 1
    assert (await gate.admit([log(3, 1_000)], NOON + 1_400, cost=3)).admitted


async def test_what_remains_is_what_a_follow_up_loop_gets(gate: Gate):
    limits = [log(9, 1_000)]
    for at in (0, 0, 200, 900, 1_000):
        decision = await gate.admit(limits, NOON + at)
    assert await gate.drain(limits, NOON + 1_000) == decision.state.remaining == 9 - 3


async def test_entries_that_have_left_are_found_wherever_the_edge_lies(gate: Gate):
    count = 70
    limits = [log(count, 1_000)]
    for position in range(count):
        assert (await gate.admit(limits, NOON + position)).admitted
    # a refused request leaves the list as it is, so each edge meets all the entries
    for edge in range(count):
        decision = await gate.admit(limits, NOON + edge + 999, cost=count + 1)
        assert decision.state.used == count - edge
        assert decision.state.remaining == edge


async def test_a_lowered_limit_counts_what_was_admitted_before(gate: Gate):
    for at in range(5):
        await gate.admit([log(5, 1_000)], NOON + at)
    refused = await gate.admit([log(2, 1_000)], NOON + 10)
    assert (refused.word, refused.state.used, refused.state.remaining) == ("limited", 5, 0)
    # all but one of the five have to leave
    assert refused.state.retry == 1_000 + 3 - 10
    assert not (await gate.admit([log(2, 1_000)], NOON + 1_002)).admitted
    assert (await gate.admit([log(2, 1_000)], NOON + 1_003)).admitted


async def test_a_raised_limit_keeps_the_count(gate: Gate):
    for at in range(3):
        await gate.admit([log(3, 1_000)], NOON + at)
    assert await gate.drain([log(5, 1_000)], NOON + 3) == 2


async def test_expired_entries_are_removed_when_a_request_is_counted(gate: Gate):
    limits = [log(50, 1_000)]
    for at in range(20):
        await gate.admit(limits, NOON + at)
    await gate.admit(limits, NOON + 1_010)
    key = limits[0].key
    assert await gate.stores.connection.client.llen(key) == 20 - 11 + 1
    await gate.admit(limits, NOON + 9_000)
    assert await gate.stores.connection.client.llen(key) == 1


async def test_a_cancelled_unit_is_free_again_and_no_other_is(gate: Gate):
    limits = [log(3, 1_000)]
    for number, at in enumerate((0, 0, 5)):
        assert (await gate.admit(limits, NOON + at, admission=f"r{number}")).admitted
    assert await gate.cancel(limits, NOON + 6, "r1") == "settled"
    assert await gate.stores.connection.client.lrange(limits[0].key, 0, -1) == [str(NOON + 5).encode(), str(NOON).encode()]
    assert await gate.drain(limits, NOON + 6) == 1


async def test_a_cancelled_admission_of_several_units_gives_back_all_of_them(gate: Gate):
    await gate.admit([log(5)], NOON)
    await gate.admit([log(5)], NOON, cost=3, admission="dear")
    await gate.cancel([log(5)], NOON, "dear", amount=3)
    assert await gate.drain([log(5)], NOON) == 4


async def test_giving_back_nothing_takes_nothing_out_of_the_list(gate: Gate):
    """LREM with a count of 0 would remove every unit of that millisecond."""
    for admission in ("r1", "r2"):
        await gate.admit([log(2)], NOON, admission=admission)
    before = (await dump(gate.stores.connection))[log(2).key.encode()]
    assert await gate.cancel([log(2)], NOON, "r1", amount=0) == "settled"
    assert (await dump(gate.stores.connection))[log(2).key.encode()] == before


async def test_cancelling_what_has_left_the_window_changes_nothing(gate: Gate):
    limits = [log(2, 1_000)]
    await gate.admit(limits, NOON, admission="old")
    await gate.admit(limits, NOON + 2_000)
    await gate.cancel(limits, NOON + 2_001, "old")
    assert await gate.drain(limits, NOON + 2_001) == 1


async def test_a_small_step_back_of_the_clock_is_held(gate: Gate):
    limits = [log(2, 1_000)]
    await gate.admit(limits, NOON)
    await gate.admit(limits, NOON + 900)
    held = await gate.admit(limits, NOON + 900 - 5_000)
    assert (held.word, held.now, held.state.retry) == ("limited", NOON + 900, 100)


async def test_a_large_step_back_never_admits_more_than_the_limit(gate: Gate):
    limits = [log(3, 10_000)]
    for at in (0, 9_000):
        assert (await gate.admit(limits, NOON + at)).admitted
    back = NOON + 9_000 - 5_001
    decision = await gate.admit(limits, back)
    assert (decision.admitted, decision.now) == (True, back)
    assert not (await gate.admit(limits, back)).admitted
    stamps = [int(stamp) for stamp in await gate.stores.connection.client.lrange(limits[0].key, 0, -1)]
    assert stamps == [NOON + 9_000, NOON + 9_000, NOON], "sorted, so that halving it finds the edge"
    assert (await gate.admit(limits, NOON + 9_999, cost=4)).state.used == 3
    assert (await gate.admit(limits, NOON + 10_000, cost=4)).state.used == 2
    assert (await gate.admit(limits, NOON + 18_999, cost=4)).state.used == 2
    assert (await gate.admit(limits, NOON + 19_000, cost=4)).state.used == 0


async def test_a_settlement_finds_its_unit_after_the_clock_was_set_back(gate: Gate):
    limits = [log(5, 60_000)]
    for at in (0, 9_000):
        await gate.admit(limits, NOON + at)
    await gate.admit(limits, NOON, admission="back")
    await gate.cancel(limits, NOON, "back")
    stamps = [int(stamp) for stamp in await gate.stores.connection.client.lrange(limits[0].key, 0, -1)]
    assert stamps == [NOON + 9_000, NOON]


async def test_an_overdraft_after_the_clock_was_set_back_keeps_the_list_sorted(gate: Gate):
    limits = [log(5, 60_000)]
    await gate.admit(limits, NOON, admission="one")
    await gate.admit(limits, NOON + 9_000)
    await gate.settle(limits, NOON, "one", 1, 2)
    stamps = [int(stamp) for stamp in await gate.stores.connection.client.lrange(limits[0].key, 0, -1)]
    assert stamps == [NOON + 9_000, NOON + 9_000, NOON]


@pytest.mark.parametrize("steps", [(0, 6_000, -6_001, 100, -5_500, 7_000), (3, -5_002, -5_003, 10_000, -9_000)])
async def test_no_window_of_the_order_of_requests_is_exceeded_while_the_clock_jumps_back(gate: Gate, steps: tuple[int, ...]):
    limits, now = [log(4, 3_600_000)], NOON
    total = 0
    for step in steps:
        now += step
        total += await gate.drain(limits, now)
    assert total == 4


@pytest.mark.parametrize("window", [100, 1_000, 31 * 86_400_000])
@pytest.mark.parametrize("start", [0, 1, 99])
async def test_the_list_outlives_every_unit_in_it_by_the_held_step(gate: Gate, window: int, start: int):
    limits, now = [log(100, window)], NOON - NOON % window + start * window // 100
    client = gate.stores.connection.client
    for step in (0, 1, window // 3, window // 3, window // 3, window - 1, 1, 1, window // 2, window // 2, 5 * window):
        await age(gate.stores.connection, limits[0].key, step)
        now += step
        await gate.admit(limits, now)
        assert await client.pttl(limits[0].key) > window + 5_000
    for back in (5_000, 6_000):  # the clock stands still, or is behind, while time passes
        for _ in range(3):
            await age(gate.stores.connection, limits[0].key, 1_600)
            await gate.admit(limits, now - back)
        assert await client.pttl(limits[0].key) > window


async def test_more_that_is_charged_later_lives_as_long(gate: Gate):
    limits = [log(100, 60_000)]
    await gate.admit(limits, NOON + 1, admission="one")
    await age(gate.stores.connection, limits[0].key, 80_000)
    await gate.settle(limits, NOON + 80_001, "one", 1, 5)
    assert await gate.stores.connection.client.pttl(limits[0].key) > 65_000


@pytest.mark.parametrize(("margin", "seconds"), [(50, 1.2), pytest.param(6_000, 9, marks=pytest.mark.long)])
async def test_under_steady_traffic_in_real_time_no_window_exceeds_the_limit_and_none_is_wasted(
    real_server: Server, margin: int, seconds: float
):
    """A list whose life is not refreshed expires under steady traffic; virtual time never sees that.

    The short version cuts the margin of that life, so that a second shows what otherwise takes seven.
    """
    limit, window = 20, 200
    limits, admitted = [log(limit, window)], list[int]()
    async with opened(real_server, replacing={"LOG_TTL_MARGIN_MS = 6000": f"LOG_TTL_MARGIN_MS = {margin}"}) as stores:
        gate = await Gate(stores).prepare()
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(admitted) < 4 * limit:
            word, now, *_ = await gate.ask(limits, "")
            if word == b"admitted":
                admitted.append(now)
            await asyncio.sleep(0.001)
    for index, start in enumerate(admitted):
        assert bisect.bisect_left(admitted, start + window) - index <= limit
    # refused only while the window was full: the next admission follows when the unit `limit` places before has left
    waits = sorted(admitted[index] - admitted[index - limit] for index in range(limit, len(admitted)))
    assert waits[0] >= window
    assert waits[len(waits) // 2] <= window + 100
