"""admit.lua: one decision over any mix of limits, all or nothing, and once for each id."""

from __future__ import annotations

import itertools

import pytest

from gateway.errors import InvalidApiKey, TenantSuspended, UnknownTenant
from gateway.models import LimitKind, LimitSpec
from gateway.store import Admission, BoundLimit, Known, Settlement, Stale, Stores, Unseeded, limit_of, place_limit
from tests.gate import DIGEST, NOON, REVISION, SUBDOMAIN, VERSION, Gate, Limit, bucket, budget, concurrency, log, ring
from tests.stores import dump, keys_without_end

KNOWN = Known(VERSION, REVISION)
HOUR = 3_600_000


def mixed(log_limit: int = 5, burst: int = 5, quota: int = 5) -> list[Limit]:
    return [log(log_limit), bucket(60, burst=burst), budget(quota), budget(quota * 10, "month")]


async def test_a_request_without_limits_is_admitted_and_leaves_only_when_its_key_was_used(gate: Gate):
    before = await dump(gate.stores.connection)
    assert await gate.ask([], NOON) == [b"admitted", NOON]
    changed = {key for key, value in (await dump(gate.stores.connection)).items() if before.get(key) != value}
    assert changed == {gate.keyspace.api_key(DIGEST).encode()}


async def test_every_limit_is_charged_by_an_admitted_request(gate: Gate):
    decision = await gate.admit(mixed(), NOON)
    assert decision.admitted
    assert [(state.used, state.remaining) for state in decision.states] == [(1, 4), (1, 4), (1, 4), (1, 49)]


@pytest.mark.parametrize("position", range(4))
async def test_if_one_limit_refuses_no_counter_moves_and_no_key_is_written(gate: Gate, position: int):
    limits = mixed()
    small: list[Limit] = [log(1), bucket(60, burst=1), budget(1), budget(1, "month")]
    limits[position] = small[position]
    await gate.admit(limits, NOON)
    before = await dump(gate.stores.connection)
    for cost in (1, 2):
        refused = await gate.admit(limits, NOON + 10, cost)
        assert refused.word == "limited"
        assert [state.refuses for state in refused.states] == [int(index == position) for index in range(4)]
        assert (refused.states[position].retry == -1) == (cost == 2)
    assert await dump(gate.stores.connection) == before


@pytest.mark.parametrize("position", range(5))
async def test_all_or_nothing_holds_whatever_kind_refuses_and_whatever_kinds_stand_beside_it(gate: Gate, position: int):
    limits = [log(5), ring(5), bucket(60, burst=5), budget(5), concurrency(5)]
    small: list[Limit] = [log(1), ring(1), bucket(60, burst=1), budget(1), concurrency(1)]
    limits[position] = small[position]
    first = await gate.admit(limits, NOON, admission="one")
    assert [(state.used, state.remaining) for state in first.states] == [(1, 4 * (index != position)) for index in range(5)]
    before = await dump(gate.stores.connection)
    refused = await gate.admit(limits, NOON + 10)
    assert (refused.word, [state.refuses for state in refused.states]) == (
        "limited",
        [int(index == position) for index in range(5)],
    )
    assert await dump(gate.stores.connection) == before
    await gate.cancel(limits, NOON + 10, "one")
    assert [state.used for state in (await gate.admit(limits, NOON + 10)).states] == [1] * 5


async def test_a_first_request_that_is_refused_leaves_nothing_at_all(gate: Gate):
    before = await dump(gate.stores.connection)
    assert (await gate.admit(mixed(), NOON, cost=6)).word == "limited"
    assert await dump(gate.stores.connection) == before


async def test_every_limit_that_refuses_is_told_with_its_own_retry(gate: Gate):
    limits = [log(1, 1_000), log(1, 60_000, name="b"), budget(1), log(9, name="c")]
    await gate.admit(limits, NOON)
    refused = await gate.admit(limits, NOON + 1)
    assert [state.refuses for state in refused.states] == [1, 1, 1, 0]
    assert [state.retry for state in refused.states] == [999, 59_999, 43_200_000 - 1, 0]


@pytest.mark.parametrize("cost", [1, 2])
async def test_the_largest_retry_of_a_mixed_refusal_is_tight(gate: Gate, cost: int):
    limits = [log(3, 1_000), bucket(2, 1_000, burst=4), log(5, 4_000, name="b")]
    now = NOON
    for _ in range(8):
        await gate.drain(limits, now)
        refused = await gate.admit(limits, now, cost)
        retry = max(state.retry for state in refused.states)
        assert (await gate.admit(limits, now + retry - 1, cost)).word == "limited"
        assert (await gate.admit(limits, now + retry, cost)).admitted
        now += retry


async def test_what_the_smallest_remaining_promises_is_what_a_loop_gets(gate: Gate):
    decision = await gate.admit(mixed(log_limit=4, burst=6, quota=9), NOON)
    least = min(state.remaining for state in decision.states)
    assert await gate.drain(mixed(log_limit=4, burst=6, quota=9), NOON) == least == 3


async def test_every_key_of_an_admission_has_an_end(gate: Gate):
    kept = await keys_without_end(gate.stores.connection)
    await gate.admit(mixed(), NOON, admission="one")
    await gate.admit(mixed(), NOON + 1)
    await gate.cancel(mixed(), NOON + 1, "one")
    await gate.cancel(mixed(), NOON + 1, "never-seen")
    assert await keys_without_end(gate.stores.connection) == kept
    assert {gate.keyspace.tenant.encode(), gate.keyspace.api_key(DIGEST).encode(), gate.keyspace.key_index.encode()} == set(
        kept
    )


async def test_the_marker_is_kept_for_an_hour_more_than_the_lease(gate: Gate):
    await gate.admit([log(1)], NOON, admission="one")
    assert HOUR + 59_000 < await gate.stores.connection.client.pttl(gate.keyspace.marker("one")) <= HOUR + 60_000


# The same id again


async def test_a_repeated_request_gets_the_first_decision_and_changes_nothing(gate: Gate):
    first = await gate.admit(mixed(), NOON, admission="one")
    await gate.admit(mixed(), NOON + 5)
    before = await dump(gate.stores.connection)
    for later in (0, 7, 90_000):
        again = await gate.admit(mixed(), NOON + 5 + later, admission="one")
        assert (again.word, again.now) == ("replayed", first.now)
        assert [state.refuses for state in again.states] == [0, 0, 0, 0]
    assert await dump(gate.stores.connection) == before


async def test_a_repeated_request_is_still_admitted_when_the_limit_is_spent_or_was_lowered(gate: Gate):
    await gate.admit([log(2), budget(2)], NOON, admission="one")
    await gate.admit([log(2), budget(2)], NOON)
    again = await gate.admit([log(2), budget(2)], NOON, admission="one")
    assert (again.word, [state.remaining for state in again.states]) == ("replayed", [0, 0])
    lowered = await gate.admit([log(1), budget(1)], NOON, admission="one")
    assert (lowered.word, [(state.refuses, state.retry) for state in lowered.states]) == ("replayed", [(0, 0), (0, 0)])


async def test_a_refused_id_may_be_admitted_later(gate: Gate):
    await gate.admit([log(1, 1_000)], NOON)
    assert (await gate.admit([log(1, 1_000)], NOON + 1, admission="late")).word == "limited"
    assert (await gate.admit([log(1, 1_000)], NOON + 1_000, admission="late")).admitted


async def test_an_admission_that_was_cancelled_before_it_arrived_is_void(gate: Gate):
    assert await gate.cancel(mixed(), NOON, "one") == "not_admitted"
    before = await dump(gate.stores.connection)
    assert await gate.ask(mixed(), NOON, admission="one") == [b"settled"]
    assert await dump(gate.stores.connection) == before
    assert (await gate.admit(mixed(), NOON)).states[0].used == 1


# Shadow limits


@pytest.mark.parametrize("make", [log, budget])
async def test_a_shadow_limit_refuses_nothing_and_counts_as_if_it_did(gate: Gate, make):
    shadow, real = make(2, shadow=True, name="shadow"), make(2, name="real")
    for _ in range(5):
        told = (await gate.admit([shadow], NOON)).state
        enforced = await gate.admit([real], NOON)
        assert told == enforced.state
        assert bool(told.refuses) == (not enforced.admitted)


async def test_a_shadow_bucket_counts_as_if_it_refused(gate: Gate):
    shadow, real = bucket(1, 1_000, burst=2, shadow=True, name="shadow"), bucket(1, 1_000, burst=2, name="real")
    for at in (0, 0, 0, 500, 1_000, 1_400, 5_000):
        told, enforced = await gate.admit([shadow], NOON + at), await gate.admit([real], NOON + at)
        assert told.admitted
        assert told.state == enforced.state


async def test_a_shadow_limit_does_not_count_what_another_limit_refuses(gate: Gate):
    limits = [log(1), log(9, shadow=True, name="shadow")]
    await gate.admit(limits, NOON)
    assert (await gate.admit(limits, NOON)).word == "limited"
    assert (await gate.admit([limits[1]], NOON)).state.used == 2


# Limits that share a key


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param([log(5), log(3), log(5)], id="log"),
        pytest.param([budget(5), budget(3), budget(5)], id="budget"),
        pytest.param([bucket(60, burst=3), bucket(60, burst=3), bucket(60, burst=3)], id="bucket"),
    ],
)
async def test_limits_with_one_key_count_a_request_once_and_the_strictest_decides(gate: Gate, limits: list[Limit]):
    decision = await gate.admit(limits, NOON, admission="one")
    assert [state.used for state in decision.states] == [1, 1, 1]
    assert await gate.drain(limits, NOON) == 2
    await gate.cancel(limits, NOON, "one")
    assert await gate.drain(limits, NOON) == 1


async def test_limits_with_one_key_keep_every_live_unit_when_old_ones_are_removed(gate: Gate):
    limits = [log(9, 1_000), log(9, 1_000)]
    for at in (0, 500, 600):
        await gate.admit(limits, NOON + at)
    assert [state.used for state in (await gate.admit(limits, NOON + 1_000)).states] == [3, 3]
    assert await gate.stores.connection.client.llen(limits[0].key) == 3


# Through the store


def bound(stores: Stores, *specs: LimitSpec, owner: str = "rule_1", values: tuple[str, ...] = ("x",)) -> list[BoundLimit]:
    names = Gate(stores).keyspace
    placed = [place_limit(names, "ten_1", owner, spec, 0, ("rule",)) for spec in specs]
    return [BoundLimit(limit, limit_of(limit.key, values)) for limit in placed]


WINDOW = LimitSpec("window", LimitKind.LOG, 2, ("rule",), window_ms=60_000)
QUOTA = LimitSpec("quota", LimitKind.BUDGET, 9, ("rule",), period="month")
BUCKET = LimitSpec("bucket", LimitKind.BUCKET, 60, ("rule",), window_ms=60_000, burst=5)


async def test_the_store_speaks_of_limits_by_their_names(gate: Gate):
    limits = bound(gate.stores, WINDOW, QUOTA, BUCKET)
    unseeded = await gate.stores.admissions.admit(gate.keyspace, DIGEST, KNOWN, "one", limits)
    assert isinstance(unseeded, Unseeded)
    assert [limit.placed.spec.name for limit in unseeded.limits] == ["quota"]
    await gate.stores.admissions.seed([(limit, 0) for limit in unseeded.limits], unseeded.now_ms)
    admission = await gate.stores.admissions.admit(gate.keyspace, DIGEST, KNOWN, "one", limits)
    assert isinstance(admission, Admission)
    assert admission.admitted
    assert [(state.name, state.limit, state.used, state.remaining, state.kind) for state in admission.states] == [
        ("window", 2, 1, 1, "log"),
        ("quota", 9, 1, 8, "budget"),
        ("bucket", 5, 1, 4, "bucket"),
    ]
    for name, admitted in (("one", True), ("two", True), ("three", False), ("two", True)):
        again = await gate.stores.admissions.admit(gate.keyspace, DIGEST, KNOWN, name, limits)
        assert isinstance(again, Admission)
        assert again.admitted == admitted
    cancelled = Settlement(gate.keyspace, "one", None, [(limit, 0) for limit in limits])
    assert await gate.stores.settlements.settle([cancelled, cancelled]) == [None, None]
    assert (await gate.stores.admissions.admit(gate.keyspace, DIGEST, KNOWN, "four", limits)).admitted  # type: ignore[union-attr]
    assert not (await gate.stores.admissions.admit(gate.keyspace, DIGEST, KNOWN, "five", limits)).admitted  # type: ignore[union-attr]


async def test_owners_names_levels_and_values_tell_limits_apart(gate: Gate):
    variants = [
        bound(gate.stores, WINDOW),
        bound(gate.stores, WINDOW, owner="rule_2"),
        bound(gate.stores, WINDOW, values=("y",)),
        bound(gate.stores, WINDOW, values=("x", "")),
        bound(gate.stores, LimitSpec("other", LimitKind.LOG, 2, ("rule",), window_ms=60_000)),
        bound(gate.stores, LimitSpec("window", LimitKind.LOG, 2, ("ip",), window_ms=60_000)),
        bound(gate.stores, LimitSpec("window", LimitKind.LOG, 2, ("rule",), window_ms=60_001)),
        bound(gate.stores, LimitSpec("window", LimitKind.BUCKET, 2, ("rule",), window_ms=60_000, burst=2)),
    ]
    assert len({limits[0].key for limits in variants}) == len(variants)
    assert all(limits[0].key.startswith(f"gw:{{{SUBDOMAIN}}}:limit:") for limits in variants)


async def test_values_that_a_client_chooses_cannot_spell_another_limits_key(gate: Gate):
    texts = ["a", "b", "ab", "", "a:b", "\x00", "{x}", "é", "\udc80"]
    keys = {limit_of("k", values) for count in (1, 2) for values in itertools.product(texts, repeat=count)}
    assert len(keys) == len(texts) + len(texts) ** 2
    assert {len(key) for key in keys} == {2 + 32}


async def test_refusals_of_the_identity_are_errors_and_stale_is_a_value(gate: Gate):
    admit = gate.stores.admissions.admit
    with pytest.raises(InvalidApiKey):
        await admit(gate.keyspace, "0" * 64, KNOWN, "one", bound(gate.stores, WINDOW))
    stale = await admit(gate.keyspace, DIGEST, Known(), "one", bound(gate.stores, WINDOW))
    assert stale == Stale(VERSION, b"{tenant}", (), REVISION, b"{key}")
    await gate.stores.connection.client.hset(gate.keyspace.tenant, "status", "suspended")
    with pytest.raises(TenantSuspended):
        await admit(gate.keyspace, DIGEST, KNOWN, "one", bound(gate.stores, WINDOW))
    await gate.stores.connection.client.delete(gate.keyspace.tenant)
    with pytest.raises(UnknownTenant):
        await admit(gate.keyspace, DIGEST, KNOWN, "one", bound(gate.stores, WINDOW))


async def test_a_limit_of_unknown_kind_is_an_error_before_anything_is_written(gate: Gate):
    before = await dump(gate.stores.connection)
    with pytest.raises(Exception, match="failed to handle"):
        await gate.admit([log(5), Limit("square", 5, 1_000)], NOON)
    assert await dump(gate.stores.connection) == before


async def test_without_a_given_moment_the_servers_clock_decides(gate: Gate):
    word, now, *_ = await gate.ask([log(5)], "")
    seconds, micros = await gate.stores.connection.client.time()
    assert word == b"admitted"
    assert 0 <= seconds * 1_000 + micros // 1_000 - now < 5_000


# rate_limit.lua: the limits alone


async def test_rate_limit_decides_as_admit_does(gate: Gate):
    alone = [log(2, name="r"), bucket(60, burst=3, name="r"), budget(9, name="r")]
    full = [log(2), bucket(60, burst=3), budget(9)]
    for at in (0, 0, 1, 60_000, 60_000):
        one, other = await gate.rate_limit(alone, NOON + at), await gate.admit(full, NOON + at)
        assert one == other


async def test_rate_limit_writes_nothing_when_it_refuses(gate: Gate):
    await gate.rate_limit([log(1)], NOON)
    before = await dump(gate.stores.connection)
    assert (await gate.rate_limit([log(1)], NOON + 1)).word == "limited"
    assert await dump(gate.stores.connection) == before
