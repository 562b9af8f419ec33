"""Reading the usage ledger."""

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from gateway.config import UsageSettings
from gateway.store import Stores, UsageRow, UsageStore
from tests.ledger import A_TENANT, ledger, used
from tests.stores import dump
from tests.unit.store.documents import created

FIRST, LAST = date(2026, 1, 1), date(2026, 1, 31)
OTHER = "other-0123456789ab"


async def rows(stores: Stores, first: date = FIRST, last: date = LAST) -> list[UsageRow]:
    return sorted(await stores.usage.rows(A_TENANT, first, last), key=lambda row: (row.day, row.key_id, row.rule_id, row.model))


def test_the_name_of_a_day_is_in_the_slot_of_its_tenant():
    assert ledger(A_TENANT, date(2026, 1, 31)) == "gw:{testcompany}:usage:testcompany-0123456789ab:2026-01-31"


async def test_nothing_was_used(stores: Stores):
    assert await rows(stores) == []
    assert await stores.usage.sum_of(["requests"], A_TENANT, FIRST, LAST) == 0


async def test_a_row_has_all_that_one_key_rule_and_model_used_on_a_day(stores: Stores):
    client = stores.connection.client
    await used(client, "2026-01-02", requests=3, input_tokens=20, output_tokens=7, cached_tokens=5, cost_nano_usd=2**53 + 1)
    await used(client, "2026-01-02", key="key_2", input_tokens=1)
    await used(client, "2026-01-03", rule="rule_2")
    assert await rows(stores) == [
        UsageRow(date(2026, 1, 2), "key_1", "rule_1", "m", 3, 20, 7, 5, 2**53 + 1),
        UsageRow(date(2026, 1, 2), "key_2", "rule_1", "m", 0, 1, 0, 0, 0),
        UsageRow(date(2026, 1, 3), "key_1", "rule_2", "m", 1, 0, 0, 0, 0),
    ]


@pytest.mark.parametrize("model", ["", ":", "ft:gpt-4o:org::id", "a b", "(other)", "模型", "*", "[x"])
async def test_a_model_is_what_the_request_said(stores: Stores, model: str):
    await used(stores.connection.client, "2026-01-02", model=model)
    assert [row.model for row in await rows(stores)] == [model]
    assert await stores.usage.sum_of(["requests"], A_TENANT, FIRST, LAST, model=model) == 1


async def test_what_is_no_text_and_what_is_no_metric_does_no_harm(stores: Stores):
    client = stores.connection.client
    await client.hset(ledger(A_TENANT, FIRST), b"r:key_1:rule_1:\xff\xfe", 2)
    await client.hset(ledger(A_TENANT, FIRST), "z:key_1:rule_1:m", 9)
    await client.hset(ledger(A_TENANT, FIRST), "r:short", 9)
    assert [(row.model, row.requests) for row in await rows(stores)] == [("\ufffd\ufffd", 2)]
    assert await stores.usage.sum_of(["requests"], A_TENANT, FIRST, LAST) == 2


async def test_both_ends_are_inclusive_and_other_tenants_are_not_read(stores: Stores):
    client = stores.connection.client
    for day in ("2025-12-31", "2026-01-01", "2026-01-31", "2026-02-01"):
        await used(client, day)
    await used(client, "2026-01-10", tenant_id=OTHER)
    assert [row.day for row in await rows(stores)] == [FIRST, LAST]
    assert [row.day for row in await rows(stores, LAST, LAST)] == [LAST]
    assert await rows(stores, LAST, FIRST) == []
    assert await stores.usage.sum_of(["requests"], A_TENANT, FIRST, LAST) == 2


async def test_days_come_in_order_with_those_that_have_nothing(stores: Stores):
    first, last = date(2025, 1, 1), date(2026, 2, 4)
    for number in range(400):
        await used(stores.connection.client, (first + timedelta(number)).isoformat(), requests=number + 1)
    seen = [day async for day in stores.usage.days(A_TENANT, first, last + timedelta(1))]
    assert [[row.requests for row in day] for day in seen] == [*([number] for number in range(1, 401)), []]
    assert await stores.usage.sum_of(["requests"], A_TENANT, first, last) == sum(range(1, 401))


async def test_the_last_day_there_is_can_be_asked_for(stores: Stores):
    assert await rows(stores, date.max - timedelta(3), date.max) == []


async def test_requests_are_counted_by_key_rule_and_model(stores: Stores):
    client = stores.connection.client
    for number, (key, rule, model) in enumerate((key, rule, model) for key in "ab" for rule in "cd" for model in ("e", "f:g")):
        await used(client, "2026-01-05", key=key, rule=rule, model=model, requests=1 << number, cost_nano_usd=10**9)
        await used(client, "2026-01-06", key=key, rule=rule, model=model, requests=1 << number)

    async def count(**filters: str) -> int:
        return await stores.usage.sum_of(["requests"], A_TENANT, FIRST, LAST, **filters) // 2

    assert await count() == 0b11111111
    assert await count(key_id="a") == 0b00001111
    assert await count(rule_id="d") == 0b11001100
    assert await count(model="f:g") == 0b10101010
    assert await count(key_id="b", rule_id="c", model="e") == 0b00010000
    assert await count(key_id="nobody") == 0


async def test_a_large_day_is_read_in_pieces_that_are_each_complete_once(stores: Stores):
    client = stores.connection.client
    fields = {f"{metric}:key_{n}:rule_1:m{n}": n + 1 for n in range(4_000) for metric in "riocu"}
    await client.hset(ledger(A_TENANT, FIRST), mapping=fields)
    await used(client, "2026-01-02")
    found = await rows(stores)
    assert len(found) == 4_001
    assert {(row.requests, row.cost_nano_usd) for row in found if row.day == FIRST} == {(n + 1, n + 1) for n in range(4_000)}
    assert await stores.usage.sum_of(["requests"], A_TENANT, FIRST, FIRST) == sum(range(1, 4_001))


async def test_no_command_asks_for_a_large_day_as_a_whole(real_stores: Stores):
    client = real_stores.connection.client
    await client.hset(ledger(A_TENANT, FIRST), mapping={f"r:key_{n}:rule_1:m": 1 for n in range(20_000)})
    await client.config_resetstat()
    assert await real_stores.usage.sum_of(["requests"], A_TENANT, FIRST, LAST) == 20_000
    stats = await client.info("commandstats")
    assert {name for name in stats if name.startswith("cmdstat_h")} == {"cmdstat_hscan"}
    assert stats["cmdstat_hscan"]["calls"] >= 31 + 9


@dataclass
class Repeating:
    """A client whose pieces of a scan have those before in them, as a server's may (https://redis.io/docs/latest/commands/scan/)."""

    client: Any
    seen: dict[bytes, bytes] = field(default_factory=dict)

    def pipeline(self, **options: Any) -> Any:
        pipe = self.client.pipeline(**options)
        execute = pipe.execute

        async def execute_and_repeat() -> Any:
            ((cursor, fields),) = await execute()
            self.seen |= fields
            return [(cursor, dict(self.seen))]

        pipe.execute = execute_and_repeat
        return pipe


async def test_what_a_scan_shows_again_counts_once(stores: Stores):
    client = stores.connection.client
    await client.hset(ledger(A_TENANT, FIRST), mapping={f"r:key_{number}:rule_1:m": 1 for number in range(6_000)})
    usage = UsageStore(replace(stores.connection, client=Repeating(client)))
    assert {row.requests for row in await usage.rows(A_TENANT, FIRST, FIRST)} == {1}
    assert await usage.sum_of(["requests"], A_TENANT, FIRST, FIRST) == 6_000


async def test_a_deleted_tenant_leaves_no_usage(stores: Stores):
    tenant = await created(stores)
    today = datetime.now(UTC).date()
    days = [today + timedelta(1), today, today - timedelta(31), today - timedelta(UsageSettings().retention // 86_400_000)]
    for day in [*days, today - timedelta(3_659)]:
        await used(stores.connection.client, day.isoformat(), tenant_id=tenant.id)
    await used(stores.connection.client, today.isoformat(), tenant_id=OTHER)
    await stores.tenants.delete(tenant.id)
    left = [name for name in await dump(stores.connection) if b":usage:" in name]
    assert left == [ledger(OTHER, today).encode()]
