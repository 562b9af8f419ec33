"""Which leases are renewed, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from gateway.errors import StoreUnavailable
from gateway.models import LimitKind, LimitSpec
from gateway.plugin import LimitState
from gateway.proxy.renewer import Renewer
from gateway.store import Admission, BoundLimit, Held, Keyspace, Settlements, place_limit
from tests.seconds import Seconds

SPACE = Keyspace("testcompany")


class Store:
    """Notes what is renewed; fails for as often as told."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.failures = 0

    async def renew(self, held: Sequence[Held]) -> None:
        self.calls.append([one.admission_id for one in held])
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable


def a_limit(kind: LimitKind = LimitKind.CONCURRENCY) -> BoundLimit:
    placed = place_limit(SPACE, "ten_1", "rule_1", LimitSpec(kind.value, kind, 5, ("rule",), window_ms=60_000), 0, ())
    return BoundLimit(placed, placed.key)


def admitted(limits: Sequence[BoundLimit], *, refuses: bool = False) -> Admission:
    facts: dict[str, Any] = {"level": ("rule",), "unit": "requests", "limit": 5, "window_seconds": 60, "used": 1}
    facts |= {"remaining": 4, "retry_after_ms": 0, "reset_ms": 0, "entry": 0, "shadow": refuses, "refuses": refuses}
    return Admission(True, 1_000, tuple(LimitState(name="x", kind=limit.placed.spec.kind.value, **facts) for limit in limits))


def a_renewer(every_ms: int = 20_000) -> tuple[Renewer, Store, Seconds]:
    store, clock = Store(), Seconds()
    return Renewer(cast("Settlements", store), 60_000, every_ms, clock), store, clock


def keep(renewer: Renewer, name: str, *limits: BoundLimit, refuses: bool = False) -> None:
    renewer.keep(SPACE, name, limits, admitted(limits, refuses=refuses))


async def test_only_requests_older_than_a_third_of_the_lease_are_renewed_all_in_one_call():
    renewer, store, clock = a_renewer()
    for name in ("one", "two"):
        keep(renewer, name, a_limit())
    clock.now += 19.9
    await renewer.tick()
    assert store.calls == []
    keep(renewer, "young", a_limit())
    clock.now += 0.2
    await renewer.tick()
    await renewer.tick()
    assert store.calls == [["one", "two"]] * 2


async def test_what_has_ended_is_renewed_no_more():
    renewer, store, clock = a_renewer()
    keep(renewer, "one", a_limit())
    renewer.let_go("one")
    renewer.let_go("one")
    clock.now += 50
    await renewer.tick()
    assert store.calls == []


@pytest.mark.parametrize(("kind", "refuses"), [(LimitKind.LOG, False), (LimitKind.CONCURRENCY, True)])
async def test_a_request_that_holds_nothing_is_not_kept(kind: LimitKind, refuses: bool):
    renewer, store, clock = a_renewer()
    keep(renewer, "one", a_limit(kind), refuses=refuses)
    clock.now += 50
    await renewer.tick()
    assert store.calls == []


async def test_it_ticks_on_when_the_store_fails_until_it_is_stopped():
    renewer, store, clock = a_renewer(every_ms=5)
    keep(renewer, "one", a_limit())
    clock.now += 50
    store.failures = 2
    renewer.start()
    async with asyncio.timeout(2):
        while len(store.calls) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await renewer.stop()
    seen = len(store.calls)
    await asyncio.sleep(0.03)
    assert len(store.calls) == seen
