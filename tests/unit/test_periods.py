"""The word for a period tells the clock of its zone, whenever it is made, and its end is where Python's calendar has it."""

from __future__ import annotations

import random
from datetime import date, timedelta
from typing import Any

import pytest

from gateway.periods import TOLD_DAYS, period_end_ms, period_start, period_word, period_word_now, time_zones
from tests.gate import DAY, NOON, ms
from tests.periods import ABROAD, ODD, changes_of, period_of, shown

PERIODS: list[Any] = ["day", "week", "month"]
TODAY = NOON // DAY


def clock_of(word: str) -> list[tuple[int, int]]:
    """Since when which offset; the first since ever."""
    first, *numbers = [int(number) for number in word.split("|")[1:]]
    return [(-(1 << 60), first), *zip(numbers[::2], numbers[1::2], strict=True)]


def offset_at(zone: str, now: int) -> int:
    return int((shown(zone, now // 1_000).utcoffset() or timedelta()).total_seconds())


@pytest.mark.parametrize("period", PERIODS)
def test_a_period_in_utc_is_one_word(period: Any):
    assert [period_word(period, "UTC", TODAY + day) for day in (0, 1, 200)] == [period] * 3


@pytest.mark.parametrize(
    ("zone", "day", "word"),
    [
        ("Europe/Berlin", date(2026, 3, 10), f"day|3600|{ms(2026, 3, 29, 1)}|7200"),
        ("Europe/Berlin", date(2026, 7, 10), "day|7200"),
        ("America/Havana", date(2026, 11, 10), f"day|-14400|{ms(2026, 11, 1, 5)}|-18000"),
        ("Africa/Casablanca", date(2026, 3, 1), f"day|3600|{ms(2026, 2, 15, 2)}|0|{ms(2026, 3, 22, 2)}|3600"),
        ("Asia/Kathmandu", date(2026, 3, 10), "day|20700"),
        ("Etc/UTC", date(2026, 3, 10), "day|0"),
    ],
)
def test_the_word_tells_the_changes_before_and_after_today(zone: str, day: date, word: str):
    assert period_word("day", zone, (day - date(1970, 1, 1)).days) == word


def test_every_word_tells_what_the_clock_of_its_zone_shows_to_the_second():
    chance, told = random.Random(5), 0
    for zone in sorted(time_zones() - {"UTC"}):
        day = chance.randrange(ms(2026, 1, 1), ms(2029, 1, 1)) // DAY
        clock = clock_of(period_word("month", zone, day))
        told += len(clock) - 1
        moments = [change + beside for change, _ in clock[1:] for beside in (-1, 0, 999)]
        moments += [chance.randrange((day - TOLD_DAYS) * DAY, (day + TOLD_DAYS) * DAY) for _ in range(20)]
        for now in moments:
            assert next(offset for since, offset in reversed(clock) if since <= now) == offset_at(zone, now), (zone, day, now)
    assert told > 50


def test_every_zone_has_a_word_that_is_short():
    assert max(len(period_word("month", zone, TODAY + day)) for zone in time_zones() for day in (0, 90)) < 80


@pytest.mark.parametrize("zone", [*ABROAD, *ODD, "UTC", "Europe/Berlin"])
@pytest.mark.parametrize("period", PERIODS)
def test_periods_end_where_pythons_calendar_has_it(zone: str, period: Any):
    chance = random.Random(6)
    moments = [chance.randrange(ms(2026, 1, 1), ms(2029, 1, 1)) for _ in range(20)]
    for change in changes_of(zone, date(2026, 1, 1), date(2027, 12, 1)):
        moments += [change * 1_000 - 1, change * 1_000]
    moments += [edge + beside for now in moments[-6:] for edge in period_of(period, now, zone) for beside in (-1, 0, 1)]
    for now in moments:
        assert period_end_ms(period, zone, now) == period_of(period, now, zone)[1], now


def test_a_day_that_the_clock_shows_again_has_not_begun_anew():
    """In 2010 the clocks of St. John's went from 0:00:59 back to 23:01."""
    changed = ms(2010, 11, 7, 2, 31)
    for now in (changed - 1, changed, changed + 3_540_000 - 1, changed + 3_540_000):
        assert period_end_ms("day", "America/St_Johns", now) == ms(2010, 11, 8, 3, 30)


def test_weeks_begin_on_mondays_and_months_on_their_first_days():
    assert [period_start(period, date(2027, 1, 3)) for period in PERIODS] == [
        date(2027, 1, 3),
        date(2026, 12, 28),
        date(2027, 1, 1),
    ]


def test_the_word_is_renewed_as_time_passes(monkeypatch: pytest.MonkeyPatch):
    for day in (date(2026, 3, 10), date(2028, 7, 1), date(2026, 11, 10)):
        days = (day - date(1970, 1, 1)).days
        monkeypatch.setattr("gateway.periods.time.time", lambda at=days * 86_400 + 0.5: at)
        assert period_word_now("week", "America/Havana") == period_word("week", "America/Havana", days)


def test_names_that_mean_something_else_on_each_machine_are_no_zones():
    assert {"UTC", "Europe/Berlin", "Asia/Kolkata"} < time_zones()
    assert not {"localtime", "Factory", "posixrules"} & time_zones()
