"""Settlements leave in batches, are tried again, and are never lost silently."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from gateway.errors import InternalError, StoreAway, StoreUnavailable
from gateway.proxy import settler as settler_module
from gateway.proxy.settler import Settler
from gateway.store import Keyspace, Settlement, Settlements
from tests.seconds import Seconds
from tests.wire import eventually

SPACE = Keyspace("testcompany")


class Store:
    """Notes what is settled. ``away`` calls fail as a whole, ids in ``refused`` fail each with their error."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.away = 0
        self.refused: dict[str, Exception] = {}
        self.open = asyncio.Event()
        self.open.set()

    async def settle(self, settlements: Sequence[Settlement]) -> list[Exception | None]:
        self.calls.append([one.admission_id for one in settlements])
        await self.open.wait()
        if self.away:
            self.away -= 1
            raise StoreUnavailable
        return [self.refused.get(one.admission_id) for one in settlements]


def a_settler() -> tuple[Settler, Store, Seconds, list[int]]:
    store, clock, given_up = Store(), Seconds(), list[int]()
    return Settler(cast("Settlements", store), 60_000, given_up.append, clock), store, clock, given_up


def ended(name: str, admitted_ms: int | None = 1) -> Settlement:
    return Settlement(SPACE, name, admitted_ms, ())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(settler_module, "PAUSES_MS", (1, 2))


async def test_what_ends_while_a_call_is_under_way_leaves_in_the_next_one_together():
    settler, store, _, given_up = a_settler()
    store.open.clear()
    settler.add(ended("one"))
    settler.add(ended("two"))
    await asyncio.sleep(0)
    assert store.calls == [["one", "two"]]
    for name in ("three", "four"):
        settler.add(ended(name))
    store.open.set()
    await settler.drain(1_000)
    assert store.calls == [["one", "two"], ["three", "four"]]
    assert given_up == []


async def test_a_call_takes_a_bounded_number():
    settler, store, _, _ = a_settler()
    for number in range(300):
        settler.add(ended(str(number)))
    await settler.drain(1_000)
    assert [len(call) for call in store.calls] == [128, 128, 44]


async def test_it_is_tried_again_while_the_store_is_away():
    settler, store, _, given_up = a_settler()
    store.away = 5
    settler.add(ended("one"))
    await settler.drain(2_000)
    assert store.calls == [["one"]] * 6
    assert given_up == []


async def test_what_fails_alone_does_not_hold_up_the_others():
    settler, store, _, given_up = a_settler()
    store.refused["bad"] = StoreUnavailable()
    settler.add(ended("bad"))
    settler.add(ended("good"))
    await asyncio.sleep(0.01)
    settler.add(ended("later"))
    await eventually(lambda: any("later" in call for call in store.calls))
    assert [call for call in store.calls if "good" in call] == [["bad", "good"]]
    store.refused.clear()
    await settler.drain(2_000)
    assert store.calls[-1] == ["bad"]
    assert given_up == []


async def test_after_a_lease_it_is_given_up_and_counted():
    settler, store, clock, given_up = a_settler()
    store.away = 10_000
    settler.add(ended("old"))
    await eventually(lambda: store.calls)
    clock.now += 30
    settler.add(ended("young"))
    await eventually(lambda: len(store.calls) >= 3)
    clock.now += 30
    await eventually(lambda: store.calls[-1] == ["young"])
    assert given_up == [1]
    store.away = 0
    await settler.drain(1_000)


async def test_what_cannot_have_reached_the_store_is_kept_for_longer_than_a_lease():
    settler, store, clock, given_up = a_settler()
    store.refused["never sent"] = StoreAway()
    settler.add(ended("never sent"))
    for lease in range(3):
        await eventually(lambda: len(store.calls) > lease)  # noqa: B023
        clock.now += 60
    del store.refused["never sent"]
    await settler.drain(1_000)
    assert (store.calls[-1], given_up) == (["never sent"], [])


async def test_what_no_try_can_cure_is_given_up_at_once(caplog):
    settler, store, _, given_up = a_settler()
    store.refused["bad"] = InternalError()
    settler.add(ended("bad"))
    settler.add(ended("good"))
    await settler.drain(1_000)
    assert store.calls == [["bad", "good"]]
    assert given_up == [1]
    assert "cannot be settled" in caplog.text


async def test_a_bug_in_the_call_does_not_end_the_work():
    settler, store, _, given_up = a_settler()

    async def broken(settlements: Sequence[Settlement]) -> list[Exception | None]:
        raise ZeroDivisionError

    whole, store.settle = store.settle, broken  # type: ignore[method-assign]
    settler.add(ended("one"))
    await asyncio.sleep(0.01)
    store.settle = whole  # type: ignore[method-assign]
    settler.add(ended("two"))
    await settler.drain(1_000)
    assert (store.calls, given_up) == ([["two"]], [1])


async def test_where_too_many_wait_only_what_was_perhaps_never_admitted_is_dropped(monkeypatch):
    monkeypatch.setattr(settler_module, "MAX_WAITING", 2)
    settler, store, _, given_up = a_settler()
    for name, admitted_ms in (("one", None), ("two", 1), ("lost", None), ("three", 1)):
        settler.add(ended(name, admitted_ms))
    await settler.drain(1_000)
    assert store.calls == [["one", "two", "three"]]
    assert given_up == [1]


async def test_draining_gives_up_after_its_time():
    settler, store, _, given_up = a_settler()
    await settler.drain(1_000)
    store.open.clear()
    settler.add(ended("one"))
    await asyncio.wait_for(settler.drain(10), 2)
    assert given_up == [1]


async def test_a_long_pause_ends_when_the_store_is_seen_to_answer(monkeypatch):
    monkeypatch.setattr(settler_module, "PAUSES_MS", (1, 60_000))
    settler, store, _, _ = a_settler()
    store.away = 2
    settler.add(ended("one", None))
    await asyncio.sleep(0.05)
    settler.add(ended("never answered", None))
    await asyncio.sleep(0.05)
    assert len(store.calls) == 2
    settler.store_answers()
    await asyncio.sleep(0.05)
    assert store.calls[2:] == [["one", "never answered"]]
    await settler.drain(1_000)
