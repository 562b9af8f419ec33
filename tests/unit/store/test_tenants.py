"""Tenants in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import EditConflict, IdempotencyConflict, NotFound, SubdomainTaken
from gateway.models import LimitKind, LimitSpec, Tenant
from gateway.store import (
    Admission,
    BoundLimit,
    Keyspace,
    Known,
    Once,
    Repeated,
    Stale,
    Stores,
    limit_of,
    new_tenant_id,
    place_limit,
)
from gateway.store.keyspace import key_lookup, tenant_index
from tests.builders import a_rule
from tests.servers import Server
from tests.stores import blocking_client, dump
from tests.unit.store.documents import a_key, created, expiring, is_good, keys_of, secret, tenant_of, versions


def named(name: str) -> Callable[[Tenant], Tenant]:
    return lambda tenant: tenant.model_copy(update={"name": name})


async def names_in_index(stores: Stores) -> list[str]:
    return [name.decode() for name in await stores.connection.client.zrange(tenant_index(), 0, -1)]


async def test_a_created_tenant_is_found_by_id_and_by_subdomain_with_a_working_key(stores: Stores):
    tenant = await created(stores)
    stored = await stores.tenants.get(tenant.id)
    assert stored.tenant == tenant
    assert stored == await stores.tenants.by_subdomain("testcompany")
    assert await is_good(stores, tenant, "first of testcompany")
    assert await stores.admissions.subdomain_of_key(secret("first of testcompany")) == "testcompany"
    assert await stores.admissions.tenant_exists(Keyspace("testcompany"))
    assert not await stores.admissions.tenant_exists(Keyspace("other"))


@pytest.mark.parametrize(
    "tenant_id", ["", "x", "testcompany", "testcompany-000000000000", "-a", "../x-0123456789ab", "a{b}-0123456789ab"]
)
async def test_an_id_of_nobody_is_not_found(stores: Stores, tenant_id: str):
    await created(stores)
    for call in (stores.tenants.get, stores.tenants.delete, stores.rules.all, stores.api_keys.all):
        with pytest.raises(NotFound):
            await call(tenant_id)


async def test_a_taken_subdomain_is_refused_and_the_refused_request_leaves_nothing(stores: Stores):
    tenant = await created(stores)
    before = await dump(stores.connection)
    with pytest.raises(SubdomainTaken):
        await stores.tenants.create(tenant_of("testcompany"), a_key(), secret("late"))
    assert await dump(stores.connection) == before
    assert not await is_good(stores, tenant, "late")


async def test_of_fifty_concurrent_creates_of_one_subdomain_exactly_one_wins(stores: Stores):
    tenants = [tenant_of("wanted", name=f"number {number}") for number in range(50)]
    outcomes = await asyncio.gather(
        *(stores.tenants.create(tenant, a_key(), secret(tenant.id)) for tenant in tenants), return_exceptions=True
    )
    assert sorted(str(type(outcome).__name__) for outcome in outcomes) == ["NoneType"] + ["SubdomainTaken"] * 49
    winner = tenants[outcomes.index(None)]
    assert (await stores.tenants.get(winner.id)).tenant == winner
    assert [await is_good(stores, winner, tenant.id) for tenant in tenants] == [tenant is winner for tenant in tenants]
    assert await names_in_index(stores) == [winner.id]
    assert len(await keys_of(stores)) == 5  # tenant, index of keys, one key, and its place in both indexes


async def test_the_first_key_of_a_tenant_ends_when_it_says(stores: Stores):
    for subdomain, delta, good in (("past", -1, False), ("future", 60, True)):
        tenant = tenant_of(subdomain)
        await stores.tenants.create(tenant, expiring(datetime.now(UTC) + timedelta(seconds=delta)), secret(subdomain))
        assert await is_good(stores, tenant, subdomain) == good


# Repeated requests


async def test_a_repeated_create_gets_the_first_answer_and_creates_nothing(stores: Stores):
    once = Once("d" * 32, "fingerprint", b"sealed \x00\n answer")
    first = tenant_of("twice")
    assert await stores.tenants.create(first, a_key(), secret("one"), once) is None
    before = await dump(stores.connection)
    again = Once(once.digest, once.fingerprint, b"another answer")
    assert await stores.tenants.create(tenant_of("twice"), a_key(), secret("two"), again) == Repeated(once.answer)
    assert await dump(stores.connection) == before


@pytest.mark.parametrize("fingerprint", ["other", "fingerprin", "fingerprint2"])
async def test_the_same_idempotency_key_for_another_request_is_a_conflict(stores: Stores, fingerprint: str):
    await stores.tenants.create(tenant_of("twice"), a_key(), secret("one"), Once("d", "fingerprint", b"answer"))
    with pytest.raises(IdempotencyConflict):
        await stores.tenants.create(tenant_of("twice"), a_key(), secret("two"), Once("d", fingerprint, b""))


async def test_answers_to_repeated_requests_are_kept_for_a_day(stores: Stores):
    await stores.tenants.create(tenant_of("twice"), a_key(), secret("one"), Once("d", "f", b"answer"))
    assert 86_300_000 < await stores.connection.client.pttl(Keyspace("twice").idempotency("d")) <= 86_400_000


# Edits


async def test_an_update_replaces_the_document_and_changes_the_version(stores: Stores):
    tenant = await created(stores)
    before, keys_before = await versions(stores, tenant)
    updated = await stores.tenants.update(tenant.id, named("New name"))
    stored = await stores.tenants.get(tenant.id)
    assert stored == updated
    assert stored.tenant == tenant.model_copy(update={"name": "New name"})
    after, keys_after = await versions(stores, tenant)
    assert after != before
    assert keys_after == keys_before


async def test_a_suspended_tenant_is_suspended_for_the_next_request(stores: Stores):
    tenant = await created(stores)
    await stores.tenants.update(tenant.id, lambda tenant: tenant.model_copy(update={"status": "suspended"}))
    with pytest.raises(Exception, match="suspended"):
        await is_good(stores, tenant, "first of testcompany")
    await stores.tenants.update(tenant.id, lambda tenant: tenant.model_copy(update={"status": "active"}))
    assert await is_good(stores, tenant, "first of testcompany")


async def test_concurrent_updates_of_different_fields_are_all_kept(stores: Stores):
    tenant = await created(stores)

    def add(number: int) -> Callable[[Tenant], Tenant]:
        return lambda tenant: tenant.model_copy(update={"metadata": tenant.metadata | {f"n{number}": "x"}})

    await asyncio.gather(*(stores.tenants.update(tenant.id, add(number)) for number in range(6)))
    assert (await stores.tenants.get(tenant.id)).tenant.metadata == {f"n{number}": "x" for number in range(6)}


async def test_who_always_loses_the_race_is_told_so(stores: Stores, any_server: Server | None):
    tenant = await created(stores)
    tries = 0
    with blocking_client(stores, any_server) as others:

        def change(tenant: Tenant) -> Tenant:
            nonlocal tries
            tries += 1
            others.hset(Keyspace("testcompany").tenant, "version", f"by-others-{tries}")
            return named("never stored")(tenant)

        with pytest.raises(EditConflict):
            await stores.tenants.update(tenant.id, change)
    assert tries == 10
    assert (await stores.tenants.get(tenant.id)).tenant == tenant


async def test_who_loses_the_race_once_changes_what_the_winner_has_written(stores: Stores, any_server: Server | None):
    tenant = await created(stores, tier="basic")
    winner = tenant.model_copy(update={"tier": "gold"})
    seen: list[str] = []
    with blocking_client(stores, any_server) as others:

        def change(tenant: Tenant) -> Tenant:
            if not seen:
                fields = {"version": "by-others", "document": winner.model_dump_json()}
                others.hset(Keyspace("testcompany").tenant, mapping=fields)
            seen.append(tenant.tier)
            return named("New")(tenant)

        updated = await stores.tenants.update(tenant.id, change)
    assert seen == ["basic", "gold"]
    assert (updated.tenant.tier, updated.tenant.name) == ("gold", "New")


async def test_if_match_guards_an_edit(stores: Stores):
    tenant = await created(stores)
    tag = (await stores.tenants.get(tenant.id)).etag
    updated = await stores.tenants.update(tenant.id, named("Second"), if_match=f'"other", {tag}')
    assert updated.etag != tag
    for call in (
        stores.tenants.update(tenant.id, named("Third"), if_match=tag),
        stores.tenants.delete(tenant.id, if_match=tag),
    ):
        with pytest.raises(EditConflict):
            await call
    assert (await stores.tenants.get(tenant.id)).tenant.name == "Second"
    await stores.tenants.update(tenant.id, named("Third"), if_match="*")
    await stores.tenants.delete(tenant.id, if_match=(await stores.tenants.get(tenant.id)).etag)


async def test_if_match_holds_for_a_document_that_an_older_release_has_written(stores: Stores):
    tenant = await created(stores)
    shorter = tenant.model_dump_json(exclude={"metadata"})
    await stores.connection.client.hset(Keyspace("testcompany").tenant, "document", shorter)
    tag = (await stores.tenants.get(tenant.id)).etag
    assert (await stores.tenants.update(tenant.id, named("New"), if_match=tag)).tenant.name == "New"


async def test_of_two_edits_with_the_same_if_match_one_wins(stores: Stores):
    tenant = await created(stores)
    tag = (await stores.tenants.get(tenant.id)).etag
    outcomes = await asyncio.gather(
        *(stores.tenants.update(tenant.id, named(f"name {number}"), tag) for number in range(8)), return_exceptions=True
    )
    assert sum(isinstance(outcome, EditConflict) for outcome in outcomes) == 7


# Deletion


async def test_deleting_leaves_nothing_behind(stores: Stores):
    tenant = await created(stores)
    key = a_key()
    await stores.api_keys.create(tenant.id, key, secret("second"))
    await stores.api_keys.rotate(tenant.id, key.id, lambda key: key, secret("third"), 60_000)
    await stores.api_keys.rotate(tenant.id, key.id, lambda key: key, secret("fourth"), 60_000)
    await stores.rules.create(tenant.id, lambda _: a_rule())
    other = await created(stores, "other")
    await stores.tenants.delete(tenant.id)
    left = await keys_of(stores)
    assert left == {tenant_index(), key_lookup(secret("first of other")), *(await keys_of(stores, "gw:{other}:*"))}
    assert await names_in_index(stores) == [other.id]
    for call in (stores.tenants.get, stores.tenants.delete):
        with pytest.raises(NotFound):
            await call(tenant.id)


async def test_deleting_leaves_only_state_that_ends_by_itself(stores: Stores):
    tenant = await created(stores)
    await admit(stores, tenant)
    await stores.tenants.delete(tenant.id)
    left = await dump(stores.connection)
    assert {key.split(b":")[2] for key in left} == {b"clock", b"limit", b"req"}
    assert all(end > 0 for _, end in left.values())


async def test_a_key_that_is_created_while_the_tenant_is_deleted_goes_with_it_or_is_refused(stores: Stores):
    for number in range(5):
        tenant = await created(stores, f"race{number}")
        outcomes = await asyncio.gather(
            stores.tenants.delete(tenant.id),
            *(stores.api_keys.create(tenant.id, a_key(), secret(f"{number}/{n}")) for n in range(4)),
            stores.rules.create(tenant.id, lambda _: a_rule()),
            return_exceptions=True,
        )
        assert outcomes[0] is None
        assert all(outcome is None or isinstance(outcome, NotFound) for outcome in outcomes[:-1])
    assert await keys_of(stores) == set()


async def test_a_subdomain_that_is_free_again_gives_a_tenant_of_its_own(stores: Stores):
    first = await created(stores, key_secret="old")
    seen = set(await versions(stores, first))
    await stores.rules.create(first.id, lambda _: a_rule())
    seen |= set(await versions(stores, first))
    await stores.tenants.delete(first.id)
    second = await created(stores, key_secret="new")
    assert second.id != first.id
    assert not seen & set(await versions(stores, second))
    assert await stores.rules.all(second.id) == []
    assert not await is_good(stores, second, "old")
    for call in (stores.tenants.get, stores.tenants.delete, stores.rules.all, stores.api_keys.all):
        with pytest.raises(NotFound):
            await call(first.id)


async def test_a_write_meant_for_a_deleted_tenant_never_reaches_its_successor(stores: Stores):
    """The writer has read the first tenant; by the time its script runs the subdomain is another's."""
    first = await created(stores)
    read = await stores.tenants.get(first.id)
    await stores.tenants.delete(first.id)
    second = await created(stores, key_secret="new")
    before = await dump(stores.connection)
    names, call = read.keyspace, stores.runner.call
    none = ["", "", "1000"]
    create_key = [first.id, "key_9", secret("9"), "r9", "", "{}", *none]
    assert await call(
        "create_key", [names.tenant, names.key_index, names.api_key("9"), names.idempotency("-")], create_key
    ) == [b"unknown_tenant"]
    write_rule = [read.version, "v9", "rule_9", "{}", *none]
    assert await call("write_rule", [names.tenant, names.rules, names.idempotency("-")], write_rule) == [b"conflict"]
    assert await call("write_tenant", [names.tenant], [read.version, "v9", "active", "{}"]) == [b"conflict"]
    deleted = await call("delete_tenant", [names.tenant, names.rules, names.key_index], [read.version, read.keys_version])
    assert deleted == [b"conflict"]
    assert await dump(stores.connection) == before
    assert (await stores.tenants.get(second.id)).tenant == second


async def test_limit_state_of_a_deleted_tenant_does_not_count_for_the_next_one(stores: Stores):
    first = await created(stores)
    assert [await admit(stores, first) for _ in range(3)] == [True, True, False]
    await stores.tenants.delete(first.id)
    second = await created(stores)
    assert [await admit(stores, second) for _ in range(3)] == [True, True, False]


async def admit(stores: Stores, tenant: Tenant) -> bool:
    """One request of the tenant's first key against two requests per hour."""
    names = Keyspace(tenant.subdomain)
    spec = LimitSpec("window", LimitKind.LOG, 2, ("rule",), window_ms=3_600_000)
    placed = place_limit(names, tenant.id, "rule_1", spec, 0, ("rule",))
    digest = secret(f"first of {tenant.subdomain}")
    told = await stores.admissions.admit(names, digest, Known(), "x", [])
    assert isinstance(told, Stale)
    limits = [BoundLimit(placed, limit_of(placed.key, ["rule_1"]))]
    decision = await stores.admissions.admit(names, digest, Known(told.version, told.revision), new_tenant_id("r"), limits)
    assert isinstance(decision, Admission)
    return decision.admitted


# Lists


async def test_pages_list_every_tenant_once_and_in_order(stores: Stores):
    tenants = [await created(stores, subdomain) for subdomain in ("b", "a", "d", "a-b", "c")]
    for size in (1, 2, 3, 5, 9):
        found: list[str] = []
        after: str | None = None
        for _ in range(9):
            page, after = await stores.tenants.page(after, size)
            assert len(page) <= size
            found += [stored.tenant.id for stored in page]
            if after is None:
                break
        assert found == sorted(tenant.id for tenant in tenants)


async def test_pages_skip_what_the_index_has_and_the_store_has_not(stores: Stores):
    tenants = [await created(stores, subdomain) for subdomain in ("a", "b", "c")]
    lost = {f"{name}-{number:012x}": 0 for name in ("a", "b", "z") for number in range(4)}
    await stores.connection.client.zadd(tenant_index(), lost | {"nonsense": 0})
    assert [stored.tenant.id for stored in (await stores.tenants.page(None, 2))[0]] == [tenant.id for tenant in tenants[:2]]
    page, after = await stores.tenants.page(tenants[1].id, 2)
    assert ([stored.tenant.id for stored in page], after) == ([tenants[2].id], None)


async def test_a_deletion_that_is_slow_to_tidy_up_does_not_unlist_the_next_tenant(stores: Stores):
    first = await created(stores)
    await stores.tenants.delete(first.id)
    second = await created(stores)
    await stores.connection.client.zrem(tenant_index(), first.id)  # the tidying of the first, late
    assert [stored.tenant for stored in (await stores.tenants.page(None, 9))[0]] == [second]


async def test_an_empty_store_has_an_empty_page(stores: Stores):
    assert await stores.tenants.page(None, 5) == ([], None)
