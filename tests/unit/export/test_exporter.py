"""From the store to files: at least once, nobody's trouble is another's, and what was lost is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigurationError, InternalError, StoreUnavailable
from gateway.export import Exporter, ReceiptFiles, Totals, exporter, follow
from gateway.store import Keyspace, Receipt, ReceiptStore, Settlement, Stores, Used
from gateway.store.keyspace import receipt_index
from tests.gate import DAY, NOON
from tests.unit.store.documents import created

TENANT, OTHER = "testcompany-0123456789ab", "other-0123456789ab"


async def settle(stores: Stores, *names: str, tenant_id: str = TENANT) -> None:
    what = Used(tenant_id, "key_1", "rule_1", "gpt-4o:é", 1, 20, 3, 4, 2**53 + 1)
    names_of = Keyspace.of_tenant(tenant_id)
    assert not any(await stores.settlements.settle([Settlement(names_of, name, NOON, (), what) for name in names]))


def documents(folder: Path) -> list[dict[str, Any]]:
    """Every line of every file."""
    paths = sorted(folder.glob("receipts-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_bytes().decode("ascii").splitlines()]


def ids(folder: Path) -> list[str]:
    return [document["id"] for document in documents(folder)]


@contextlib.contextmanager
def an_export(stores: Stores | ReceiptStore, folder: Path) -> Any:
    receipts = stores.receipts if isinstance(stores, Stores) else stores
    with ReceiptFiles(folder, 1 << 30).opened() as files:
        yield Exporter(receipts, files, Totals())


async def export(stores: Stores, folder: Path) -> Totals:
    """Once."""
    with an_export(stores, folder) as once:
        await once.run(asyncio.Event())
        totals: Totals = once._totals
        return totals


async def test_a_line_has_all_of_a_receipt(receipt_stores: Stores, tmp_path: Path):
    await settle(receipt_stores, "one")
    (receipt,) = await receipt_stores.receipts.read(TENANT, 0, 9)
    totals = await export(receipt_stores, tmp_path)
    assert (totals.receipts, totals.lost, totals.tenants) == (1, 0, {TENANT})
    (document,) = documents(tmp_path)
    settled_at = document.pop("settled_at")
    assert document == {
        "id": "one",
        "number": 1,
        "tenant_id": TENANT,
        "subdomain": "testcompany",
        "api_key_id": "key_1",
        "rule_id": "rule_1",
        "model": "gpt-4o:é",
        "admitted_at": "2026-03-10T12:00:00.000Z",
        "requests": 1,
        "input_tokens": 20,
        "output_tokens": 3,
        "cached_tokens": 4,
        "cost_nano_usd": 2**53 + 1,
    }
    assert settled_at.endswith(f".{receipt.settled_ms % 1_000:03d}Z")
    (path,) = tmp_path.glob("*.jsonl")  # noqa: ASYNC240
    assert path.name.startswith(f"receipts-{settled_at[:10]}-")


def test_times_are_exact_and_days_are_those_of_the_settlement(tmp_path: Path):
    late = Receipt(7, "late", NOON, NOON // DAY * DAY + DAY - 1, "k", "r", "", 1, 0, 0, 0, 0)
    document = json.loads(exporter.line_of(TENANT, late))
    assert (document["admitted_at"], document["settled_at"]) == ("2026-03-10T12:00:00.000Z", "2026-03-10T23:59:59.999Z")


async def test_all_tenants_are_exported_once_and_what_is_exported_has_left(receipt_stores: Stores, tmp_path: Path):
    names = [f"n{number}" for number in range(450)]
    for tenant_id in (TENANT, OTHER):
        await settle(receipt_stores, *(f"{tenant_id} {name}" for name in names), tenant_id=tenant_id)
    totals = await export(receipt_stores, tmp_path)
    assert (totals.receipts, totals.tenants) == (900, {TENANT, OTHER})
    assert sorted(ids(tmp_path)) == sorted(f"{tenant_id} {name}" for tenant_id in (TENANT, OTHER) for name in names)
    assert await receipt_stores.receipts.waiting([TENANT, OTHER]) == {}
    assert (await export(receipt_stores, tmp_path)).receipts == 0
    await settle(receipt_stores, "more")
    await export(receipt_stores, tmp_path)
    assert ids(tmp_path)[-1] == "more"


async def test_batches_that_are_smaller_than_what_waits_lose_and_repeat_nothing(
    receipt_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter, "BATCH", 7)
    monkeypatch.setattr("gateway.store.receipts.RECEIPTS_AT_ONCE", 3)
    await settle(receipt_stores, *(f"n{number}" for number in range(50)))
    await settle(receipt_stores, "other", tenant_id=OTHER)
    assert (await export(receipt_stores, tmp_path)).lost == 0
    assert sorted(ids(tmp_path)) == sorted(["other", *(f"n{number}" for number in range(50))])


async def test_nothing_is_removed_that_is_not_on_the_disk(
    receipt_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await settle(receipt_stores, "one")

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ReceiptFiles, "append", full)
        with pytest.raises(OSError, match="No space"):
            await export(receipt_stores, tmp_path)
    assert await receipt_stores.receipts.waiting([TENANT]) == {TENANT: 1}
    assert (await export(receipt_stores, tmp_path)).lost == 0
    assert ids(tmp_path) == ["one"]


async def test_what_is_written_and_could_not_be_removed_is_removed_later_without_a_second_line(
    receipt_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await settle(receipt_stores, "one", "two")
    with an_export(receipt_stores, tmp_path) as one:

        async def unavailable(*args: Any) -> list[Any]:
            return [StoreUnavailable()]

        with monkeypatch.context() as patch:
            patch.setattr(receipt_stores.runner, "call_each", unavailable)
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await one.run(asyncio.Event())
        await settle(receipt_stores, "three")
        await one.run(asyncio.Event())
    assert ids(tmp_path) == ["one", "two", "three"]
    assert await receipt_stores.receipts.exported(TENANT) == 3


async def test_an_export_that_dies_before_it_removes_repeats_lines_and_loses_none(
    receipt_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await settle(receipt_stores, "one", "two")

    async def dies(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(receipt_stores.receipts.__class__, "remove", dies)
        with pytest.raises(KeyboardInterrupt):
            await export(receipt_stores, tmp_path)
    await export(receipt_stores, tmp_path)
    assert ids(tmp_path) == ["one", "two", "one", "two"]


async def test_two_exports_to_two_folders_have_everything_between_them(receipt_stores: Stores, tmp_path: Path):
    for number in range(5):
        await settle(receipt_stores, *(f"{number} {n}" for n in range(30)))
        await asyncio.gather(*(export(receipt_stores, tmp_path / name) for name in "ab"))
    everything = {f"{number} {n}" for number in range(5) for n in range(30)}
    assert {*ids(tmp_path / "a"), *ids(tmp_path / "b")} == everything
    assert await receipt_stores.receipts.waiting([TENANT]) == {}


async def test_what_was_dropped_is_counted_and_named_once(
    receipt_stores: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    client, stream = receipt_stores.connection.client, Keyspace.of_tenant(TENANT).receipts(TENANT)
    await settle(receipt_stores, *(f"n{number}" for number in range(10)))
    await client.xtrim(stream, minid="0-4", approximate=False)
    await client.xdel(stream, "0-6", "0-7")
    with caplog.at_level(logging.ERROR, "gateway.export"):
        assert (await export(receipt_stores, tmp_path)).lost == 5
    assert f"receipts 1 to 3 of {TENANT} are lost" in caplog.text
    assert f"receipts 6 to 7 of {TENANT} are lost" in caplog.text
    await settle(receipt_stores, *(f"m{number}" for number in range(4)))
    await client.xtrim(stream, minid="0-13", approximate=False)
    assert (await export(receipt_stores, tmp_path)).lost == 2
    assert (await export(receipt_stores, tmp_path)).lost == 0
    assert [document["number"] for document in documents(tmp_path)] == [4, 5, 8, 9, 10, 13, 14]


async def test_a_tenant_whose_receipts_cannot_be_read_keeps_nobody_waiting(receipt_stores: Stores, tmp_path: Path):
    tenants = ["a-0123456789ab", "b-0123456789ab", "c-0123456789ab"]
    for tenant_id in tenants:
        await settle(receipt_stores, tenant_id, tenant_id=tenant_id)
    client = receipt_stores.connection.client
    await client.set(Keyspace("a").receipts(tenants[0]), "no stream")
    await client.xadd(Keyspace("b").receipts(tenants[1]), {"what": "is this"})
    with pytest.raises(InternalError):
        await export(receipt_stores, tmp_path)
    assert ids(tmp_path) == [tenants[2]]


async def test_tidying_finds_what_the_index_has_lost(receipt_stores: Stores, tmp_path: Path):
    tenant = await created(receipt_stores)
    await settle(receipt_stores, "one", tenant_id=tenant.id)
    await receipt_stores.connection.client.delete(receipt_index())
    with an_export(receipt_stores, tmp_path) as one:
        await one.run(asyncio.Event())
        assert (ids(tmp_path), await one.tidy()) == ([], 1)
        await one.run(asyncio.Event())
        assert (ids(tmp_path), await one.tidy()) == (["one"], 0)


async def test_a_stop_in_the_middle_leaves_the_rest_for_the_next_run(
    receipt_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.store.receipts.RECEIPTS_AT_ONCE", 10)
    await settle(receipt_stores, *(f"n{number}" for number in range(30)))
    stop, read = asyncio.Event(), ReceiptStore.read

    async def read_and_stop(*args: Any) -> list[Receipt]:
        stop.set()
        return await read(*args)

    with monkeypatch.context() as patch, an_export(receipt_stores, tmp_path) as one:
        patch.setattr(ReceiptStore, "read", read_and_stop)
        await one.run(stop)
    assert ids(tmp_path) == [f"n{number}" for number in range(10)]
    await export(receipt_stores, tmp_path)
    assert ids(tmp_path) == [f"n{number}" for number in range(30)]


# Again and again


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # files are not awaited
            await asyncio.sleep(0.005)


async def test_following_goes_on_after_failures_of_any_kind(
    receipt_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter, "PAUSES_S", (0.01,))
    stop, totals, opens = asyncio.Event(), Totals(), 0

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[ReceiptStore]:
        nonlocal opens
        opens += 1
        if opens < 3:
            raise StoreUnavailable
        yield receipt_stores.receipts

    append, tenants = ReceiptFiles.append, ReceiptStore.tenants
    troubles: list[Exception] = [OSError("full"), StoreUnavailable(), OSError("full")]

    def failing(*args: Any) -> None:
        if troubles and isinstance(troubles[-1], OSError):
            raise troubles.pop()
        append(*args)

    async def away(*args: Any) -> list[str]:
        if troubles and isinstance(troubles[-1], StoreUnavailable):
            raise troubles.pop()
        return await tenants(*args)

    monkeypatch.setattr(ReceiptFiles, "append", failing)
    monkeypatch.setattr(ReceiptStore, "tenants", away)
    await settle(receipt_stores, "one")
    with ReceiptFiles(tmp_path, 1 << 30).opened() as files:
        task = asyncio.create_task(follow(opened, files, totals, 0.01, stop))
        await until(lambda: totals.receipts == 1)
        await settle(receipt_stores, "two")
        await until(lambda: totals.receipts == 2)
        stop.set()
        await task
    assert (ids(tmp_path), troubles, opens) == (["one", "two"], [], 3)


async def test_following_goes_on_at_its_pace_where_one_tenant_is_damaged(
    receipt_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter, "PAUSES_S", (3_600,))
    await receipt_stores.connection.client.set(Keyspace.of_tenant(OTHER).receipts(OTHER), "no stream")
    await receipt_stores.connection.client.zadd(receipt_index(), {OTHER: 1, "long-ago-0123456789ab": 1})
    stop, totals = asyncio.Event(), Totals()

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[ReceiptStore]:
        yield receipt_stores.receipts

    with ReceiptFiles(tmp_path, 1 << 30).opened() as files:
        task = asyncio.create_task(follow(opened, files, totals, 0.01, stop))
        for count in (1, 2):
            await settle(receipt_stores, f"n{count}")
            await until(lambda count=count: totals.receipts == count)  # type: ignore[misc]
        stop.set()
        await task
    assert ids(tmp_path) == ["n1", "n2"]
    assert "long-ago-0123456789ab" not in await receipt_stores.receipts.tenants(), "it was tidied"


async def test_following_does_not_wait_when_it_is_told_to_stop_and_not_at_all_for_a_wrong_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter, "PAUSES_S", (3_600,))

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[ReceiptStore]:
        raise error
        yield

    with ReceiptFiles(tmp_path, 1 << 30).opened() as files:
        stop, error = asyncio.Event(), Exception()
        error = StoreUnavailable()
        task = asyncio.create_task(follow(opened, files, Totals(), 3_600, stop))
        await asyncio.sleep(0.01)
        stop.set()
        async with asyncio.timeout(10):
            await task
        error = ConfigurationError("redis.url: wrong")
        with pytest.raises(ConfigurationError, match=r"redis\.url"):
            await follow(opened, files, Totals(), 3_600, asyncio.Event())
