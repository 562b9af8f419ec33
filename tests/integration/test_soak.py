"""Steady traffic at every kind of limit, by the server's own clock: only real time shows what lapses too early or too late."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from gateway.models import Cost, LimitKind, LimitSpec
from gateway.store import Admission, Admissions, BoundLimit, Held, Keyspace, Known, Settlement, Settlements, Stores, place_limit
from tests.gate import DIGEST, RETENTION_MS, REVISION, SUBDOMAIN, VERSION, Gate
from tests.receipts import Book, Charge, Refusal
from tests.servers import Server
from tests.stores import opened

pytestmark = pytest.mark.real_store

LEASE_MS = 2_000
STEP_MS = LEASE_MS // 20
KEYSPACE = Keyspace(SUBDOMAIN)

PER_HEADER = Cost(header="x-cost")  # so that no budget is asked of the ledger


def spec(name: str, kind: LimitKind, limit: int, window_ms: int = 0, **more: object) -> LimitSpec:
    return LimitSpec(name, kind, limit, ("rule",), window_ms=window_ms, cost=PER_HEADER, **more)  # type: ignore[arg-type]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Lane:
    """Requests that ask the same limits: so many a second, each of a cost up to the most, each in flight for so long.

    Of those that hold something every eighth is never settled, as if its replica had died, and some are settled with less.
    """

    limits: Sequence[LimitSpec]
    per_second: float
    most_cost: int = 1
    longest_s: float = 0.0


# A key lives for its window and 6 s: windows that are shorter and longer than those, and a soak that is longer than all.
LANES = (
    Lane([spec("log 1s", LimitKind.LOG, 50, 1_000)], 75),
    Lane([spec("log 8s", LimitKind.LOG, 80, 8_000)], 15),
    Lane([spec("ring 3s", LimitKind.RING, 15_000, 3_000)], 30, most_cost=500),
    Lane([spec("ring 8s", LimitKind.RING, 16_000, 8_000)], 15, most_cost=500),
    Lane([spec("bucket", LimitKind.BUCKET, 40, 2_000, burst=10)], 30),
    Lane([spec("slots", LimitKind.CONCURRENCY, 5)], 30, longest_s=0.5),
    Lane([spec("long slots", LimitKind.CONCURRENCY, 6)], 3, longest_s=5),
    Lane([spec("charge", LimitKind.BUDGET, 2_500, period="day", on_lost="charge")], 20, most_cost=100, longest_s=3),
    Lane([spec("release", LimitKind.BUDGET, 1_500, period="day", on_lost="release")], 20, most_cost=100, longest_s=3),
    Lane(
        [
            spec("all: log", LimitKind.LOG, 30, 2_000),
            spec("all: ring", LimitKind.RING, 50, 4_000),
            spec("all: slots", LimitKind.CONCURRENCY, 9),
        ],
        20,
        longest_s=0.8,
    ),
)


@dataclass
class Soak:
    """Drives lanes and writes down what each caller was told."""

    admissions: Admissions
    settlements: Settlements
    rng: random.Random
    books: dict[str, Book] = field(default_factory=dict)

    async def run(self, lanes: Sequence[Lane], seconds: float) -> None:
        """Returns when the last request has ended; those that nobody settles may still hold something."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(self._drive(lane, end, group))

    async def _drive(self, lane: Lane, end: float, group: asyncio.TaskGroup) -> None:
        while time.monotonic() < end:
            group.create_task(self._request(lane))
            await asyncio.sleep(self.rng.expovariate(lane.per_second))

    async def _request(self, lane: Lane) -> None:
        admission_id, cost = secrets.token_hex(16), self.rng.randint(1, lane.most_cost)
        limits = [bound(one, cost) for one in lane.limits]
        known = Known(VERSION, REVISION)
        admission = await self.admissions.admit(KEYSPACE, DIGEST, known, admission_id, limits)
        assert isinstance(admission, Admission)
        charges = self._write_down(limits, admission)
        holding = [limit for limit in limits if limit.placed.spec.holds]
        if admission.admitted and holding:
            await self._last(lane, holding, charges, admission_id, admission.now_ms)

    def _write_down(self, limits: Sequence[BoundLimit], admission: Admission) -> list[Charge]:
        charges = []
        for limit, state in zip(limits, admission.states, strict=True):
            book = self.books.setdefault(limit.placed.spec.name, Book(limit.placed.spec))
            if admission.admitted:
                charges.append(Charge(admission.now_ms, limit.cost))
                book.charges.append(charges[-1])
            elif state.refuses:
                book.refusals.append(Refusal(admission.now_ms, limit.cost))
        return charges

    async def _last(
        self, lane: Lane, holding: Sequence[BoundLimit], charges: Sequence[Charge], admission_id: str, admitted_ms: int
    ) -> None:
        """Be in flight for a while, renewed like a request of the proxy, and end; or be gone at once, like a dead replica."""
        if self.rng.random() < 1 / 8:
            for charge in charges:
                charge.ends = lease_end(charge, lane)
            return
        held = Held(KEYSPACE, admission_id, admitted_ms, tuple(holding))
        left_s, sure_until = self.rng.uniform(0, lane.longest_s), admitted_ms + LEASE_MS - STEP_MS
        doubtful = False
        while left_s > 0:
            await asyncio.sleep(min(left_s, LEASE_MS / 3_000))
            left_s -= LEASE_MS / 3_000
            asked = now_ms()
            if left_s > 0:
                await self.settlements.renew([held])
                doubtful |= now_ms() >= sure_until
                sure_until = asked + LEASE_MS - STEP_MS
        actual = self.rng.choice([0, 0, 0, 0, 1, 3])
        asked = now_ms()
        (failed,) = await self.settlements.settle(
            [Settlement(KEYSPACE, admission_id, admitted_ms, [(limit, actual) for limit in holding])]
        )
        assert failed is None
        for charge in charges:
            charge.settled, charge.actual = (asked, now_ms()), actual
            charge.doubtful = doubtful or charge.settled[1] >= sure_until

    def check(self) -> None:
        """Every promise, on the receipts alone."""
        for book in self.books.values():
            book.check()


def lease_end(charge: Charge, lane: Lane) -> int:
    """Slots end with the lease, what a budget holds up to a twentieth of a lease earlier."""
    end = charge.at + LEASE_MS
    return end if lane.limits[-1].kind is LimitKind.CONCURRENCY else end // STEP_MS * STEP_MS


def bound(one: LimitSpec, cost: int) -> BoundLimit:
    placed = place_limit(KEYSPACE, "ten_1", "rule_1", one, 0, ())
    return BoundLimit(placed, placed.key, cost)


@contextlib.asynccontextmanager
async def soaking(server: Server, replacing: Mapping[str, str] | None = None) -> AsyncIterator[tuple[Soak, Stores]]:
    """``replacing`` changes the text of the scripts."""
    async with opened(server, replacing) as stores:
        await Gate(stores).prepare()
        admissions = Admissions(stores.connection, stores.runner, LEASE_MS)
        settlements = Settlements(stores.runner, LEASE_MS, RETENTION_MS)
        yield Soak(admissions, settlements, random.Random(7)), stores


async def endless(stores: Stores) -> set[bytes]:
    """Every key that would stay for ever; others may come to their end in the meantime."""
    keys = await stores.connection.client.keys("*")
    pipe = stores.connection.client.pipeline(transaction=False)
    for key in keys:
        pipe.pttl(key)
    return {key for key, left_ms in zip(keys, await pipe.execute(), strict=True) if left_ms == -1}


@pytest.mark.timeout(1_000)
@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.long)])
async def test_steady_traffic_at_the_limit_gets_all_that_is_promised_and_no_more(valkey_store_server: Server, seconds: int):
    valkey_store_server.command("FLUSHALL")
    async with soaking(valkey_store_server) as (soak, stores):
        kept = await endless(stores)
        today = datetime.now(UTC).date()
        await soak.run(LANES, seconds)
        soak.check()
        for name, book in soak.books.items():
            assert book.charges, name
            assert book.refusals or book.spec.name.startswith("all"), f"{name} was never at its limit"
        assert await endless(stores) == kept
        await asyncio.sleep(LEASE_MS / 1_000)  # what nobody settled ends now
        left = {
            one.name: (await soak.admissions.peek(KEYSPACE, [bound(one, 1)])).states[0].used
            for lane in LANES
            for one in lane.limits
            if one.holds
        }
        spent = today == datetime.now(UTC).date()  # else a new day has begun with nothing
        budgets = {name: book.spent() if spent else left[name] for name, book in soak.books.items() if name in left}
        assert left == budgets


# Lives of keys that are set once and never again, or too short; cut so that a short soak sees what else takes a long one.
NEVER_AGAIN = "redis.call('PTTL', key) < 0"
BRIEF = {"_TTL_MARGIN_MS = 6000": "_TTL_MARGIN_MS = 20"}
FAULTS = {
    "log": {"newest > now or math.floor(newest / window) ~= math.floor(now / window)": NEVER_AGAIN, **BRIEF},
    "a log for one window": {"decimal(2 * window + LOG_TTL_MARGIN_MS)": "decimal(window)"},
    "ring": {"if state.opens or state.ahead then": f"if {NEVER_AGAIN} then", **BRIEF},
    "bucket": {"local ttl = ceil_div(capacity - level, limit) + BUCKET_TTL_MARGIN_MS": "local ttl = 200"},
    "slots": {"redis.call('PTTL', key) < lease + CONCURRENCY_TTL_MARGIN_MS": NEVER_AGAIN, **BRIEF},
    "a slot that does not end": {"'(' .. decimal(admission.now), '+inf'": "'-inf', '+inf'"},
    "a slot that is not freed": {"redis.call('ZREM', spec.key, concurrency_slot(admission.id, number))": "return"},
    "a hold that does not end": {"tonumber(ending) <= now": "false"},
    "a hold that is charged": {"if letter == 'c' and period_edges": "if period_edges"},
    "a hold that is not charged": {"state.spent = state.spent + units": "state.spent = state.spent"},
    "a hold that is not freed": {"state.held = state.held - freed": "state.held = state.held"},
    "a log that forgets": {"local length = redis.call('LLEN', key)": "local length = math.max(0, redis.call('LLEN', key) - 1)"},
}
SHORT = (
    Lane([spec("log", LimitKind.LOG, 12, 400)], 80),
    Lane([spec("ring", LimitKind.RING, 1_000, 500)], 40, most_cost=200),
    Lane([spec("bucket", LimitKind.BUCKET, 6, 1_000, burst=6)], 20),
    Lane([spec("slots", LimitKind.CONCURRENCY, 4)], 20, longest_s=1),
    Lane([spec("charge", LimitKind.BUDGET, 700, period="day", on_lost="charge")], 25, most_cost=50, longest_s=1),
    Lane([spec("release", LimitKind.BUDGET, 500, period="day", on_lost="release")], 25, most_cost=50, longest_s=1),
)


async def until_noticed(soak: Soak) -> None:
    for _ in range(12):
        await soak.run(SHORT, 1)
        soak.check()


async def test_a_short_soak_of_the_scripts_as_they_are_finds_nothing(valkey_store_server: Server):
    valkey_store_server.command("FLUSHALL")
    async with soaking(valkey_store_server) as (soak, _):
        unseen = {"yet"}
        for _ in range(10):  # a machine that is busy needs longer until every limit has refused
            await soak.run(SHORT, 3)
            soak.check()
            unseen = {name for name, book in soak.books.items() if not (book.charges and book.refusals)}
            if not unseen:
                break
        assert not unseen


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_short_soak_notices_what_lapses_too_early_too_late_or_never(valkey_store_server: Server, fault: str):
    valkey_store_server.command("FLUSHALL")
    async with soaking(valkey_store_server, FAULTS[fault]) as (soak, _):
        with pytest.raises(AssertionError, match=r"in the window|refused at|more than the bucket|at least"):
            await until_noticed(soak)
