"""API keys in the store: created, changed, rotated with a grace, revoked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import EditConflict, IdempotencyConflict, NotFound
from gateway.models import ApiKey, Tenant
from gateway.store import Keyspace, Known, Once, Repeated, StoredKey, Stores
from gateway.store.keyspace import key_lookup
from tests.stores import dump
from tests.unit.store.documents import a_key, created, expiring, is_good, keys_of, secret, versions

MINUTE = 60_000


def same(key: ApiKey) -> ApiKey:
    return key


def revoked(key: ApiKey) -> ApiKey:
    return key.model_copy(update={"status": "revoked"})


async def a_stored_key(stores: Stores, tenant: Tenant, name: str = "one") -> ApiKey:
    key = a_key()
    assert await stores.api_keys.create(tenant.id, key, secret(name)) is None
    return key


async def rotate(stores: Stores, tenant: Tenant, key: ApiKey, name: str, grace_ms: int = MINUTE) -> StoredKey:
    rotated = await stores.api_keys.rotate(tenant.id, key.id, same, secret(name), grace_ms)
    assert isinstance(rotated, StoredKey)
    return rotated


async def good(stores: Stores, tenant: Tenant, *names: str) -> list[str]:
    """Those of the secrets that work."""
    return [name for name in names if await is_good(stores, tenant, name)]


async def test_a_created_key_works_and_is_found(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    assert await stores.api_keys.authenticate(tenant.id, secret("one")) == key
    stored = await stores.api_keys.get(tenant.id, key.id)
    assert (stored.key, stored.last_used_at, stored.digests) == (key, None, (secret("one"),))
    assert await stores.admissions.subdomain_of_key(secret("one")) == "testcompany"


async def test_creating_a_key_does_not_change_the_version_of_the_rules(stores: Stores):
    tenant = await created(stores)
    before, keys_before = await versions(stores, tenant)
    await a_stored_key(stores, tenant)
    after, keys_after = await versions(stores, tenant)
    assert before == after
    assert keys_before != keys_after


async def test_keys_are_listed_oldest_first_with_revoked_ones(stores: Stores):
    tenant = await created(stores)
    keys = [a_key(created_at=f"2027-01-01T00:00:0{second}.000Z") for second in (3, 1, 2)]
    for number, key in enumerate(keys):
        await stores.api_keys.create(tenant.id, key, secret(f"{number}"))
    await stores.api_keys.update(tenant.id, keys[1].id, revoked)
    listed = (await stores.api_keys.all(tenant.id))[1:]
    assert [stored.key.id for stored in listed] == [keys[1].id, keys[2].id, keys[0].id]
    assert [stored.key.status for stored in listed] == ["revoked", "active", "active"]


async def test_a_repeated_create_gets_the_first_answer_and_creates_nothing(stores: Stores):
    tenant = await created(stores)
    assert await stores.api_keys.create(tenant.id, a_key(), secret("one"), Once("d", "f", b"answer")) is None
    before = await dump(stores.connection)
    again = await stores.api_keys.create(tenant.id, a_key(), secret("two"), Once("d", "f", b"other"))
    assert again == Repeated(b"answer")
    with pytest.raises(IdempotencyConflict):
        await stores.api_keys.create(tenant.id, a_key(), secret("three"), Once("d", "g", b"other"))
    assert await dump(stores.connection) == before


async def test_when_a_key_was_last_used_is_told(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await stores.connection.client.hset(Keyspace("testcompany").api_key(secret("one")), "used_ms", "1767225600123")
    assert (await stores.api_keys.get(tenant.id, key.id)).last_used_at == "2026-01-01T00:00:00.123Z"
    await rotate(stores, tenant, key, "two")
    assert (await stores.api_keys.get(tenant.id, key.id)).last_used_at == "2026-01-01T00:00:00.123Z"


# Edits


async def test_a_change_holds_for_the_next_request(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    before = await stores.api_keys.get(tenant.id, key.id)
    updated = await stores.api_keys.update(tenant.id, key.id, lambda key: key.model_copy(update={"name": "new"}))
    assert updated == await stores.api_keys.get(tenant.id, key.id)
    assert updated.revision != before.revision
    version = (await stores.tenants.get(tenant.id)).version
    told = await stores.admissions.validate(Keyspace("testcompany"), secret("one"), Known(version, before.revision))
    assert told is not None
    assert told.key_document == updated.key.model_dump_json().encode()
    assert await stores.admissions.validate(Keyspace("testcompany"), secret("one"), Known(version, updated.revision)) is None


async def test_a_revoked_key_ends_at_once_and_stays_in_the_list(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await stores.api_keys.update(tenant.id, key.id, revoked)
    assert not await is_good(stores, tenant, "one")
    assert (await stores.api_keys.get(tenant.id, key.id)).key.status == "revoked"


@pytest.mark.parametrize(("seconds", "works"), [(-1, False), (3_600, True)])
async def test_a_key_ends_when_it_says(stores: Stores, seconds: int, works: bool):
    tenant = await created(stores)
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    await stores.api_keys.create(tenant.id, expiring(moment), secret("expiring"))
    assert await is_good(stores, tenant, "expiring") == works
    key = await a_stored_key(stores, tenant)
    await stores.api_keys.update(tenant.id, key.id, lambda key: key.model_copy(update={"expires_at": moment}))
    assert await is_good(stores, tenant, "one") == works
    await stores.api_keys.update(tenant.id, key.id, lambda key: key.model_copy(update={"expires_at": None}))
    assert await is_good(stores, tenant, "one")


async def test_concurrent_changes_of_one_key_are_all_kept(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)

    async def add(number: int) -> None:
        await stores.api_keys.update(
            tenant.id, key.id, lambda key: key.model_copy(update={"metadata": key.metadata | {f"n{number}": "x"}})
        )

    await asyncio.gather(*(add(number) for number in range(6)))
    assert len((await stores.api_keys.get(tenant.id, key.id)).key.metadata) == 6


async def test_if_match_guards_a_change(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    tag = (await stores.api_keys.get(tenant.id, key.id)).etag
    updated = await stores.api_keys.update(tenant.id, key.id, lambda key: key.model_copy(update={"name": "b"}), if_match=tag)
    with pytest.raises(EditConflict):
        await stores.api_keys.update(tenant.id, key.id, same, if_match=tag)
    await stores.api_keys.update(tenant.id, key.id, same, if_match=updated.etag)


async def test_a_key_of_another_tenant_is_not_found(stores: Stores):
    owner, other = await created(stores, "owner"), await created(stores, "other")
    key = await a_stored_key(stores, owner)
    before = await dump(stores.connection)
    for call in (
        stores.api_keys.get(other.id, key.id),
        stores.api_keys.update(other.id, key.id, revoked),
        stores.api_keys.rotate(other.id, key.id, same, secret("stolen"), MINUTE),
    ):
        with pytest.raises(NotFound):
            await call
    assert await dump(stores.connection) == before
    assert not await is_good(stores, other, "one")
    assert [stored.key.id for stored in await stores.api_keys.all(other.id)] != [key.id]


# Rotation


async def test_after_a_rotation_old_and_new_secret_work_until_the_grace_ends(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await rotate(stores, tenant, key, "two", grace_ms=MINUTE)
    assert await good(stores, tenant, "one", "two") == ["one", "two"]
    names = Keyspace("testcompany")
    ends = int(await stores.connection.client.hget(names.api_key(secret("one")), "grace_ends_ms"))
    for now, name, word in (
        (ends - 1, "one", b"stale"),
        (ends, "one", b"invalid_key"),
        (ends - 1, "two", b"stale"),
        (ends, "two", b"stale"),
    ):
        keys = [names.tenant, names.rules, names.api_key(secret(name))]
        assert (await stores.runner.call("validate_key", keys, ["", "", str(now)]))[0] == word


async def test_the_grace_is_written_in_milliseconds_on_the_servers_clock(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await rotate(stores, tenant, key, "two", grace_ms=MINUTE)
    client, record = stores.connection.client, Keyspace("testcompany").api_key(secret("one"))
    seconds, _ = await client.time()
    assert 0 <= seconds * 1_000 + MINUTE - int(await client.hget(record, "grace_ends_ms")) + 1_000 < 5_000
    assert MINUTE - 5_000 < await client.pttl(record) <= MINUTE


async def test_without_grace_the_old_secret_ends_at_once(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    rotated = await rotate(stores, tenant, key, "two", grace_ms=0)
    assert await good(stores, tenant, "one", "two") == ["two"]
    assert rotated.digests == (secret("two"),)
    assert key_lookup(secret("one")) not in await keys_of(stores)


async def test_a_second_rotation_ends_the_first_secret_and_gives_grace_to_the_second(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await rotate(stores, tenant, key, "two")
    await rotate(stores, tenant, key, "three")
    assert await good(stores, tenant, "one", "two", "three") == ["two", "three"]
    await rotate(stores, tenant, key, "four")
    assert await good(stores, tenant, "one", "two", "three", "four") == ["three", "four"]
    await rotate(stores, tenant, key, "five", grace_ms=0)
    assert await good(stores, tenant, "one", "two", "three", "four", "five") == ["five"]
    names = await keys_of(stores)
    assert {name for name in names if name.startswith("gw:{testcompany}:key:")} == {
        Keyspace("testcompany").api_key(secret(name)) for name in ("first of testcompany", "five")
    }
    assert {name for name in names if name.startswith("gw:index:key:")} == {
        key_lookup(secret(name)) for name in ("first of testcompany", "five")
    }


async def test_revoking_during_the_grace_ends_both_secrets(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await rotate(stores, tenant, key, "two")
    await stores.api_keys.update(tenant.id, key.id, revoked)
    assert await good(stores, tenant, "one", "two") == []


async def test_a_change_during_the_grace_holds_for_both_secrets_and_does_not_prolong_the_old_one(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await rotate(stores, tenant, key, "two")
    record = Keyspace("testcompany").api_key(secret("one"))
    grace = await stores.connection.client.hget(record, "grace_ends_ms")
    updated = await stores.api_keys.update(tenant.id, key.id, lambda key: key.model_copy(update={"name": "new"}))
    for name in ("one", "two"):
        assert await stores.api_keys.authenticate(tenant.id, secret(name)) == updated.key
    assert await stores.connection.client.hget(record, "grace_ends_ms") == grace
    assert await stores.connection.client.pttl(record) > 0


async def test_a_change_after_the_grace_does_not_bring_the_old_secret_back(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await rotate(stores, tenant, key, "two")
    await stores.connection.client.delete(Keyspace("testcompany").api_key(secret("one")))  # as its life's end does
    await stores.api_keys.update(tenant.id, key.id, same)
    assert await good(stores, tenant, "one", "two") == ["two"]


async def test_what_a_rotation_changes_holds_for_the_old_secret_too(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    past = datetime.now(UTC) - timedelta(seconds=1)
    await stores.api_keys.rotate(
        tenant.id, key.id, lambda key: key.model_copy(update={"expires_at": past}), secret("two"), MINUTE
    )
    assert await good(stores, tenant, "one", "two") == []


async def test_rotating_a_revoked_key_does_not_make_it_work_again(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    await stores.api_keys.update(tenant.id, key.id, revoked)
    await rotate(stores, tenant, key, "two")
    assert await good(stores, tenant, "one", "two") == []


async def test_a_revocation_beats_a_rotation_at_the_same_time(stores: Stores):
    tenant = await created(stores)
    for number in range(5):
        key = await a_stored_key(stores, tenant, f"old{number}")
        await asyncio.gather(rotate(stores, tenant, key, f"new{number}"), stores.api_keys.update(tenant.id, key.id, revoked))
        assert await good(stores, tenant, f"old{number}", f"new{number}") == []


async def test_of_concurrent_rotations_the_last_two_secrets_work(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    names = [f"n{number}" for number in range(5)]
    await asyncio.gather(*(rotate(stores, tenant, key, name) for name in names))
    working = await good(stores, tenant, "one", *names)
    current = await stores.api_keys.get(tenant.id, key.id)
    assert {secret(name) for name in working} == set(current.digests)
    assert len(working) == 2


async def test_a_repeated_rotation_gets_the_first_answer_and_rotates_once(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)

    async def attempt(name: str, fingerprint: str = "f") -> StoredKey | Repeated:
        return await stores.api_keys.rotate(
            tenant.id, key.id, same, secret(name), MINUTE, lambda _: Once("d", fingerprint, name.encode())
        )

    assert isinstance(await attempt("two"), StoredKey)
    before = await dump(stores.connection)
    assert await attempt("three") == Repeated(b"two")
    with pytest.raises(IdempotencyConflict):
        await attempt("four", "g")
    assert await dump(stores.connection) == before
    assert await good(stores, tenant, "one", "two", "three", "four") == ["one", "two"]


async def test_rotating_a_key_that_does_not_exist_leaves_nothing(stores: Stores):
    tenant = await created(stores)
    before = await dump(stores.connection)
    with pytest.raises(NotFound):
        await stores.api_keys.rotate(tenant.id, "key_none", same, secret("two"), MINUTE)
    assert await dump(stores.connection) == before


async def test_every_write_gives_a_new_revision(stores: Stores):
    tenant = await created(stores)
    key = await a_stored_key(stores, tenant)
    seen = [(await stores.api_keys.get(tenant.id, key.id)).revision]
    seen.append((await rotate(stores, tenant, key, "two")).revision)
    seen.append((await stores.api_keys.update(tenant.id, key.id, same)).revision)
    seen.append((await stores.api_keys.update(tenant.id, key.id, same)).revision)
    assert len(set(seen)) == 4
    assert (await versions(stores, tenant))[1] == seen[-1].encode()
