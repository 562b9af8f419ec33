"""Rules in the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.errors import EditConflict, IdempotencyConflict, InvalidField, NotFound
from gateway.models import Rule, Tenant
from gateway.store import Once, Repeated, StoredRule, Stores, new_id
from tests.builders import a_rule
from tests.stores import dump
from tests.unit.store.documents import created, versions


def build(**fields: str) -> Rule:
    return a_rule(id=new_id("rule"), **fields)


async def create(stores: Stores, tenant: Tenant, **fields: str) -> StoredRule:
    stored = await stores.rules.create(tenant.id, lambda _: build(**fields))
    assert isinstance(stored, StoredRule)
    return stored


async def test_a_created_rule_is_found_and_changes_the_tenants_version(stores: Stores):
    tenant = await created(stores)
    before, keys_before = await versions(stores, tenant)
    stored = await create(stores, tenant, path="/v1/a")
    assert await stores.rules.get(tenant.id, stored.rule.id) == stored
    after, keys_after = await versions(stores, tenant)
    assert before != after
    assert keys_before == keys_after


async def test_a_rule_is_made_for_the_tenant_as_it_is_stored(stores: Stores):
    tenant = await created(stores, name="Known")
    stored = await stores.rules.create(tenant.id, lambda tenant: build(name=tenant.name))
    assert isinstance(stored, StoredRule)
    assert stored.rule.name == "Known"


async def test_what_building_a_rule_raises_is_passed_on_and_nothing_is_written(stores: Stores):
    tenant = await created(stores)
    before = await dump(stores.connection)

    def refuse(_: Tenant) -> Rule:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await stores.rules.create(tenant.id, refuse)
    assert await dump(stores.connection) == before


async def test_rules_are_listed_oldest_first(stores: Stores):
    tenant = await created(stores)
    for second in (5, 1, 3):
        await create(stores, tenant, created_at=f"2026-01-01T00:00:0{second}.000Z")
    assert [rule.created_at[18] for rule in await stores.rules.all(tenant.id)] == ["1", "3", "5"]


async def test_concurrent_creates_are_all_kept_and_leave_one_version(stores: Stores):
    tenant = await created(stores)
    rules = await asyncio.gather(*(create(stores, tenant) for _ in range(6)))
    assert {rule.id for rule in await stores.rules.all(tenant.id)} == {stored.rule.id for stored in rules}


async def test_an_update_replaces_the_rule_and_changes_the_version(stores: Stores):
    tenant = await created(stores)
    stored = await create(stores, tenant)
    before, _ = await versions(stores, tenant)
    updated = await stores.rules.update(
        tenant.id, stored.rule.id, lambda tenant, rule: rule.model_copy(update={"name": tenant.name})
    )
    assert updated.etag != stored.etag
    assert await stores.rules.get(tenant.id, stored.rule.id) == updated
    assert (await versions(stores, tenant))[0] != before


async def test_concurrent_updates_of_one_rule_are_all_kept(stores: Stores):
    tenant = await created(stores)
    stored = await create(stores, tenant)

    async def add(number: int) -> None:
        await stores.rules.update(
            tenant.id,
            stored.rule.id,
            lambda _, rule: rule.model_copy(update={"metadata": rule.metadata | {f"n{number}": "x"}}),
        )

    await asyncio.gather(*(add(number) for number in range(6)))
    assert len((await stores.rules.get(tenant.id, stored.rule.id)).rule.metadata) == 6


async def test_if_match_guards_update_and_delete(stores: Stores):
    tenant = await created(stores)
    stored = await create(stores, tenant)
    updated = await stores.rules.update(
        tenant.id, stored.rule.id, lambda _, rule: rule.model_copy(update={"name": "new"}), if_match=stored.etag
    )
    before = await dump(stores.connection)
    with pytest.raises(EditConflict):
        await stores.rules.update(tenant.id, stored.rule.id, lambda _, rule: rule, if_match=stored.etag)
    with pytest.raises(EditConflict):
        await stores.rules.delete(tenant.id, stored.rule.id, if_match=stored.etag)
    assert await dump(stores.connection) == before
    await stores.rules.delete(tenant.id, stored.rule.id, if_match=updated.etag)


async def test_a_deleted_rule_is_gone_and_the_version_has_changed(stores: Stores):
    tenant = await created(stores)
    stored, kept = await create(stores, tenant), await create(stores, tenant)
    before, _ = await versions(stores, tenant)
    await stores.rules.delete(tenant.id, stored.rule.id)
    assert [rule.id for rule in await stores.rules.all(tenant.id)] == [kept.rule.id]
    assert (await versions(stores, tenant))[0] != before
    for call in (
        stores.rules.get(tenant.id, stored.rule.id),
        stores.rules.delete(tenant.id, stored.rule.id),
        stores.rules.update(tenant.id, stored.rule.id, lambda _, rule: rule),
    ):
        with pytest.raises(NotFound):
            await call


async def test_an_update_does_not_bring_back_a_rule_that_is_deleted_meanwhile(stores: Stores):
    tenant = await created(stores)
    for _ in range(5):
        stored = await create(stores, tenant)
        await asyncio.gather(
            stores.rules.delete(tenant.id, stored.rule.id),
            *(stores.rules.update(tenant.id, stored.rule.id, lambda _, rule: rule) for _ in range(3)),
            return_exceptions=True,
        )
        assert await stores.rules.all(tenant.id) == []


async def test_a_rule_of_another_tenant_is_not_found(stores: Stores):
    owner, other = await created(stores, "owner"), await created(stores, "other")
    stored = await create(stores, owner)
    before = await dump(stores.connection)
    for call in (
        stores.rules.get(other.id, stored.rule.id),
        stores.rules.delete(other.id, stored.rule.id),
        stores.rules.update(other.id, stored.rule.id, lambda _, rule: rule),
    ):
        with pytest.raises(NotFound):
            await call
    assert await dump(stores.connection) == before
    assert await stores.rules.all(other.id) == []


async def test_a_repeated_create_gets_the_first_answer_and_creates_nothing(stores: Stores):
    tenant = await created(stores)
    await stores.rules.create(tenant.id, lambda _: build(), lambda rule: Once("d", "f", rule.id.encode()))
    before = await dump(stores.connection)
    (first,) = await stores.rules.all(tenant.id)
    again = await stores.rules.create(tenant.id, lambda _: build(), lambda rule: Once("d", "f", rule.id.encode()))
    assert again == Repeated(first.id.encode())
    with pytest.raises(IdempotencyConflict):
        await stores.rules.create(tenant.id, lambda _: build(), lambda _: Once("d", "g", b""))
    assert await dump(stores.connection) == before


async def test_of_concurrent_creates_with_one_idempotency_key_one_is_stored(stores: Stores):
    tenant = await created(stores)
    outcomes = await asyncio.gather(
        *(stores.rules.create(tenant.id, lambda _: build(), lambda rule: Once("d", "f", rule.id.encode())) for _ in range(9))
    )
    (rule,) = await stores.rules.all(tenant.id)
    assert [outcome for outcome in outcomes if isinstance(outcome, Repeated)] == [Repeated(rule.id.encode())] * 8


async def test_a_tenant_has_so_many_rules_and_no_more_and_a_repeated_create_still_gets_its_answer(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.store.rules.MAX_RULES", 3)
    tenant, other = await created(stores), await created(stores, subdomain="other")
    first = await create(stores, tenant)
    await create(stores, tenant)

    async def once() -> StoredRule | Repeated:
        return await stores.rules.create(tenant.id, lambda _: build(), lambda rule: Once("d", "f", rule.id.encode()))

    third = await once()
    assert isinstance(third, StoredRule)
    before = await dump(stores.connection)
    with pytest.raises(InvalidField, match="3 rules"):
        await create(stores, tenant)
    assert await once() == Repeated(third.rule.id.encode())
    assert await dump(stores.connection) == before
    await create(stores, other)
    edited = await stores.rules.update(tenant.id, first.rule.id, lambda _, rule: rule.model_copy(update={"name": "new"}))
    assert edited.rule.name == "new"
    await stores.rules.delete(tenant.id, first.rule.id)
    await create(stores, tenant)


async def test_what_is_stored_of_a_tenant_s_rules_is_bounded_and_may_always_shrink(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    tenant = await created(stores)
    first, second = await create(stores, tenant, name="a" * 50), await create(stores, tenant)
    stored = sum(len(rule.model_dump_json()) for rule in (first.rule, second.rule))

    async def rename(rule: Rule, name: str) -> None:
        await stores.rules.update(tenant.id, rule.id, lambda _, rule: rule.model_copy(update={"name": name}))

    monkeypatch.setattr("gateway.store.rules.MAX_RULES_BYTES", stored)
    with pytest.raises(InvalidField, match="bytes"):
        await create(stores, tenant)
    with pytest.raises(InvalidField, match="bytes"):
        await rename(first.rule, "a" * 51)
    monkeypatch.setattr("gateway.store.rules.MAX_RULES_BYTES", 10)
    await rename(first.rule, "a" * 49)
    assert (await stores.rules.get(tenant.id, first.rule.id)).rule.name == "a" * 49


async def test_a_check_sees_the_other_rules_and_comes_after_the_question_whether_the_request_is_repeated(stores: Stores):
    tenant = await created(stores)
    seen: list[list[str]] = []

    def check(rule: Rule, others: Sequence[Rule]) -> None:
        seen.append([other.id for other in others])
        if others:
            raise InvalidField("too many")

    async def once() -> StoredRule | Repeated:
        return await stores.rules.create(tenant.id, lambda _: build(), lambda rule: Once("d", "f", rule.id.encode()), check)

    first = await once()
    assert isinstance(first, StoredRule)
    assert await once() == Repeated(first.rule.id.encode())
    with pytest.raises(InvalidField, match="too many"):
        await stores.rules.create(tenant.id, lambda _: build(), check=check)
    await stores.rules.update(tenant.id, first.rule.id, lambda _, rule: rule, check=check)
    assert seen == [[], [first.rule.id], [first.rule.id], []]
