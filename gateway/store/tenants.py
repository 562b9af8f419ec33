"""Tenants as the admin API reads and writes them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gateway.errors import IdempotencyConflict, InternalError, NotFound, SubdomainTaken
from gateway.models import ApiKey, Tenant
from gateway.store.connect import Connection
from gateway.store.documents import parsed
from gateway.store.failures import store_errors
from gateway.store.keyspace import Keyspace, key_lookup, tenant_creation, tenant_index
from gateway.store.receipts import ReceiptIndex
from gateway.store.scripts import ScriptRunner
from gateway.store.usage import forget_usage
from gateway.store.writing import (
    ANSWER_TTL_MS,
    Conflict,
    Once,
    Repeated,
    check_etag,
    etag,
    expiry_argument,
    new_version,
    once_arguments,
    once_digest,
    repeated_or_conflict,
    retried,
)

_ID = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)-([0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class StoredTenant:
    """A tenant, the version of its configuration that was read, and the entity tag of its document."""

    tenant: Tenant
    version: str
    keys_version: str
    etag: str

    @property
    def keyspace(self) -> Keyspace:
        """Where its keys are."""
        return Keyspace(self.tenant.subdomain)


def new_tenant_id(subdomain: str) -> str:
    """An identifier that tells in which slot of a cluster the tenant lives, and never returns for another tenant."""
    return f"{subdomain}-{secrets.token_hex(6)}"


class TenantStore:
    """Every method takes the tenant's id; another tenant's data cannot be named."""

    def __init__(self, connection: Connection, runner: ScriptRunner, receipts: ReceiptIndex) -> None:
        self._connection = connection
        self._runner = runner
        self._receipts = receipts

    async def create(self, tenant: Tenant, key: ApiKey, secret_digest: str, once: Once | None = None) -> Repeated | None:
        """Store a tenant with its first key. Raises SubdomainTaken, IdempotencyConflict."""
        keyspace = Keyspace(tenant.subdomain)
        claimed = await self._claim(once)
        with store_errors():
            # indexes first: an entry without a record is harmless, a record without its entry would be lost
            await self._connection.client.set(key_lookup(secret_digest), tenant.subdomain)
            await self._connection.client.zadd(tenant_index(), {tenant.id: 0})
        reply = await self._runner.call(
            "create_tenant",
            [keyspace.tenant, keyspace.key_index, keyspace.api_key(secret_digest), keyspace.idempotency(once_digest(once))],
            [
                tenant.id,
                new_version(),
                tenant.model_dump_json(),
                key.id,
                secret_digest,
                new_version(),
                expiry_argument(key),
                key.model_dump_json(),
                *once_arguments(once),
            ],
        )
        if reply == [b"created"]:
            return None
        with store_errors():
            await self._connection.client.delete(key_lookup(secret_digest))
            await self._connection.client.zrem(tenant_index(), tenant.id)
        if reply == [b"subdomain_taken"]:
            if claimed is not None:
                with store_errors():
                    await self._connection.client.delete(claimed)
            raise SubdomainTaken(param="subdomain")
        return repeated_or_conflict(reply)

    async def _claim(self, once: Once | None) -> str | None:
        """Note which request an Idempotency-Key is for; the name of the note if there was none. Raises IdempotencyConflict.

        The script compares requests as well, but only those for its own subdomain.
        """
        if once is None:
            return None
        name = tenant_creation(once.digest)
        with store_errors():
            if await self._connection.client.set(name, once.fingerprint, nx=True, px=int(ANSWER_TTL_MS)):
                return name
            stored = await self._connection.client.get(name)
        if stored is not None and stored.decode() != once.fingerprint:
            raise IdempotencyConflict(param="Idempotency-Key")
        return None

    async def get(self, tenant_id: str) -> StoredTenant:
        """The tenant of this id. Raises NotFound."""
        stored = await self._find(tenant_id)
        if stored is None:
            raise NotFound
        return stored

    async def _find(self, tenant_id: str) -> StoredTenant | None:
        match = _ID.fullmatch(tenant_id)
        stored = await self.by_subdomain(match[1]) if match else None
        return stored if stored is not None and stored.tenant.id == tenant_id else None

    async def by_subdomain(self, subdomain: str) -> StoredTenant | None:
        """The tenant that has the subdomain. Raises InternalError if its document is damaged."""
        with store_errors():
            version, keys_version, document = await self._connection.client.hmget(
                Keyspace(subdomain).tenant, ["version", "keys_version", "document"]
            )
        if version is None:
            return None
        tenant = parsed(Tenant, document, f"tenant {subdomain}")
        return StoredTenant(tenant, version.decode(), keys_version.decode(), etag(document))

    async def page(self, after: str | None, limit: int) -> tuple[list[StoredTenant], str | None]:
        """Up to ``limit`` tenants in the order of their ids, behind the id ``after``, and where the next page begins.

        Damaged ones are left out.
        """
        found: list[StoredTenant] = []
        position = after
        exhausted = False
        while len(found) <= limit and not exhausted:
            with store_errors():
                names = await self._connection.client.zrangebylex(
                    tenant_index(), f"({position}" if position else "-", "+", start=0, num=limit + 1
                )
            exhausted = len(names) <= limit
            for name in names:
                position = name.decode()
                with suppress(InternalError):
                    stored = await self._find(position)
                    if stored is not None:
                        found.append(stored)
        more = len(found) > limit
        return found[:limit], found[limit - 1].tenant.id if more else None

    async def update(self, tenant_id: str, change: Callable[[Tenant], Tenant], if_match: str | None = None) -> StoredTenant:
        """Replace a tenant by what ``change`` makes of it. Raises NotFound, EditConflict, and whatever ``change`` raises."""

        async def attempt() -> StoredTenant:
            stored = await self.get(tenant_id)
            check_etag(if_match, stored.etag)
            changed = change(stored.tenant)
            document, version = changed.model_dump_json(), new_version()
            reply = await self._runner.call(
                "write_tenant", [stored.keyspace.tenant], [stored.version, version, changed.status, document]
            )
            _check_written(reply)
            return StoredTenant(changed, version, stored.keys_version, etag(document.encode()))

        return await retried(attempt)

    async def delete(self, tenant_id: str, if_match: str | None = None) -> None:
        """Remove a tenant with its rules, keys and usage, also one that is damaged. Receipts stay until they are exported.

        Raises NotFound, EditConflict.
        """

        async def attempt() -> None:
            keyspace = Keyspace.of_tenant(tenant_id)
            with store_errors():
                stored_id, version, keys_version, document = await self._connection.client.hmget(
                    keyspace.tenant, ["id", "version", "keys_version", "document"]
                )
            if _ID.fullmatch(tenant_id) is None or version is None or stored_id != tenant_id.encode():
                raise NotFound
            check_etag(if_match, etag(document or b""))
            with store_errors():
                index = await self._connection.client.hvals(keyspace.key_index)
            digests = [digest for entry in index for digest in entry.decode().split()]
            reply = await self._runner.call(
                "delete_tenant",
                [keyspace.tenant, keyspace.rules, keyspace.key_index, *(keyspace.api_key(digest) for digest in digests)],
                [version, keys_version or b""],
            )
            _check_written(reply)
            await forget_usage(self._connection, tenant_id)
            await self._receipts.note_deleted(tenant_id)
            with store_errors():
                await self._connection.client.zrem(tenant_index(), tenant_id)
                for digest in digests:
                    await self._connection.client.delete(key_lookup(digest))

        await retried(attempt)


def _check_written(reply: list[object]) -> None:
    match reply:
        case [b"written" | b"deleted"]:
            return
        case [b"conflict"]:
            raise Conflict
        case [b"unknown_tenant"]:
            raise NotFound
    raise InternalError from AssertionError(f"unexpected reply {reply!r}")
