"""settle.lua for many admissions at once: each ends as it would alone, and what one of them meets is nobody else's business."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pytest
from redis.exceptions import ResponseError

from gateway.errors import InternalError
from gateway.models import LimitKind, LimitSpec
from gateway.store import BoundLimit, Due, Keyspace, ReceiptIndex, Settlement, Settlements, Stores, Used, place_limit
from gateway.store.settlement import MOST_TOGETHER
from tests.gate import DAY, LEDGER, NOON, RETENTION_MS, SUBDOMAIN, Ending, Gate, bucket, budget, concurrency, log, settle_call
from tests.stores import LEASE_MS, dump

ROW = "key_1:rule_1:"
LIMITS = [log(9), bucket(60, burst=9), budget(9), concurrency(9)]
TENANT = f"{SUBDOMAIN}-1"


def used(model: str = "gpt", *amounts: int) -> Used:
    return Used(TENANT, "key_1", "rule_1", model, *amounts)


def ended(name: str, dues: Sequence[Due] = (), what: Used | None = None, admitted_ms: int | None = NOON) -> Settlement:
    return Settlement(Keyspace(SUBDOMAIN), name, admitted_ms, dues, what)


def flying(subdomain: str = SUBDOMAIN, name: str = "flying") -> BoundLimit:
    spec = LimitSpec(name, LimitKind.CONCURRENCY, 9, ("rule",), unit="concurrency")
    placed = place_limit(Keyspace(subdomain), f"{subdomain}-1", "rule_1", spec, 0, ())
    return BoundLimit(placed, placed.key)


async def recorded(stores: Stores) -> dict[str, dict[str, int]]:
    """The ledgers, by the end of their name."""
    return {
        key.decode().rpartition("usage:")[2]: {name.decode(): int(value) for name, value in content.items()}
        for key, (content, _) in (await dump(stores.connection)).items()
        if b":usage:" in key and isinstance(content, dict)
    }


async def test_each_gets_its_own_outcome_in_order(gate: Gate):
    for name in ("one", "two", "three"):
        await gate.admit(LIMITS, NOON, admission=name)
    await gate.settle(LIMITS, NOON, "two")
    endings = [
        Ending("unseen", LIMITS, actual=0),
        Ending("one", LIMITS, actual=0, row=ROW),
        Ending("two", LIMITS, actual=0, row=ROW),
        Ending("without a marker", admitted=NOON, row=ROW),
        Ending("three", LIMITS, row=ROW),
    ]
    words = ["not_admitted", "settled", "settled_before", "settled", "settled"]
    assert await gate.settle_each(NOON, endings) == words
    assert [state.used for state in (await gate.peek(LIMITS, NOON)).states] == [2, 2, 2, 0]
    assert await gate.stores.connection.client.hgetall(LEDGER) == {f"r:{ROW}".encode(): b"3"}
    before = await dump(gate.stores.connection)
    assert await gate.settle_each(NOON + 9, endings) == ["settled_before"] * 5
    assert await dump(gate.stores.connection) == before


async def test_of_one_id_that_comes_twice_only_the_first_counts(gate: Gate):
    await gate.admit(LIMITS, NOON, 3, "one")
    endings = [Ending("one", LIMITS, 3, 1, row=ROW), Ending("one", LIMITS, 3, 0, row=ROW)]
    assert await gate.settle_each(NOON, endings) == ["settled", "settled_before"]
    assert [state.used for state in (await gate.peek(LIMITS, NOON)).states] == [1, 1, 1, 0]
    assert await gate.stores.connection.client.hgetall(LEDGER) == {f"r:{ROW}".encode(): b"1"}
    unseen = [Ending("unseen", LIMITS, actual=0), Ending("unseen", LIMITS, actual=0)]
    assert await gate.settle_each(NOON, unseen) == ["not_admitted", "settled_before"]


async def test_rows_of_days_keys_and_models_are_summed_each_by_itself(stores: Stores):
    large = 2**53 + 1
    whats = [
        (NOON, used("a")),
        (NOON, used("a")),
        (NOON, used("b", 1, 20, 3, 0, 999)),
        (NOON + DAY, used("a")),
        (NOON, used("a", 0, 5)),
        (NOON, used("b", 2, 1, 1, 1, large)),
        (NOON, used("a")._replace(key_id="key_2")),
        (NOON, None),
        (NOON, used("b", 1, 0, 0, 0, large)),
    ]
    settlements = [ended(f"n{number}", (), what, at) for number, (at, what) in enumerate(whats)]
    assert await stores.settlements.settle(settlements) == [None] * len(whats)
    assert await recorded(stores) == {
        f"{TENANT}:2026-03-10": {
            f"r:{ROW}a": 2,
            f"i:{ROW}a": 5,
            "r:key_2:rule_1:a": 1,
            f"r:{ROW}b": 4,
            f"i:{ROW}b": 21,
            f"o:{ROW}b": 4,
            f"c:{ROW}b": 1,
            f"u:{ROW}b": 2 * large + 999,
        },
        f"{TENANT}:2026-03-11": {f"r:{ROW}a": 1},
    }


async def test_one_that_may_never_have_been_admitted_is_not_recorded_with_its_neighbours(stores: Stores):
    settlements = [ended(name, (), used(), None if name == "unsure" else NOON) for name in ("one", "unsure", "three")]
    assert await stores.settlements.settle(settlements) == [None] * 3
    assert await recorded(stores) == {f"{TENANT}:2026-03-10": {f"r:{ROW}gpt": 2}}


@pytest.mark.parametrize("value", ["WRONGTYPE", "garbage"])
async def test_a_damaged_limit_in_the_middle_is_one_admissions_trouble_only(gate: Gate, value: str):
    good, bad = log(9), bucket(60, burst=9, name="damaged")
    for name in ("one", "two", "three"):
        await gate.admit([good, bad] if name == "two" else [good], NOON, admission=name)
    client = gate.stores.connection.client
    await client.delete(bad.key)
    await (client.lpush if value == "WRONGTYPE" else client.set)(bad.key, value)
    endings = [Ending(name, [good, bad] if name == "two" else [good], actual=0, row=ROW) for name in ("one", "two", "three")]
    first, second, third = await gate.settle_each(NOON, endings)
    assert (first, third) == ("settled", "settled")
    assert second.startswith("failed: ")
    if value == "WRONGTYPE":
        assert "WRONGTYPE" in second
    assert await client.hgetall(LEDGER) == {f"r:{ROW}".encode(): b"2"}
    assert (await gate.peek([good], NOON)).state.used == 0
    assert await gate.settle_each(NOON, endings) == ["settled_before"] * 3


async def test_a_damaged_ledger_fails_those_that_it_should_have_recorded(stores: Stores):
    damaged = Keyspace(SUBDOMAIN).usage(TENANT, date(2026, 3, 11))
    await stores.connection.client.set(damaged, "no hash")
    settlements = [ended(f"n{number}", (), used(), NOON + DAY * (number % 2)) for number in range(4)]
    first, second, third, fourth = await stores.settlements.settle(settlements)
    assert (first, third) == (None, None)
    assert isinstance(second, InternalError)
    assert isinstance(fourth, InternalError)
    assert (await recorded(stores)) == {f"{TENANT}:2026-03-10": {f"r:{ROW}gpt": 2}}


async def test_a_call_that_is_refused_as_a_whole_is_repeated_one_by_one(stores: Stores):
    limit = flying()
    strange = limit._replace(placed=replace(limit.placed, arguments=("strange", *limit.placed.arguments[1:])))
    settlements = [ended("one", [], used()), ended("two", [(strange, None)], used()), ended("three", [(limit, None)], used())]
    first, second, third = await stores.settlements.settle(settlements)
    assert (first, third) == (None, None)
    assert isinstance(second, InternalError)
    assert (await recorded(stores)) == {f"{TENANT}:2026-03-10": {f"r:{ROW}gpt": 2}}


async def test_a_call_takes_no_more_than_it_may_and_others_go_into_the_next(stores: Stores, monkeypatch):
    too_many = settle_call(Keyspace(SUBDOMAIN), NOON, [Ending(f"n{number}", admitted=NOON) for number in range(65)])
    with pytest.raises(InternalError) as refused:
        await stores.runner.call("settle", *too_many)
    assert isinstance(refused.value.__cause__, ResponseError)
    assert await dump(stores.connection) == {}
    each, calls = stores.runner.call_each, list[int]()

    async def noting(name: str, many: Sequence[Any]) -> Any:
        calls.extend(int(arguments[3]) for _, arguments in many)
        return await each(name, many)

    monkeypatch.setattr(stores.runner, "call_each", noting)
    settlements = [ended(f"n{number}", (), used()) for number in range(2 * MOST_TOGETHER + 1)]
    other = Settlement(Keyspace("other"), "n", NOON, (), used()._replace(tenant_id="other-1"))
    assert await stores.settlements.settle([*settlements[:9], other, *settlements[9:]]) == [None] * (len(settlements) + 1)
    assert calls == [64, 1, 64, 1]
    assert (await recorded(stores)) == {
        f"{TENANT}:2026-03-10": {f"r:{ROW}gpt": 129},
        "other-1:2026-03-10": {f"r:{ROW}gpt": 1},
    }


# Together is the same as one after the other


@dataclass(frozen=True)
class Placed:
    """A limit of the store for `Gate.ask`."""

    bound: BoundLimit

    @property
    def key(self) -> str:
        return self.bound.key

    def arguments(self, cost: int, now: int = NOON) -> list[str]:
        return list(self.bound._replace(cost=cost).arguments)


SPECS = [
    LimitSpec("log", LimitKind.LOG, 30, ("ip",), window_ms=60_000),
    LimitSpec("shadow", LimitKind.LOG, 3, ("ip",), window_ms=60_000, shadow=True),
    LimitSpec("ring", LimitKind.RING, 100_000, ("ip",), window_ms=60_000),
    LimitSpec("bucket", LimitKind.BUCKET, 600, ("ip",), window_ms=60_000, burst=900),
    LimitSpec("budget", LimitKind.BUDGET, 900, ("ip",), period="day"),
    LimitSpec("charge", LimitKind.BUDGET, 900, ("ip",), period="day", on_lost="charge"),
    LimitSpec("release", LimitKind.BUDGET, 900, ("ip",), period="month", on_lost="release"),
    LimitSpec("flying", LimitKind.CONCURRENCY, 90, ("ip",), unit="concurrency"),
]
LATER = NOON + 30_000


async def a_scene(gate: Gate, chance: random.Random, count: int) -> list[Settlement]:
    """Admissions of a tenant, and what ends: also some that were never admitted, come twice or have lost their marker."""
    tenant = f"{gate.subdomain}-1"
    limits = [place_limit(gate.keyspace, tenant, "rule_1", spec, 0, ("ip",)) for spec in SPECS]
    bounds = [BoundLimit(placed, f"{placed.key}:{value}") for placed in limits for value in "ab"]
    settlements: list[Settlement] = []
    await gate.prepare()
    for number in range(count):
        name, cost, at = f"n{number}", chance.choice([1, 1, 2]), NOON + chance.choice([0, 0, 7, 20_000, -900])
        chosen = [bound._replace(cost=cost) for bound in chance.sample(bounds, chance.choice([0, 0, 1, 2, 5]))]
        fate = chance.random()
        if fate < 0.8:
            reply = await gate.ask([Placed(bound) for bound in chosen], at, cost, name)  # type: ignore[misc]
            if reply[0] != b"admitted":
                continue
        if fate > 0.7:
            await gate.stores.connection.client.delete(gate.keyspace.marker(name))
        dues = [(bound, chance.choice([None, None, 0, 1, 4])) for bound in chosen if chance.random() < 0.9]
        amounts = chance.choice([(), (), (), (1, 7, 8), (0, 1, 0, 1, 10**13), (1, 0, 0, 0, 2**53 + 1)])
        what = None if chance.random() < 0.2 else Used(tenant, "key_1", "rule_1", chance.choice("abb"), *amounts)
        admitted = None if chance.random() < 0.2 else at - chance.choice([0, 0, DAY])
        settlements.append(Settlement(gate.keyspace, name, admitted, dues, what))
        if chance.random() < 0.1:
            settlements.append(settlements[chance.randrange(len(settlements))])
    return settlements


async def settle_in(calls: Settlements, gate: Gate, settlements: Sequence[Settlement], sizes: Iterator[int]) -> list[bytes]:
    """The words for them, at one moment and in calls of these sizes."""
    words: list[bytes] = []
    while len(words) < len(settlements):
        some = settlements[len(words) : len(words) + next(sizes)]
        keys, arguments = calls._call_of(some)
        arguments[1] = str(LATER)
        words += await gate.stores.runner.call("settle", keys, arguments)
    return words


async def picture(gate: Gate) -> dict[str, tuple[Any, int]]:
    """What a tenant's keys hold and when they end, by names that do not tell which tenant it is."""
    placed = [place_limit(gate.keyspace, f"{gate.subdomain}-1", "rule_1", spec, 0, ("ip",)) for spec in SPECS]
    names = {f"{one.key}:{value}": f"{one.spec.name} {value}" for one in placed for value in "ab"}
    found = {key.decode(): facts for key, facts in (await dump(gate.stores.connection)).items()}
    return {
        names.get(key, key.replace(gate.subdomain, "tenant")): facts
        for key, facts in found.items()
        if f"{{{gate.subdomain}}}" in key and key != gate.keyspace.tenant
    }


@pytest.mark.parametrize("receipts", [False, True], ids=["", "receipts"])
@pytest.mark.parametrize("seed", range(12))
async def test_batches_leave_what_single_calls_leave(stores: Stores, seed: int, receipts: bool):
    index = ReceiptIndex(stores.connection) if receipts else None
    calls = Settlements(stores.runner, LEASE_MS, RETENTION_MS, index, 1_000)
    alone, together = Gate(stores, "first"), Gate(stores, "other")
    chance = random.Random(seed)
    singles = await a_scene(alone, random.Random(seed), 90)
    batches = await a_scene(together, random.Random(seed), 90)
    words = await settle_in(calls, alone, singles, iter(lambda: 1, 0))
    assert await settle_in(calls, together, batches, iter(lambda: chance.choice([1, 2, 5, 30, MOST_TOGETHER]), 0)) == words
    assert set(words) == {b"settled", b"settled_before", b"not_admitted"}
    expected, found = await picture(alone), await picture(together)
    assert any(":receipts:" in key for key in expected) == receipts
    assert {key: content for key, (content, _) in found.items()} == {key: content for key, (content, _) in expected.items()}
    ends = {key: abs(end - expected[key][1]) for key, (_, end) in found.items()}
    assert max(ends.values()) < 20_000, ends
