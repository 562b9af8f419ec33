"""Requests that wait for the count of the same budget share one look at the ledger."""

import asyncio
from datetime import date
from typing import Any, cast

import pytest

from gateway.errors import StoreUnavailable
from gateway.models import LimitKind, LimitSpec
from gateway.proxy.seeding import Seeding
from gateway.store import Admissions, BoundLimit, Keyspace, Unseeded, UsageStore, place_limit
from tests.gate import NOON


class Ledger:
    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.open = asyncio.Event()
        self.away = False

    async def sum_of(self, metrics: Any, tenant_id: str, first: date, last: date, **filters: Any) -> int:
        self.asked.append((tenant_id, first, last, filters))
        await self.open.wait()
        if self.away:
            raise StoreUnavailable
        return 7


class Counts:
    def __init__(self) -> None:
        self.seeded: list[Any] = []

    async def seed(self, budgets: Any, at_ms: int) -> None:
        self.seeded += [(limit.key, units, at_ms) for limit, units in budgets]


def a_budget(period: Any, *levels: str, values: tuple[str, ...] = (), **more: Any) -> BoundLimit:
    spec = LimitSpec(period, LimitKind.BUDGET, 9, levels or ("rule",), period=period)
    return BoundLimit(place_limit(Keyspace("t"), "t-1", "o", spec, 0, levels, **more), f"{period} {values}", values=values)


async def test_one_look_serves_all_that_wait_and_a_cancelled_one_takes_nothing_away():
    ledger, counts = Ledger(), Counts()
    seeding = Seeding(cast("Admissions", counts), cast("UsageStore", ledger))
    day = a_budget("day", rule_id="rule_1")
    waiting = [asyncio.create_task(seeding.seed("t-1", Unseeded(NOON, (day,)))) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    ledger.open.set()
    await asyncio.gather(*waiting[1:])
    today = date(2026, 3, 10)
    assert ledger.asked == [("t-1", today, today, {"key_id": None, "rule_id": "rule_1", "model": None})]
    assert counts.seeded == [(day.key, 7, NOON)]
    await seeding.seed("t-1", Unseeded(NOON, (day,)))
    assert len(ledger.asked) == 2


async def test_week_and_month_are_counted_from_their_first_days_for_the_values_of_the_request():
    ledger, counts = Ledger(), Counts()
    ledger.open.set()
    month = a_budget("month", "api_key", "model", values=("key_1", "m"))
    week = a_budget("week", rule_id="rule_1")
    own = a_budget("day", "rule", values=("rule_3",), key_id="key_2")
    await Seeding(cast("Admissions", counts), cast("UsageStore", ledger)).seed("t-1", Unseeded(NOON, (month, week, own)))
    today = date(2026, 3, 10)
    assert ledger.asked == [
        ("t-1", date(2026, 3, 1), today, {"key_id": "key_1", "rule_id": None, "model": "m"}),
        ("t-1", date(2026, 3, 9), today, {"key_id": None, "rule_id": "rule_1", "model": None}),
        ("t-1", today, today, {"key_id": "key_2", "rule_id": "rule_3", "model": None}),
    ]


async def test_a_store_that_fails_is_asked_again_by_the_next_request():
    ledger, counts = Ledger(), Counts()
    ledger.open.set()
    ledger.away = True
    seeding = Seeding(cast("Admissions", counts), cast("UsageStore", ledger))
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await seeding.seed("t-1", Unseeded(NOON, (a_budget("day"),)))
    assert len(ledger.asked) == 2
