"""Calendar periods in time zones: the word that tells the scripts of one, and when it ends.

The scripts know no zones (lua/lib/calendar.lua), so the word carries the clock of the zone as far as it matters around now.
"""

from __future__ import annotations

import time
import zoneinfo
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Period = Literal["day", "week", "month"]

PLAIN = "UTC"
"""The zone of periods that need no more than their name."""

DAY_S = 86_400

TOLD_DAYS = 70
"""So far before and after today the word tells changes of the clock: over a month more than the longest period, for replicas
whose clocks are wrong and for requests that last."""

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_OF_A_MACHINE = frozenset({"localtime", "Factory"})


@lru_cache(maxsize=1)
def time_zones() -> frozenset[str]:
    """The names of the IANA time zones; not those that mean something else on each machine."""
    return frozenset(zoneinfo.available_timezones()) - _OF_A_MACHINE


def period_word_now(period: Period, time_zone: str) -> str:
    """The period as the scripts take it. Its end and beginning do not depend on the moment at which it is made."""
    return period_word(period, time_zone, int(time.time()) // DAY_S)


@lru_cache(maxsize=4_096)
def period_word(period: Period, time_zone: str, day: int) -> str:
    """The word as it is made on a day, in days since 1970, see lua/lib/calendar.lua."""
    if time_zone == PLAIN:
        return period
    clock = _clock_around(time_zone, day)
    told = [f"{1_000 * second}|{offset}" for second, offset in clock[1:]]
    return "|".join((period, str(clock[0][1]), *told))


def period_start(period: Period, today: date) -> date:
    """The first day of the period around a day."""
    match period:
        case "day":
            return today
        case "week":
            return today - timedelta(days=today.weekday())
        case "month":
            return today.replace(day=1)


def period_end_ms(period: Period, time_zone: str, now_ms: int) -> int:
    """When the next period begins, in milliseconds since 1970, as lua/lib/calendar.lua has it."""
    now = now_ms // 1_000
    end = _next_start(period, datetime.fromtimestamp(now, zoneinfo.ZoneInfo(time_zone)).date())
    if _beginning(end, time_zone) <= now:
        # the clock was set back over midnight and shows the day before again
        end = _next_start(period, end)
    return _beginning(end, time_zone) * 1_000


def _next_start(period: Period, today: date) -> date:
    beyond = {"day": 1, "week": 7, "month": 32}[period]
    return period_start(period, period_start(period, today) + timedelta(days=beyond))


def _beginning(day: date, time_zone: str) -> int:
    """The second at which the clock of the zone first shows this day or a later one."""
    midnight = (day.toordinal() - _EPOCH_DAY) * DAY_S
    clock = _clock_around(time_zone, midnight // DAY_S)
    changes = [second for second, _ in clock[1:]]
    for (since, offset), until in zip(clock, [*changes, None], strict=True):
        beginning = max(since, midnight - offset)
        if until is None or beginning < until:
            return beginning
    raise AssertionError("the last offset holds for good")


@lru_cache(maxsize=2_048)
def _clock_around(time_zone: str, day: int) -> tuple[tuple[int, int], ...]:
    """How far the clock of a zone is ahead of UTC around a day: in seconds, each with the second since which it is."""
    zone = zoneinfo.ZoneInfo(time_zone)
    seconds = range((day - TOLD_DAYS) * DAY_S, (day + TOLD_DAYS + 1) * DAY_S, DAY_S)
    first = seconds[0]
    return ((first, _offset(zone, first)), *_changes(zone, seconds))


def _changes(zone: zoneinfo.ZoneInfo, seconds: range) -> Iterator[tuple[int, int]]:
    """Changes to the second, found between days whose offsets differ."""
    for before, after in pairwise(seconds):
        low, high = before, after
        old, new = _offset(zone, low), _offset(zone, high)
        if old == new:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if _offset(zone, middle) == old:
                low = middle
            else:
                high = middle
        yield high, new


def _offset(zone: zoneinfo.ZoneInfo, second: int) -> int:
    return int((datetime.fromtimestamp(second, zone).utcoffset() or timedelta()).total_seconds())
