"""Admission and all writes on a cluster of three primaries, where a script may touch one slot only and nothing undeclared."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import InternalError, SubdomainTaken
from gateway.models import LimitKind, LimitSpec
from gateway.resources import lua_folder
from gateway.store import (
    BoundLimit,
    Held,
    Keyspace,
    Settlement,
    StoredKey,
    StoredRule,
    Stores,
    Used,
    connect,
    open_stores,
    place_limit,
)
from gateway.store.keyspace import key_lookup, tenant_index
from gateway.store.script_source import Script, read_scripts
from gateway.store.scripts import ScriptRunner
from tests.builders import a_rule
from tests.gate import NOON, Ending, Gate, Limit, bucket, budget, concurrency, log
from tests.ledger import ledger
from tests.servers import DEBIAN_REDIS, Cluster, redis_cluster
from tests.stores import LEASE_MS, patient
from tests.unit.store.documents import a_key, created, is_good, secret, tenant_of

pytestmark = [
    pytest.mark.real_store,
    pytest.mark.skipif(not DEBIAN_REDIS.exists(), reason="Debian's redis-server is not installed"),
]

SUBDOMAINS = [f"company{number}" for number in range(9)]


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    with redis_cluster(DEBIAN_REDIS) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """With nothing in it."""
    for node in running_cluster.nodes:
        node.command("FLUSHALL")
        node.command("SCRIPT", "FLUSH")
    return running_cluster


@pytest.fixture
async def stores(cluster: Cluster) -> AsyncIterator[Stores]:
    connection = connect(patient(cluster.url))
    try:
        yield await open_stores(connection, LEASE_MS)
    finally:
        await connection.close()


def limits_of(tenant: str) -> list[Limit]:
    """Of every kind; the first has room for three."""
    limits = [log(3), bucket(60, burst=9), budget(9), budget(90, "month"), log(9, shadow=True, name="shadow"), concurrency(9)]
    return [dataclasses.replace(limit, tenant=tenant) for limit in limits]


def all_keys(cluster: Cluster) -> set[str]:
    return {key.decode() for node in cluster.nodes for key in node.command("KEYS", "*")}


def test_the_tenants_of_these_tests_live_on_all_primaries(cluster: Cluster):
    assert {cluster.owner(Gate(None, name).keyspace.tenant).port for name in SUBDOMAINS} == {  # type: ignore[arg-type]
        node.port for node in cluster.nodes
    }


async def test_every_script_is_loaded_on_every_primary(stores: Stores, cluster: Cluster):
    shas = [script.with_shebang().sha for script in read_scripts(lua_folder()).values()]
    for node in cluster.nodes:
        assert list(node.command("SCRIPT", "EXISTS", *shas)) == [True] * len(shas)


async def test_requests_are_admitted_replayed_refused_and_cancelled_in_every_slot(stores: Stores):
    for name in SUBDOMAINS:
        gate = await Gate(stores, name).prepare()
        limits = limits_of(name)
        for number, word in enumerate(["admitted", "admitted", "admitted", "limited"]):
            assert (await gate.admit(limits, NOON, admission=f"r{number}")).word == word
        assert (await gate.admit(limits, NOON, admission="r1")).word == "replayed"
        assert await gate.cancel(limits, NOON, "r1") == "settled"
        assert (await gate.admit(limits, NOON)).admitted
        assert (await gate.rate_limit([log(2, name="alone", tenant=name)], NOON)).admitted
        assert (await gate.ask(limits, NOON, version=""))[0] == b"stale"
        assert (await gate.ask(limits, NOON, digest="0" * 64)) == [b"invalid_key"]


async def test_requests_of_tenants_in_every_slot_are_renewed_in_one_call(stores: Stores, cluster: Cluster):
    spec = LimitSpec("flying", LimitKind.CONCURRENCY, 9, ("rule",), unit="concurrency")
    held = []
    for name in SUBDOMAINS:
        placed = place_limit(Keyspace(name), "ten_1", "rule_1", spec, 0, ())
        held.append(Held(Keyspace(name), "one", NOON, (BoundLimit(placed, placed.key),)))
    for node in cluster.nodes:
        node.command("SCRIPT", "FLUSH")
    await stores.settlements.renew(held)
    assert {one.limits[0].key for one in held} <= all_keys(cluster)


async def test_requests_of_tenants_in_every_slot_are_settled_in_one_call_for_each_tenant(stores: Stores, cluster: Cluster):
    for name in SUBDOMAINS:
        gate = await Gate(stores, name).prepare()
        for number in range(3):
            assert (await gate.admit(limits_of(name), NOON, admission=f"r{number}")).admitted
    for node in cluster.nodes:
        node.command("SCRIPT", "FLUSH")
    settlements = [
        Settlement(Keyspace(name), f"r{number}", NOON + number * 86_400_000, (), Used(f"{name}-1", "key_1", "rule_1"))
        for number in (0, 1, 2, 1, 9)
        for name in SUBDOMAINS
    ]
    assert await stores.settlements.settle(settlements) == [None] * len(settlements)
    days = {f"{name}-1:2026-03-{10 + number}" for name in SUBDOMAINS for number in (0, 1, 2, 9)}
    assert {key.rpartition("usage:")[2] for key in all_keys(cluster) if ":usage:" in key} == days
    for name in SUBDOMAINS:
        gate = Gate(stores, name)
        endings = [Ending(f"m{number}", limits_of(name), actual=0) for number in range(3)]
        assert await gate.settle_each(NOON, endings) == ["not_admitted"] * 3
        assert await gate.settle_each(NOON, [Ending("r1"), Ending("new", limits_of(name), admitted=NOON)]) == [
            "settled_before",
            "settled",
        ]


async def test_a_whole_life_of_tenants_rules_and_keys(stores: Stores, cluster: Cluster):
    for name in SUBDOMAINS:
        tenant = await created(stores, name)
        with pytest.raises(SubdomainTaken):
            await stores.tenants.create(tenant_of(name), a_key(), secret("late"))
        key = a_key()
        await stores.api_keys.create(tenant.id, key, secret(f"{name} one"))
        for step in ("two", "three"):
            rotated = await stores.api_keys.rotate(tenant.id, key.id, lambda key: key, secret(f"{name} {step}"), 60_000)
            assert isinstance(rotated, StoredKey)
        good = [await is_good(stores, tenant, f"{name} {step}") for step in ("one", "two", "three")]
        assert good == [False, True, True]
        assert await stores.admissions.subdomain_of_key(secret(f"{name} three")) == name
        await stores.api_keys.update(tenant.id, key.id, lambda key: key.model_copy(update={"status": "revoked"}))
        assert not await is_good(stores, tenant, f"{name} three")
        rule = await stores.rules.create(tenant.id, lambda _: a_rule())
        assert isinstance(rule, StoredRule)
        await stores.rules.update(tenant.id, rule.rule.id, lambda _, rule: rule.model_copy(update={"name": "new"}))
        await stores.rules.delete(tenant.id, rule.rule.id)
        await stores.rules.create(tenant.id, lambda _: a_rule())
        await stores.tenants.update(tenant.id, lambda tenant: tenant.model_copy(update={"name": "New"}))
        assert len(await stores.api_keys.all(tenant.id)) == 2
    page, after = await stores.tenants.page(None, 5)
    rest, end = await stores.tenants.page(after, 5)
    assert [stored.tenant.subdomain for stored in (*page, *rest)] == SUBDOMAINS
    assert end is None
    for stored in (*page, *rest):
        await stores.tenants.delete(stored.tenant.id)
    assert all_keys(cluster) == set()


async def test_of_concurrent_creates_of_one_subdomain_exactly_one_wins(stores: Stores, cluster: Cluster):
    tenants = [tenant_of("wanted") for _ in range(20)]
    outcomes = await asyncio.gather(
        *(stores.tenants.create(tenant, a_key(), secret(tenant.id)) for tenant in tenants), return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(outcome is None or isinstance(outcome, SubdomainTaken) for outcome in outcomes)
    winner = tenants[outcomes.index(None)]
    names = Gate(stores, "wanted").keyspace
    own = {names.tenant, names.key_index, names.api_key(secret(winner.id))}
    assert all_keys(cluster) == own | {tenant_index(), key_lookup(secret(winner.id))}


async def test_usage_is_read_and_forgotten_where_its_tenant_lives(stores: Stores, cluster: Cluster):
    today = datetime.now(UTC).date()
    tenants = [await created(stores, name) for name in SUBDOMAINS]
    for number, tenant in enumerate(tenants):
        await stores.connection.client.hset(
            ledger(tenant.id, today), mapping={f"r:key_{n}:rule_1:m": number + 1 for n in range(3_000)}
        )
    for number, tenant in enumerate(tenants):
        rows = await stores.usage.rows(tenant.id, today - timedelta(40), today)
        assert (len(rows), {row.requests for row in rows}) == (3_000, {number + 1})
        assert await stores.usage.sum_of(["requests"], tenant.id, today, today, key_id="key_7") == number + 1
    for tenant in tenants:
        await stores.tenants.delete(tenant.id)
        assert ledger(tenant.id, today) not in all_keys(cluster)


async def test_alerts_are_claimed_where_their_tenant_lives(stores: Stores):
    for subdomain in SUBDOMAINS:
        names = Keyspace(subdomain)
        assert [await stores.alerts.is_first(names, "crossing", 60_000) for _ in range(2)] == [True, False]
        claims = await asyncio.gather(*(stores.alerts.claim(names, "crossing", token, 60_000) for token in "abc"))
        assert sorted(claim.state for claim in claims) == ["mine", "taken", "taken"]
        token = "abc"[[claim.state for claim in claims].index("mine")]
        assert await stores.alerts.keep(names, "crossing", token, 60_000)
        await stores.alerts.end(names, "crossing", "sent", 60_000)
        assert (await stores.alerts.claim(names, "crossing", "d", 60_000)).state == "over"


async def test_that_the_primaries_forgot_the_scripts_is_not_seen(stores: Stores, cluster: Cluster):
    for name in SUBDOMAINS:
        gate = await Gate(stores, name).prepare()
        limits = limits_of(name)
        for word in ("admitted", "admitted", "admitted", "limited"):
            for node in cluster.nodes:
                node.command("SCRIPT", "FLUSH")
            assert (await gate.admit(limits, NOON)).word == word


async def test_a_key_that_was_not_declared_is_refused_thanks_to_the_shebang(stores: Stores, cluster: Cluster):
    allowed = {True: 0, False: 0}
    for name, shebang in itertools.product(SUBDOMAINS, allowed):
        runner = ScriptRunner(stores.connection, {"ask": undeclared(f"gw:{{{name}}}:other")})
        await runner.start(shebang=shebang)
        call = runner.call("ask", [f"gw:{{{SUBDOMAINS[0]}}}:tenant"], [])
        outcome: object = (await asyncio.gather(call, return_exceptions=True))[0]
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, InternalError)
            assert re.search("non local key|same slot", str(outcome.__cause__))
        else:
            allowed[shebang] += name != SUBDOMAINS[0]
    assert allowed[True] == 0
    assert allowed[False] > 0, "without it, other slots of the same primary are open"


async def test_limits_of_two_tenants_in_one_call_are_refused_before_anything_runs(stores: Stores, cluster: Cluster):
    gate = await Gate(stores, SUBDOMAINS[0]).prepare()
    before = all_keys(cluster)
    with pytest.raises(InternalError):
        await gate.admit([log(3, tenant=name) for name in SUBDOMAINS[:2]], NOON)
    assert all_keys(cluster) == before


def undeclared(key: str) -> Script:
    return Script("ask", f"redis.call('SET', '{key}', '1') return {{'done'}}", "", ("ask.lua:1",))
