"""Periods of calendars after Python's own calendar and zones, found by looking at what a clock on the wall shows."""

from __future__ import annotations

import calendar
import functools
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

HOUR, QUARTER = 3_600, 900
ABROAD = ["Africa/Cairo", "America/Havana", "Asia/Beirut", "America/New_York", "Africa/Casablanca", "America/Santiago"]
"""Zones whose clocks change, most of them at midnight."""
ODD = ["Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Chatham", "America/St_Johns", "Pacific/Kiritimati"]
"""Zones that are not whole hours away, or far."""


def shown(zone: str, second: float) -> datetime:
    """What a clock on the wall shows."""
    return datetime.fromtimestamp(second, ZoneInfo(zone))


@functools.cache
def beginning_of(zone: str, day: date, step: int = QUARTER) -> int:
    """The first second at which a clock on the wall shows this day or a later one. Looks at every ``step`` of seconds."""
    near = round(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).timestamp()) // QUARTER * QUARTER
    return next(second for second in range(near - 4 * HOUR, near + 26 * HOUR, step) if shown(zone, second).date() >= day)


def first_days(period: str, day: date) -> tuple[date, date]:
    """The first day of the period around a day, and that of the next one."""
    if period == "day":
        return day, day + timedelta(days=1)
    if period == "week":
        year, week, _ = day.isocalendar()
        first = date.fromisocalendar(year, week, 1)
        return first, first + timedelta(days=7)
    first = day.replace(day=1)
    return first, first + timedelta(days=calendar.monthrange(day.year, day.month)[1])


@functools.cache
def period_of(period: str, now: int, zone: str = "UTC", step: int = QUARTER) -> tuple[int, int]:
    """Start and end in milliseconds. A day that the wall has shown is not shown anew where the clock is set back."""
    second = now // 1_000
    before = range(second // step * step - 3 * HOUR, second, step) if zone != "UTC" else ()
    day = max(shown(zone, moment).date() for moment in (second, *before))
    first, following = first_days(period, day)
    return beginning_of(zone, first, step) * 1_000, beginning_of(zone, following, step) * 1_000


@functools.cache
def changes_of(zone: str, first: date, last: date) -> list[int]:
    """The seconds at which the clock changes between these days; of changes within a day, the first. Looks at every minute."""
    start, end = (round(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo("UTC")).timestamp()) for day in (first, last))
    return list(_changes(zone, start, end))


def _changes(zone: str, start: int, end: int) -> Iterator[int]:
    for begin in range(start, end, 24 * HOUR):
        offset = shown(zone, begin).utcoffset()
        if shown(zone, begin + 24 * HOUR).utcoffset() == offset:
            continue
        hour = next(second for second in range(begin, begin + 25 * HOUR, HOUR) if shown(zone, second).utcoffset() != offset)
        yield next(second for second in range(hour - HOUR, hour + 60, 60) if shown(zone, second).utcoffset() != offset)
