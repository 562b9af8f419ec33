"""lib/calendar.lua: days, weeks and months by the clocks of time zones, against what Python says that clocks show."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import pytest

from gateway.periods import period_word, time_zones
from tests.gate import DAY, Decision, Gate, Limit, budget, ms
from tests.periods import ABROAD, HOUR, ODD, changes_of, period_of, shown

PERIODS = ["day", "week", "month"]
FIRST, LAST = date(2026, 1, 1), date(2029, 1, 1)
HOUR_MS = HOUR * 1_000


async def edges(gate: Gate, limits: Sequence[Limit], now: int) -> list[tuple[int, int]]:
    """Start and end of the periods around now, as the script has them for budgets that it has never seen."""
    client = gate.stores.connection.client
    await client.flushdb()
    decision: Decision = await gate.rate_limit(limits, now)
    async with client.pipeline(transaction=False) as pipe:
        for limit in limits:
            pipe.hget(limit.key, "start")
        starts = await pipe.execute()
    return [(int(start), now + state.reset) for start, state in zip(starts, decision.states, strict=True)]


def of(zones: Sequence[str]) -> list[Limit]:
    return [budget(1, period, zone=zone) for zone in zones for period in PERIODS]


def clocks() -> dict[str, list[int]]:
    """One of the zones whose clocks are alike, each with its changes."""
    weeks = range(ms(2026, 1, 1) // 1_000, ms(2029, 1, 1) // 1_000, 7 * 24 * HOUR)
    alike = {tuple(shown(zone, week).utcoffset() for week in weeks): zone for zone in sorted(time_zones())}
    return {zone: changes_of(zone, FIRST, LAST) for zone in sorted({*alike.values(), *ABROAD, *ODD})}


async def test_periods_in_zones_are_those_of_python_at_any_moment(gate: Gate):
    chance = random.Random(8)
    zones = sorted({*ABROAD, *ODD, *chance.sample(sorted(time_zones()), 20)})
    for _ in range(50):
        now = chance.randrange(ms(2026, 1, 1), ms(2029, 1, 1))
        limits = of(zones)
        expected = [period_of(str(limit.extent), now, limit.zone) for limit in limits]
        assert dict(zip(limits, await edges(gate, limits, now), strict=True)) == dict(zip(limits, expected, strict=True)), now


async def test_periods_are_those_of_python_around_every_change_of_every_clock_in_three_years(gate: Gate):
    chance, seen = random.Random(9), 0
    zones_at: dict[int, list[str]] = {}
    for zone, changes in clocks().items():
        for change in changes:
            zones_at.setdefault(change, []).append(zone)
    assert {"Africa/Cairo", "America/Havana", "Asia/Beirut"} <= {zone for zones in zones_at.values() for zone in zones}
    for change, zones in sorted(zones_at.items()):
        limits, moments = of(zones), {change * 1_000}
        for period in PERIODS:
            moments |= {edge for zone in zones for edge in period_of(period, change * 1_000, zone)}
        beside = {moment + step for moment in moments for step in (-1, 0, 1)}
        for now in [change * 1_000 - 1, change * 1_000, *chance.sample(sorted(beside), 4)]:
            expected = [period_of(str(limit.extent), now, limit.zone) for limit in limits]
            assert await edges(gate, limits, now) == expected, (now, zones)
            seen += len(limits)
    assert seen > 2_000


@pytest.mark.parametrize(
    ("zone", "day", "begins", "hours"),
    [
        # midnight does not exist: the clock goes from 23:59:59 to 1:00
        ("Africa/Cairo", (2026, 4, 24), ms(2026, 4, 23, 22), 23),
        ("America/Havana", (2026, 3, 8), ms(2026, 3, 8, 5), 23),
        ("Asia/Beirut", (2026, 3, 29), ms(2026, 3, 28, 22), 23),
        # the clock goes from 23:59:59 back to 23:00 of the same day
        ("Africa/Cairo", (2026, 10, 29), ms(2026, 10, 28, 21), 25),
        ("Asia/Beirut", (2026, 10, 24), ms(2026, 10, 23, 21), 25),
        # midnight comes twice: the clock goes from 0:59:59 back to 0:00
        ("America/Havana", (2026, 11, 1), ms(2026, 11, 1, 4), 25),
        # half an hour, a quarter of an hour, and far away
        ("Australia/Lord_Howe", (2026, 4, 5), ms(2026, 4, 4, 13), 24.5),
        ("Australia/Lord_Howe", (2026, 10, 4), ms(2026, 10, 3, 13, 30), 23.5),
        ("Asia/Kathmandu", (2026, 5, 1), ms(2026, 4, 30, 18, 15), 24),
        ("Pacific/Chatham", (2026, 4, 5), ms(2026, 4, 4, 10, 15), 25),
        ("Pacific/Kiritimati", (2026, 1, 1), ms(2025, 12, 31, 10), 24),
        # history: a day that was skipped, and clocks that went from 0:00:59 back to 23:01 of the day before
        ("Pacific/Apia", (2011, 12, 29), ms(2011, 12, 29, 10), 24),
        ("Pacific/Apia", (2011, 12, 31), ms(2011, 12, 30, 10), 24),
        ("America/St_Johns", (2010, 11, 6), ms(2010, 11, 6, 2, 30), 24),
        ("America/St_Johns", (2010, 11, 7), ms(2010, 11, 7, 2, 30), 25),
    ],
)
async def test_a_day_begins_when_the_clock_first_shows_it(
    gate: Gate, zone: str, day: tuple[int, int, int], begins: int, hours: float
):
    limits, ends = of([zone]), begins + round(hours * HOUR_MS)
    for now in range(begins, ends, HOUR_MS // 2):
        found, *others = await edges(gate, limits, now)
        assert found == (begins, ends)
        assert others == [period_of(period, now, zone, 60) for period in ("week", "month")], now
    assert (await edges(gate, limits, begins - 1))[0][1] == begins
    assert (await edges(gate, limits, ends - 1))[0] == (begins, ends)
    assert (await edges(gate, limits, ends))[0][0] == ends
    assert shown(zone, begins / 1_000).date() == date(*day)


@pytest.mark.parametrize("zone", ABROAD)
@pytest.mark.parametrize("period", PERIODS)
async def test_a_spent_quota_stays_spent_until_its_period_ends_whatever_the_clocks_do(gate: Gate, zone: str, period: str):
    for change in changes_of(zone, date(2026, 8, 1), date(2027, 5, 1)):
        limit = budget(2, period, zone=zone, name=str(change))
        start, end = period_of(period, change * 1_000 - 1, zone)
        assert await gate.drain([limit], start) == 2
        # each moment is asked by a replica whose own clock is another one
        for now in sorted({*range(start, end, max(HOUR_MS, (end - start) // 50)), change * 1_000 - 1, end - 1}):
            assert (await gate.admit([limit], now)).state.retry == end - now
        assert (await gate.admit([limit], end)).admitted


@pytest.mark.parametrize("zone", [*ABROAD, *ODD])
def test_replicas_whose_clocks_differ_tell_a_zone_by_words_that_end_alike(zone: str):
    day = ms(2026, 3, 27) // DAY
    words = {period_word("month", zone, day + wrong) for wrong in range(-30, 31)}
    assert len(words) <= 4, "the word changes with the day"


async def test_what_is_held_is_spent_in_the_period_of_the_zone_in_which_the_request_ends(gate: Gate):
    """The day on which the clocks of Havana show midnight twice."""
    limit = budget(9, "day", "charge", zone="America/Havana")
    start, end = ms(2026, 11, 1, 4), ms(2026, 11, 2, 5)
    moments = [start - 1, start, start + HOUR_MS, start + 2 * HOUR_MS, end - 1, end]
    for number, (now, used) in enumerate(zip(moments, [1, 1, 2, 3, 4, 1], strict=True)):
        await gate.admit([limit], now, 2, f"id{number}")
        await gate.settle([limit], now, f"id{number}", 2, 1)
        seen = (await gate.peek([limit], now)).state
        assert (seen.used, now + seen.reset) == (used, period_of("day", now, limit.zone)[1])


@pytest.mark.parametrize("period", PERIODS)
async def test_a_quota_stays_in_its_period_however_far_the_clock_is_set_back(gate: Gate, period: str):
    limit, winter, summer = budget(3, period, zone="Asia/Beirut"), ms(2026, 12, 31, 23), ms(2026, 7, 1)
    assert await gate.drain([limit], winter) == 3
    assert not (await gate.admit([limit], summer)).admitted
    assert (await gate.peek([limit], winter)).state.used == 3


async def test_another_zone_is_another_count(gate: Gate):
    limit = budget(3, "week", zone="Asia/Beirut")
    now = ms(2026, 5, 5, 5)
    assert await gate.drain([limit], now) == 3
    assert await gate.drain([replace(limit, zone="Africa/Cairo")], now) == 3
    assert await gate.drain([replace(limit, zone="UTC")], now) == 3
