"""Receipts in the store: one for each admission that the ledger counts, numbered, found and removed when they are safe."""

from __future__ import annotations

from collections import Counter
from datetime import date
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.errors import ConfigurationError, InternalError, StoreUnavailable
from gateway.store import Keyspace, Receipt, ReceiptIndex, ReceiptStore, Settlement, Stores, Used, open_stores
from gateway.store.keyspace import receipt_index, tenant_index
from gateway.store.receipts import KEPT_IN_INDEX_MS, NAMES_AT_ONCE, NOTED_AGAIN_MS, RECEIPTS_AT_ONCE
from gateway.store.settlement import MOST_TOGETHER
from tests.gate import DAY, NOON
from tests.servers import valkey_server, wait_until
from tests.stores import LEASE_MS, MAX_RECEIPTS, dump, fake_connection, opened
from tests.unit.store.documents import created
from tests.unit.store.test_settle_batches import flying

TENANT, LATER_TENANT, OTHER = "testcompany-0123456789ab", "testcompany-ba9876543210", "other-0123456789ab"
NAMES = Keyspace("testcompany")
STREAM, EXPORTED = NAMES.receipts(TENANT), NAMES.exported(TENANT)


def used(*amounts: int, tenant_id: str = TENANT, key: str = "key_1", model: str = "gpt") -> Used:
    return Used(tenant_id, key, "rule_1", model, *amounts)


def ended(name: str, what: Used | None, admitted_ms: int | None = NOON, **more: Any) -> Settlement:
    names = NAMES if what is None else Keyspace.of_tenant(what.tenant_id)
    return Settlement(names, name, admitted_ms, more.get("dues", ()), what)


async def settle(stores: Stores, *settlements: Settlement) -> list[Exception | None]:
    return await stores.settlements.settle(settlements)


async def settled(stores: Stores, count: int, tenant_id: str = TENANT, first: int = 0) -> list[Receipt]:
    """So many receipts of a tenant, as they are read."""
    what = used(1, tenant_id=tenant_id)
    assert await settle(stores, *(ended(f"n{first + number}", what) for number in range(count))) == [None] * count
    return await all_of(stores, tenant_id)


async def all_of(stores: Stores, tenant_id: str = TENANT) -> list[Receipt]:
    found: list[Receipt] = []
    while page := await stores.receipts.read(tenant_id, found[-1].number if found else 0, RECEIPTS_AT_ONCE):
        found += page
    return found


async def counted(stores: Stores, day: date = date(2026, 3, 10)) -> Counter[tuple[str, str]]:
    """What the ledger says of a day: requests and money by key and model."""
    rows = await stores.usage.rows(TENANT, day, day)
    return Counter({(row.key_id, row.model): row.requests + row.cost_nano_usd for row in rows})


def billed(receipts: list[Receipt]) -> Counter[tuple[str, str]]:
    total: Counter[tuple[str, str]] = Counter()
    for receipt in receipts:
        total[receipt.key_id, receipt.model] += receipt.requests + receipt.cost_nano_usd
    return total


# What is settled


async def test_a_receipt_tells_what_one_admission_used(receipt_stores: Stores):
    what = used(1, 20, 3, 4, 2**53 + 1, model="ft:é:x")
    assert await settle(receipt_stores, ended("one", what, NOON + 7)) == [None]
    (receipt,) = await all_of(receipt_stores)
    assert receipt.settled_ms > NOON
    assert receipt == Receipt(1, "one", NOON + 7, receipt.settled_ms, "key_1", "rule_1", "ft:é:x", 1, 20, 3, 4, 2**53 + 1)


async def test_each_of_many_that_are_alike_leaves_its_own_and_a_repeated_call_none(receipt_stores: Stores):
    many = [ended(f"n{number}", used(1, 0, 0, 0, 5), NOON + number) for number in range(MOST_TOGETHER + 3)]
    for _ in range(2):
        assert await settle(receipt_stores, *many) == [None] * len(many)
    receipts = await all_of(receipt_stores)
    assert [(receipt.id, receipt.number, receipt.admitted_ms) for receipt in receipts] == [
        (f"n{number}", number + 1, NOON + number) for number in range(len(many))
    ]
    assert billed(receipts) == await counted(receipt_stores)


async def test_one_that_comes_twice_in_a_call_leaves_one(receipt_stores: Stores):
    assert await settle(receipt_stores, ended("one", used()), ended("one", used())) == [None, None]
    assert [receipt.id for receipt in await all_of(receipt_stores)] == ["one"]


async def test_what_has_nothing_to_record_or_was_never_admitted_leaves_none(receipt_stores: Stores):
    limit = flying()
    settlements = [ended("one", None), ended("two", used(), None), ended("three", None, dues=[(limit, None)])]
    assert await settle(receipt_stores, *settlements) == [None] * 3
    assert await receipt_stores.connection.client.exists(STREAM) == 0


async def test_without_the_setting_nothing_is_left_at_all(stores: Stores):
    assert await settle(stores, ended("one", used()), ended("two", used())) == [None, None]
    kept = {NAMES.marker("one"), NAMES.marker("two"), NAMES.clock, NAMES.usage(TENANT, date(2026, 3, 10))}
    assert set(await dump(stores.connection)) == {key.encode() for key in kept}


async def test_of_an_admission_whose_reply_was_lost_the_marker_tells_when_it_was(receipt_stores: Stores):
    await receipt_stores.connection.client.set(NAMES.marker("one"), f"A {NOON + 3} {NOON + 9}")
    assert await settle(receipt_stores, ended("one", used(), None)) == [None]
    assert [receipt.admitted_ms for receipt in await all_of(receipt_stores)] == [NOON + 3]


async def test_a_later_tenant_of_the_subdomain_has_its_own_receipts_and_numbers(receipt_stores: Stores):
    whats = [used(1), used(2, tenant_id=LATER_TENANT), used(3, model="b"), used(4, tenant_id=LATER_TENANT)]
    assert await settle(receipt_stores, *(ended(f"n{n}", what) for n, what in enumerate(whats))) == [None] * 4
    for tenant_id, requests in ((TENANT, [1, 3]), (LATER_TENANT, [2, 4])):
        receipts = await all_of(receipt_stores, tenant_id)
        assert [(receipt.number, receipt.requests) for receipt in receipts] == list(enumerate(requests, 1))


async def test_receipts_and_ledger_agree_whatever_is_damaged(receipt_stores: Stores):
    """A day's ledger, a limit and one sum of a row, which is written after two others."""
    client = receipt_stores.connection.client
    limit = flying()
    await client.set(limit.key, "no sorted set")
    await client.set(NAMES.usage(TENANT, date(2026, 3, 11)), "no hash")
    await client.hset(NAMES.usage(TENANT, date(2026, 3, 10)), "u:key_2:rule_1:gpt", "no number")
    whole, partly = used(1, 0, 0, 0, 2**53 + 1), used(1, 1, 1, 1, 2**53 + 1, key="key_2")
    settlements = [
        ended("good", whole),
        ended("limit", whole, dues=[(limit, None)]),
        ended("row", partly),
        ended("good again", whole),
        ended("row again", partly),
        ended("day", whole, NOON + DAY),
    ]
    outcomes = await settle(receipt_stores, *settlements)
    assert [isinstance(outcome, InternalError) for outcome in outcomes] == [False, True, True, False, True, True]
    receipts = await all_of(receipt_stores)
    assert [receipt.id for receipt in receipts] == ["good", "good again"]
    await client.hdel(NAMES.usage(TENANT, date(2026, 3, 10)), "u:key_2:rule_1:gpt")
    assert +(await counted(receipt_stores)) == billed(receipts)
    assert await settle(receipt_stores, *settlements) == [None] * 6  # each was settled, and stays so
    assert await all_of(receipt_stores) == receipts


@pytest.mark.parametrize("together", [1, 3])
async def test_what_cannot_leave_a_receipt_is_not_in_the_ledger_either(receipt_stores: Stores, together: int):
    await receipt_stores.connection.client.set(STREAM, "no stream")
    outcomes = await settle(receipt_stores, *(ended(f"n{number}", used()) for number in range(together)))
    assert [isinstance(outcome, InternalError) for outcome in outcomes] == [True] * together
    assert await counted(receipt_stores) == {}


async def test_when_nobody_exports_the_oldest_are_dropped_and_the_numbers_tell(receipt_stores: Stores):
    total = MAX_RECEIPTS + 500
    for first in range(0, total, 50):
        await settle(receipt_stores, *(ended(f"n{number}", used()) for number in range(first, first + 50)))
    receipts = await all_of(receipt_stores)
    assert MAX_RECEIPTS <= len(receipts) <= MAX_RECEIPTS + 100
    assert [(receipt.number, receipt.id) for receipt in receipts] == [
        (number + 1, f"n{number}") for number in range(total - len(receipts), total)
    ]


async def test_an_older_server_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch):
    connection = fake_connection()

    async def version(self: Any) -> tuple[int, ...]:
        return (6, 2, 14)

    monkeypatch.setattr(type(connection), "server_version", version)
    with pytest.raises(ConfigurationError, match=r"usage\.receipts"):
        await open_stores(connection, LEASE_MS, max_receipts=1_000)
    await open_stores(connection, LEASE_MS)
    await connection.close()


# How they are found


async def test_a_tenant_is_in_the_index_before_it_can_have_a_receipt(receipt_stores: Stores, monkeypatch: pytest.MonkeyPatch):
    client = receipt_stores.receipts._connection.client  # the one of the stores, not of the test
    zadd = client.zadd

    async def lost(*args: Any, **options: Any) -> Any:
        raise RedisConnectionError("no")

    monkeypatch.setattr(client, "zadd", lost)
    limit = flying()
    outcomes = await settle(receipt_stores, ended("one", used()), ended("held", None, dues=[(limit, None)]))
    assert isinstance(outcomes[0], StoreUnavailable)
    assert outcomes[1] is None, "who leaves no receipt does not wait for the index"
    assert await client.exists(NAMES.marker("one"), STREAM) == 0
    monkeypatch.setattr(client, "zadd", zadd)
    assert await settle(receipt_stores, ended("one", used())) == [None]
    assert await receipt_stores.receipts.tenants() == [TENANT]


async def test_a_tenant_in_use_is_noted_again_and_that_may_fail(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    now = [1e12]
    index, client = ReceiptIndex(stores.connection, lambda: now[0]), stores.connection.client
    assert await index.note([TENANT]) == {}
    for passed, score in ((NOTED_AGAIN_MS - 1, 1e12), (1, 1e12 + NOTED_AGAIN_MS)):
        now[0] += passed
        assert await index.note([TENANT]) == {}
        assert await client.zscore(receipt_index(), TENANT) == score
    now[0] += NOTED_AGAIN_MS

    async def lost(*args: Any, **options: Any) -> Any:
        raise RedisConnectionError("no")

    monkeypatch.setattr(client, "zadd", lost)
    failed = await index.note([TENANT, OTHER])
    assert set(failed) == {OTHER}
    assert isinstance(failed[OTHER], StoreUnavailable)


async def test_all_tenants_are_found_and_how_many_receipts_wait(receipt_stores: Stores):
    await settled(receipt_stores, 3)
    await settled(receipt_stores, 2, OTHER)
    await receipt_stores.connection.client.zadd(receipt_index(), {f"idle{n}-0123456789ab": 1 for n in range(450)})
    tenant_ids = await receipt_stores.receipts.tenants()
    assert len(tenant_ids) == 452
    assert await receipt_stores.receipts.waiting(tenant_ids) == {TENANT: 3, OTHER: 2}


async def test_a_damaged_stream_is_its_tenants_trouble_only(receipt_stores: Stores):
    await settled(receipt_stores, 1, OTHER)
    await receipt_stores.connection.client.set(STREAM, "no stream")
    waiting = await receipt_stores.receipts.waiting([TENANT, OTHER])
    assert isinstance(waiting.pop(TENANT), InternalError)
    assert waiting == {OTHER: 1}
    await receipt_stores.connection.client.delete(STREAM)
    await receipt_stores.connection.client.xadd(STREAM, {"what": "is this"})
    with pytest.raises(InternalError):
        await receipt_stores.receipts.read(TENANT, 0, 9)


async def test_receipts_are_read_in_pieces(receipt_stores: Stores):
    assert len(await settled(receipt_stores, RECEIPTS_AT_ONCE + 1)) == RECEIPTS_AT_ONCE + 1
    read = receipt_stores.receipts.read
    assert [receipt.number for receipt in await read(TENANT, 0, 2)] == [1, 2]
    assert [receipt.number for receipt in await read(TENANT, 198, 9)] == [199, 200, 201]
    assert len(await read(TENANT, 0, 10_000)) == RECEIPTS_AT_ONCE


# How they leave


async def test_what_is_safe_leaves_and_the_numbers_go_on(receipt_stores: Stores):
    receipts, store = await settled(receipt_stores, 5), receipt_stores.receipts
    assert await store.exported(TENANT) == 0
    assert await store.remove({TENANT: receipts[2]}) == {}
    assert [receipt.number for receipt in await all_of(receipt_stores)] == [4, 5]
    assert await store.exported(TENANT) == 3
    assert await store.remove({TENANT: receipts[4]}) == {}
    assert await store.waiting([TENANT]) == {}
    assert [receipt.number for receipt in await settled(receipt_stores, 1, first=5)] == [6]


async def test_a_second_export_that_is_slower_removes_nothing_more_and_takes_nothing_back(receipt_stores: Stores):
    receipts, store = await settled(receipt_stores, 5), receipt_stores.receipts
    await store.remove({TENANT: receipts[3]})
    assert await store.remove({TENANT: receipts[1]}) == {}
    assert await store.exported(TENANT) == 4
    assert [receipt.number for receipt in await all_of(receipt_stores)] == [5]


async def test_what_was_dropped_while_it_was_exported_counts_as_exported(receipt_stores: Stores):
    receipts, store = await settled(receipt_stores, 5), receipt_stores.receipts
    await receipt_stores.connection.client.xtrim(STREAM, minid="0-5", approximate=False)
    assert await store.remove({TENANT: receipts[3]}) == {}
    assert await store.exported(TENANT) == 4
    await receipt_stores.connection.client.xtrim(STREAM, maxlen=0, approximate=False)
    assert await store.remove({TENANT: receipts[4]}) == {}
    assert await store.exported(TENANT) == 5


@pytest.mark.parametrize("count", [4, 5, 7])
async def test_numbers_that_a_failover_gave_away_again_are_not_removed(receipt_stores: Stores, count: int):
    receipts = await settled(receipt_stores, 5)
    await receipt_stores.connection.client.delete(STREAM)
    others = await settled(receipt_stores, count, first=5)
    assert others[0].number == receipts[0].number
    assert await receipt_stores.receipts.remove({TENANT: receipts[4]}) == {}
    assert await all_of(receipt_stores) == others
    assert await receipt_stores.receipts.exported(TENANT) == 0


async def test_of_many_tenants_those_that_fail_are_named(receipt_stores: Stores):
    last = {}
    for number in range(NAMES_AT_ONCE + 105):
        tenant_id = f"t{number}-0123456789ab"
        last[tenant_id] = (await settled(receipt_stores, 1, tenant_id))[0]
    await receipt_stores.connection.client.set(Keyspace("t203").receipts("t203-0123456789ab"), "no stream")
    failed = await receipt_stores.receipts.remove(last)
    assert set(failed) == {"t203-0123456789ab"}
    assert set(await receipt_stores.receipts.waiting(list(last))) == {"t203-0123456789ab"}


# When a tenant is deleted


def in_a_while(stores: Stores, ms: int) -> ReceiptStore:
    """The store as it will be seen then."""
    clock = ReceiptStore(stores.connection, stores.runner)._clock
    return ReceiptStore(stores.connection, stores.runner, lambda: clock() + ms)


async def test_receipts_of_a_deleted_tenant_stay_until_they_are_exported(receipt_stores: Stores):
    tenant = await created(receipt_stores)
    receipts = await settled(receipt_stores, 3, tenant.id)
    await receipt_stores.connection.client.zrem(receipt_index(), tenant.id)  # nothing was heard of it for long
    await receipt_stores.tenants.delete(tenant.id)
    assert await receipt_stores.receipts.tenants() == [tenant.id]
    assert await all_of(receipt_stores, tenant.id) == receipts
    later = in_a_while(receipt_stores, KEPT_IN_INDEX_MS + 10_000)
    await later.retire()
    assert await later.tenants() == [tenant.id], "they were not exported yet"
    assert await all_of(receipt_stores, tenant.id) == receipts
    await later.remove({tenant.id: receipts[-1]})
    much_later = in_a_while(receipt_stores, 2 * (KEPT_IN_INDEX_MS + 10_000))
    await much_later.retire()
    left = {key for key in await dump(receipt_stores.connection) if b":req:" not in key and b":clock" not in key}
    assert left == set()


async def test_a_tenant_without_receipts_is_deleted_without_a_trace(stores: Stores):
    tenant = await created(stores)
    await stores.tenants.delete(tenant.id)
    assert await dump(stores.connection) == {}


async def test_a_tenant_that_lives_keeps_its_numbers_when_it_has_left_the_index(receipt_stores: Stores):
    tenant = await created(receipt_stores)
    receipts = await settled(receipt_stores, 2, tenant.id)
    await receipt_stores.receipts.remove({tenant.id: receipts[-1]})
    await receipt_stores.receipts.retire()
    assert await receipt_stores.receipts.tenants() == [tenant.id], "it was in use not long ago"
    await in_a_while(receipt_stores, KEPT_IN_INDEX_MS + 10_000).retire()
    assert await receipt_stores.receipts.tenants() == []
    assert [receipt.number for receipt in await settled(receipt_stores, 1, tenant.id, first=2)] == [3]


async def test_a_later_tenant_of_the_subdomain_does_not_keep_the_keys_of_the_earlier_one(receipt_stores: Stores):
    tenant = await created(receipt_stores, "testcompany")
    receipts = await settled(receipt_stores, 1)
    await receipt_stores.receipts.remove({TENANT: receipts[-1]})
    await in_a_while(receipt_stores, KEPT_IN_INDEX_MS + 10_000).retire()
    assert await receipt_stores.connection.client.exists(STREAM, EXPORTED) == 0
    assert (await receipt_stores.tenants.get(tenant.id)).tenant == tenant


async def test_of_many_old_entries_those_with_receipts_stay(receipt_stores: Stores):
    client = receipt_stores.connection.client
    await client.zadd(receipt_index(), {f"old{n}-0123456789ab": n for n in range(2 * NAMES_AT_ONCE + 1)})
    kept = ["old0-0123456789ab", "old200-0123456789ab"]
    for tenant_id in kept:
        await settled(receipt_stores, 1, tenant_id)
        await client.zadd(receipt_index(), {tenant_id: 1})
    await client.set(Keyspace("old7").receipts("old7-0123456789ab"), "no stream")
    await receipt_stores.receipts.retire()
    assert await receipt_stores.receipts.tenants() == sorted([*kept, "old7-0123456789ab"])


async def test_an_index_that_was_lost_is_written_anew_from_the_list_of_tenants(receipt_stores: Stores):
    client = receipt_stores.connection.client
    tenant = await created(receipt_stores)
    await settled(receipt_stores, 1, tenant.id)
    await client.zadd(tenant_index(), {f"idle{n}-0123456789ab": 0 for n in range(2 * NAMES_AT_ONCE)})
    assert await receipt_stores.receipts.recover() == 0
    await client.delete(receipt_index())
    assert await receipt_stores.receipts.recover() == 1
    assert await receipt_stores.receipts.tenants() == [tenant.id]


@pytest.mark.real_store
async def test_numbers_survive_a_restart_of_the_server_with_an_empty_stream():
    with valkey_server(persistent=True) as server:
        async with opened(server, max_receipts=MAX_RECEIPTS) as stores:
            receipts = await settled(stores, 3)
            await stores.receipts.remove({TENANT: receipts[-1]})
            server.command("BGREWRITEAOF")
            wait_until(lambda: not server.command("INFO", "persistence")["aof_rewrite_in_progress"], "the file")
        server.kill()
        server.start()
        async with opened(server, max_receipts=MAX_RECEIPTS) as stores:
            assert [receipt.number for receipt in await settled(stores, 1, first=9)] == [4]


def test_a_receipt_has_what_the_ledger_counts():
    assert [field for field in Used._fields if field not in ("tenant_id", "key_id", "rule_id", "model")] == list(
        Receipt._fields[-5:]
    )
