"""lib/limit_bucket.lua: any t milliseconds admit at most burst + limit * t / window."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from tests.gate import NOON, Gate, State, bucket
from tests.servers import Server
from tests.stores import dump, opened


class Model:
    """The same bucket in exact fractions of a unit."""

    def __init__(self, limit: int, window: int, burst: int) -> None:
        self.rate, self.burst = Fraction(limit, window), burst
        self.level, self.at = Fraction(burst), 0

    def at_time(self, now: int) -> Fraction:
        if now > self.at:
            self.level, self.at = min(Fraction(self.burst), self.level + (now - self.at) * self.rate), now
        return self.level

    def retry(self, cost: int) -> int:
        missing = cost - self.level
        return 0 if missing <= 0 else -(-missing // self.rate)


@pytest.mark.parametrize(("limit", "window", "burst"), [(3, 1_000, 5), (7, 997, 1), (1, 100, 1), (1_000_000, 60_000, 4)])
async def test_it_decides_as_a_bucket_of_exact_fractions_does(gate: Gate, limit: int, window: int, burst: int):
    chance, model, now = random.Random(5), Model(limit, window, burst), NOON
    for _ in range(80):
        now += chance.choice([0, 0, 0, 1, window // limit, window // limit + 1, window])
        cost = chance.choice([1, 1, 1, 2])
        level = model.at_time(now)
        decision = await gate.admit([bucket(limit, window, burst=burst)], now, cost)
        wanted_retry = -1 if cost > burst else model.retry(cost)
        assert decision.admitted == (wanted_retry == 0)
        assert decision.state.retry == wanted_retry
        if decision.admitted:
            model.level = level = level - cost
        assert decision.state.remaining == level // 1
        assert decision.state.used == burst - level // 1
        assert decision.state.reset == -((level - burst) // model.rate)


async def test_no_interval_admits_more_than_burst_and_refill(gate: Gate):
    limit, window, burst = 5, 1_000, 3
    chance, now, admitted = random.Random(3), NOON, []
    for _ in range(150):
        now += chance.choice([0, 0, 13, 199, 200, 201, 700])
        if (await gate.admit([bucket(limit, window, burst=burst)], now)).admitted:
            admitted.append(now)
    for first, start in enumerate(admitted):
        for count, end in enumerate(admitted[first:], start=1):
            assert count * window <= burst * window + limit * (end - start)


@pytest.mark.parametrize("cost", [1, 2, 3])
async def test_retry_is_tight_refused_a_millisecond_before_and_admitted_then(gate: Gate, cost: int):
    limits, now = [bucket(7, 1_000, burst=3)], NOON
    for _ in range(5):
        await gate.drain(limits, now)
        refused = await gate.admit(limits, now, cost)
        retry = refused.state.retry
        assert refused.word == "limited"
        assert retry > 0
        assert (await gate.admit(limits, now + retry - 1, cost)).word == "limited"
        assert (await gate.admit(limits, now + retry, cost)).admitted
        now += retry


async def test_a_cost_above_the_burst_never_passes_and_says_so(gate: Gate):
    decision = await gate.admit([bucket(100, burst=2)], NOON, cost=3)
    assert (decision.word, decision.state) == ("limited", State(refuses=1, used=0, remaining=2, retry=-1, reset=0))
    assert (await gate.admit([bucket(100, burst=2)], NOON, cost=2)).admitted


async def test_what_remains_is_what_a_follow_up_loop_gets(gate: Gate):
    limits = [bucket(10, 1_000, burst=8)]
    await gate.drain(limits, NOON)
    decision = await gate.admit(limits, NOON + 555)
    assert await gate.drain(limits, NOON + 555) == decision.state.remaining == 4


async def test_reset_is_when_the_bucket_is_full_again(gate: Gate):
    limits = [bucket(4, 1_000, burst=3)]
    await gate.admit(limits, NOON)
    reset = (await gate.admit(limits, NOON)).state.reset
    assert reset == 500
    assert (await gate.admit(limits, NOON + reset - 1, cost=4)).state.used == 1
    assert (await gate.admit(limits, NOON + reset, cost=4)).state.used == 0


async def test_the_largest_bucket_counts_exactly(gate: Gate):
    window = 31 * 86_400_000
    limits = [bucket(1_000_000, window, burst=1_000_000)]
    assert (await gate.admit(limits, NOON, cost=1_000_000)).state.remaining == 0
    refused = await gate.admit(limits, NOON)
    assert refused.state.retry == -(-window // 1_000_000)
    assert refused.state.reset == window
    assert not (await gate.admit(limits, NOON + refused.state.retry - 1)).admitted
    decision = await gate.admit(limits, NOON + refused.state.retry)
    assert (decision.admitted, decision.state.reset) == (True, window - refused.state.retry + -(-window // 1_000_000))


async def test_a_lowered_burst_cuts_what_is_left_and_a_raised_one_adds_nothing_at_once(gate: Gate):
    await gate.admit([bucket(10, burst=8)], NOON)
    assert await gate.drain([bucket(10, burst=3)], NOON) == 3
    assert await gate.drain([bucket(10, burst=50)], NOON) == 0


async def test_a_changed_rate_refills_what_was_spent_at_the_new_rate(gate: Gate):
    await gate.drain([bucket(1, 1_000, burst=4)], NOON)
    assert await gate.drain([bucket(2, 1_000, burst=4)], NOON + 1_000) == 2
    assert await gate.drain([bucket(1, 1_000, burst=4)], NOON + 2_000) == 1


async def test_cancelling_refunds_exactly_what_was_taken(gate: Gate):
    limits = [bucket(7, 1_000, burst=5)]
    await gate.admit(limits, NOON)
    before = (await dump(gate.stores.connection))[limits[0].key.encode()][0]
    await gate.admit(limits, NOON, cost=3, admission="dear")
    assert await gate.cancel(limits, NOON, "dear", amount=3) == "settled"
    assert (await dump(gate.stores.connection))[limits[0].key.encode()][0] == before


async def test_a_refund_keeps_what_was_refilled_meanwhile(gate: Gate):
    limits = [bucket(1, 1_000, burst=5)]
    await gate.drain(limits, NOON)
    await gate.admit(limits, NOON + 2_000, admission="first")
    await gate.cancel(limits, NOON + 3_500, "first")
    assert (await gate.admit(limits, NOON + 3_500, cost=6)).state.remaining == 3
    assert await gate.drain(limits, NOON + 4_000) == 4


async def test_a_refund_never_fills_the_bucket_above_its_size(gate: Gate):
    limits = [bucket(1, 1_000, burst=2)]
    await gate.admit(limits, NOON, admission="first")
    await gate.cancel(limits, NOON + 60_000, "first")
    assert await gate.stores.connection.client.get(limits[0].key) == f"2000 {NOON + 60_000}".encode()
    assert await gate.drain(limits, NOON + 60_000) == 2


async def test_no_interval_gives_out_more_than_burst_and_refill_net_of_what_came_back_in_it(gate: Gate):
    limit, window, burst = 5, 1_000, 3
    limits, chance, now = [bucket(limit, window, burst=burst)], random.Random(8), NOON
    moves: list[tuple[int, int]] = []
    open_admissions: list[str] = []
    for number in range(120):
        now += chance.choice([0, 0, 50, 200, 700])
        if open_admissions and chance.random() < 0.3:
            await gate.cancel(limits, now, open_admissions.pop(chance.randrange(len(open_admissions))))
            moves.append((now, -1))
        elif (await gate.admit(limits, now, admission=f"n{number}")).admitted:
            open_admissions.append(f"n{number}")
            moves.append((now, 1))
    for first, (start, _) in enumerate(moves):
        balance = 0
        for end, change in moves[first:]:
            balance += change
            assert balance * window <= burst * window + limit * (end - start)


async def test_a_small_step_back_of_the_clock_is_held(gate: Gate):
    limits = [bucket(1, 1_000, burst=1)]
    await gate.admit(limits, NOON)
    held = await gate.admit(limits, NOON - 5_000)
    assert (held.word, held.now, held.state.retry) == ("limited", NOON, 1_000)


async def test_a_large_step_back_refills_nothing_until_the_clock_has_caught_up(gate: Gate):
    limits = [bucket(1, 1_000, burst=3)]
    await gate.admit(limits, NOON)
    assert await gate.drain(limits, NOON - 5_001) == 2
    refused = await gate.admit(limits, NOON - 5_001)
    assert refused.state.retry == 6_001
    assert not (await gate.admit(limits, NOON + 999)).admitted
    assert (await gate.admit(limits, NOON + 1_000)).admitted


@pytest.mark.parametrize(("limit", "window", "burst"), [(1, 100, 1), (7, 997, 3), (1, 86_400_000, 2), (100, 60_000, 100)])
async def test_the_bucket_lives_until_it_is_full_and_longer_than_the_held_step(gate: Gate, limit: int, window: int, burst: int):
    limits = [bucket(limit, window, burst=burst)]
    for _ in range(burst):
        decision = await gate.admit(limits, NOON, admission="last")
        assert decision.admitted or decision.word == "replayed"
        life = await gate.stores.connection.client.pttl(limits[0].key)
        assert decision.state.reset + 5_000 < life <= decision.state.reset + 6_000
    await gate.cancel(limits, NOON, "last")
    assert await gate.stores.connection.client.pttl(limits[0].key) > 5_000


async def test_in_real_time_a_drained_bucket_admits_its_rate_and_no_more(real_server: Server):
    """With its life cut to the time of its refill, a bucket that lapses early would be full again."""
    limit, window, burst = 100, 1_000, 5
    model, admitted = Model(limit, window, burst), list[int]()
    async with opened(real_server, replacing={"BUCKET_TTL_MARGIN_MS = 6000": "BUCKET_TTL_MARGIN_MS = 1"}) as stores:
        gate = await Gate(stores).prepare()
        while not admitted or admitted[-1] - admitted[0] < 400:
            word, now, *_ = await gate.ask([bucket(limit, window, burst=burst)], "")
            assert (word == b"admitted") == (model.at_time(now) >= 1)
            if word == b"admitted":
                model.level -= 1
                admitted.append(now)
    for first, start in enumerate(admitted):
        for count, end in enumerate(admitted[first:], start=1):
            assert count * window <= burst * window + limit * (end - start)
