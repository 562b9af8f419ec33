"""A tenant's rules as the admin API reads and writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from gateway.errors import GatewayError, InternalError, InvalidField, NotFound
from gateway.models import Rule, Tenant
from gateway.store.connect import Connection
from gateway.store.documents import parsed, parsed_or_none
from gateway.store.failures import store_errors
from gateway.store.scripts import ScriptRunner
from gateway.store.tenants import StoredTenant, TenantStore
from gateway.store.writing import (
    Conflict,
    Once,
    Repeated,
    check_etag,
    etag,
    new_version,
    once_arguments,
    once_digest,
    repeated_or_conflict,
    retried,
)

MAX_RULES = 500
MAX_RULES_BYTES = 4 << 20
"""Of one tenant: Redis reads all of them in one call, and a replica compiles them while it serves nobody."""

CheckAmong = Callable[[Rule, Sequence[Rule]], None]
"""Raises a GatewayError for a rule that may not stand beside the tenant's other rules."""


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule and the entity tag of its document."""

    rule: Rule
    etag: str


class RuleStore:
    """Every method takes the tenant's id first; a rule of another tenant is not found."""

    def __init__(self, connection: Connection, runner: ScriptRunner, tenants: TenantStore) -> None:
        self._connection = connection
        self._runner = runner
        self._tenants = tenants

    async def create(
        self,
        tenant_id: str,
        build: Callable[[Tenant], Rule],
        once: Callable[[Rule], Once | None] = lambda _: None,
        check: CheckAmong = lambda _rule, _others: None,
    ) -> StoredRule | Repeated:
        """Store what ``build`` makes for this tenant.

        Raises NotFound, IdempotencyConflict, InvalidField if the tenant has too many, and what ``build`` and ``check`` raise.
        """

        async def attempt() -> StoredRule | Repeated:
            stored = await self._tenants.get(tenant_id)
            rule = build(stored.tenant)
            others = await self._all(stored)  # read after the version, so whoever adds one meanwhile makes this a conflict
            try:
                check(rule, others)
            except GatewayError:
                repeated = await self._repeated(stored, once(rule))  # whose first request may be what there is too much of
                if repeated is None:
                    raise
                return repeated
            repeated = await self._write(stored, rule.id, rule.model_dump_json(), once(rule))
            return repeated or StoredRule(rule, etag(rule.model_dump_json().encode()))

        return await retried(attempt)

    async def get(self, tenant_id: str, rule_id: str) -> StoredRule:
        """Raises NotFound."""
        return await self._read(await self._tenants.get(tenant_id), rule_id)

    async def all(self, tenant_id: str) -> list[Rule]:
        """All rules, oldest first; damaged ones are left out. Raises NotFound."""
        return await self._all(await self._tenants.get(tenant_id))

    async def update(
        self,
        tenant_id: str,
        rule_id: str,
        change: Callable[[Tenant, Rule], Rule],
        if_match: str | None = None,
        check: CheckAmong = lambda _rule, _others: None,
    ) -> StoredRule:
        """Replace a rule by what ``change`` makes of it.

        Raises NotFound, EditConflict, InvalidField if the tenant's are too large, and what ``change`` and ``check`` raise.
        """

        async def attempt() -> StoredRule:
            stored = await self._tenants.get(tenant_id)
            current = await self._read(stored, rule_id)
            check_etag(if_match, current.etag)
            changed = change(stored.tenant, current.rule)
            check(changed, [rule for rule in await self._all(stored) if rule.id != rule_id])
            await self._write(stored, rule_id, changed.model_dump_json(), None)
            return StoredRule(changed, etag(changed.model_dump_json().encode()))

        return await retried(attempt)

    async def delete(self, tenant_id: str, rule_id: str, if_match: str | None = None) -> None:
        """Also one that is damaged. Raises NotFound, EditConflict."""

        async def attempt() -> None:
            stored = await self._tenants.get(tenant_id)
            check_etag(if_match, etag(await self._document(stored, rule_id)))
            await self._write(stored, rule_id, "", None)

        await retried(attempt)

    async def _all(self, stored: StoredTenant) -> list[Rule]:
        with store_errors():
            documents = await self._connection.client.hgetall(stored.keyspace.rules)
        named = [(document, _named(stored.tenant.id, rule_id)) for rule_id, document in documents.items()]
        found = [parsed_or_none(Rule, document, name) for document, name in named]
        return sorted([rule for rule in found if rule is not None], key=lambda rule: (rule.created_at, rule.id))

    async def _repeated(self, stored: StoredTenant, once: Once | None) -> Repeated | None:
        """The answer to a request that was made before."""
        with suppress(Conflict):
            return await self._write(replace(stored, version=""), "", "", once)
        return None

    async def _read(self, stored: StoredTenant, rule_id: str) -> StoredRule:
        document = await self._document(stored, rule_id)
        return StoredRule(parsed(Rule, document, _named(stored.tenant.id, rule_id.encode())), etag(document))

    async def _document(self, stored: StoredTenant, rule_id: str) -> bytes:
        with store_errors():
            document: bytes | None = await self._connection.client.hget(stored.keyspace.rules, rule_id)
        if document is None:
            raise NotFound
        return document

    async def _write(self, stored: StoredTenant, rule_id: str, document: str, once: Once | None) -> Repeated | None:
        keyspace = stored.keyspace
        reply = await self._runner.call(
            "write_rule",
            [keyspace.tenant, keyspace.rules, keyspace.idempotency(once_digest(once))],
            [stored.version, new_version(), rule_id, document, *once_arguments(once), str(MAX_RULES), str(MAX_RULES_BYTES)],
        )
        match reply:
            case [b"written"]:
                return None
            case [b"conflict"]:
                raise Conflict
            case [b"unknown_tenant"]:
                raise NotFound
            case [b"full"]:
                raise InvalidField(
                    f"The tenant would have more than {MAX_RULES} rules or {MAX_RULES_BYTES} bytes of them.", param="rules"
                )
            case [b"repeated" | b"key_reused", *_]:
                return repeated_or_conflict(reply)
        raise InternalError from AssertionError(f"write_rule.lua replied {reply!r}")


def _named(tenant_id: str, rule_id: bytes) -> str:
    return f"rule {rule_id.decode(errors='replace')} of tenant {tenant_id}"
