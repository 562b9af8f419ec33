"""A tenant's API keys as the admin API reads and writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.errors import (
    GatewayError,
    InternalError,
    InvalidApiKey,
    NotFound,
    StoreUnavailable,
    TenantSuspended,
    UnknownTenant,
)
from gateway.models import ApiKey, format_time
from gateway.store.admission import Admissions, Known
from gateway.store.connect import Connection
from gateway.store.documents import parsed, parsed_or_none
from gateway.store.failures import store_errors
from gateway.store.keyspace import Keyspace, key_lookup
from gateway.store.scripts import ScriptRunner
from gateway.store.tenants import TenantStore
from gateway.store.writing import (
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

_READ_AT_ONCE = 200

_NO_RECORD = (b"", b"", None)
"""What is read where something else than a record is stored; its document is damaged."""

SHOWN_DIGEST = 12
"""So much of a digest tells which key is meant."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key, when it was last used (RFC 3339), and its document's entity tag. ``digests`` has the current secret's first."""

    key: ApiKey
    last_used_at: str | None
    etag: str
    revision: str
    digests: tuple[str, ...]


class ApiKeyStore:
    """Every method takes the tenant's id first; a key of another tenant is not found."""

    def __init__(self, connection: Connection, runner: ScriptRunner, tenants: TenantStore, admissions: Admissions) -> None:
        self._connection = connection
        self._admissions = admissions
        self._runner = runner
        self._tenants = tenants

    async def create(self, tenant_id: str, key: ApiKey, secret_digest: str, once: Once | None = None) -> Repeated | None:
        """Store a key. Raises NotFound, IdempotencyConflict."""
        stored = await self._tenants.get(tenant_id)
        keyspace = stored.keyspace
        await self._index(secret_digest, stored.tenant.subdomain)
        reply = await self._runner.call(
            "create_key",
            [keyspace.tenant, keyspace.key_index, keyspace.api_key(secret_digest), keyspace.idempotency(once_digest(once))],
            [
                tenant_id,
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
        await self._forget(secret_digest)
        if reply == [b"unknown_tenant"]:
            raise NotFound
        return repeated_or_conflict(reply)

    async def get(self, tenant_id: str, key_id: str) -> StoredKey:
        """Raises NotFound."""
        stored = await self._tenants.get(tenant_id)
        return await self._read(stored.keyspace, key_id)

    async def all(self, tenant_id: str) -> list[StoredKey]:
        """All keys, also revoked ones, oldest first; damaged ones are left out. Raises NotFound."""
        stored = await self._tenants.get(tenant_id)
        with store_errors():
            index = await self._connection.client.hvals(stored.keyspace.key_index)
        entries = [digests.decode().split() for digests in index]
        found: list[StoredKey | None] = []
        for start in range(0, len(entries), _READ_AT_ONCE):
            found += await self._records(stored.keyspace, entries[start : start + _READ_AT_ONCE])
        return sorted((key for key in found if key is not None), key=lambda stored: (stored.key.created_at, stored.key.id))

    async def authenticate(self, tenant_id: str, secret_digest: str, *, even_suspended: bool = False) -> ApiKey | None:
        """The tenant's active, unexpired key with this secret; None for anything else.

        Decided by the script that the proxy uses, on the store's clock. Raises NotFound, and TenantSuspended unless
        ``even_suspended``.
        """
        stored = await self._tenants.get(tenant_id)
        try:
            current = await self._admissions.validate(stored.keyspace, secret_digest, Known(stored.version))
        except (InvalidApiKey, UnknownTenant):
            return None
        except TenantSuspended:
            if not even_suspended:
                raise
            # the script looks at the key first: it is good
            record = await self._record(stored.keyspace, [secret_digest])
            return None if record is None else record.key
        if current is None or current.key_document is None:
            raise InternalError from AssertionError("validate_key.lua withheld a key that nobody knew")
        return parsed(ApiKey, current.key_document, f"a key of tenant {tenant_id}")

    async def update(
        self, tenant_id: str, key_id: str, change: Callable[[ApiKey], ApiKey], if_match: str | None = None
    ) -> StoredKey:
        """Replace a key by what ``change`` makes of it; holds for a rotated secret in its grace as well.

        Raises NotFound, EditConflict, and what ``change`` raises.
        """

        async def attempt() -> StoredKey:
            stored = await self._tenants.get(tenant_id)
            current = await self._read(stored.keyspace, key_id)
            check_etag(if_match, current.etag)
            changed, revision = change(current.key), new_version()
            document = changed.model_dump_json()
            reply = await self._runner.call(
                "write_key",
                [
                    stored.keyspace.tenant,
                    stored.keyspace.key_index,
                    *(stored.keyspace.api_key(digest) for digest in current.digests),
                ],
                [
                    key_id,
                    " ".join(current.digests),
                    current.revision,
                    revision,
                    changed.status,
                    expiry_argument(changed),
                    document,
                ],
            )
            _check(reply, b"written")
            return StoredKey(changed, current.last_used_at, etag(document.encode()), revision, current.digests)

        return await retried(attempt)

    async def rotate(
        self,
        tenant_id: str,
        key_id: str,
        change: Callable[[ApiKey], ApiKey],
        secret_digest: str,
        grace_ms: int,
        once: Callable[[ApiKey], Once | None] = lambda _: None,
    ) -> StoredKey | Repeated:
        """Give a key a new secret. The one it replaces works for ``grace_ms`` more. Raises NotFound, IdempotencyConflict."""

        async def attempt() -> StoredKey | Repeated:
            stored = await self._tenants.get(tenant_id)
            keyspace = stored.keyspace
            current = await self._read(keyspace, key_id)
            changed, revision = change(current.key), new_version()
            sealed = once(changed)
            replaced, *older = current.digests
            digests = (secret_digest, replaced) if grace_ms > 0 else (secret_digest,)
            reply = await self._runner.call(
                "rotate_key",
                [
                    keyspace.tenant,
                    keyspace.key_index,
                    keyspace.api_key(secret_digest),
                    keyspace.api_key(replaced),
                    keyspace.idempotency(once_digest(sealed)),
                    *(keyspace.api_key(digest) for digest in older),
                ],
                [
                    key_id,
                    " ".join(current.digests),
                    current.revision,
                    revision,
                    changed.status,
                    expiry_argument(changed),
                    changed.model_dump_json(),
                    " ".join(digests),
                    str(grace_ms),
                    *once_arguments(sealed),
                    "",
                ],
            )
            if reply[0] in (b"repeated", b"key_reused"):
                return repeated_or_conflict(reply)
            _check(reply, b"rotated")
            await self._forget(*(older if grace_ms > 0 else current.digests))
            return StoredKey(changed, current.last_used_at, etag(changed.model_dump_json().encode()), revision, digests)

        tenant = await self._tenants.get(tenant_id)
        await self._index(secret_digest, tenant.tenant.subdomain)
        try:
            outcome = await retried(attempt)
        except GatewayError as refusal:
            # without an answer of the store nobody knows whether the new secret is in force
            if not isinstance(refusal, StoreUnavailable):
                await self._forget(secret_digest)
            raise
        if isinstance(outcome, Repeated):
            await self._forget(secret_digest)
        return outcome

    async def _read(self, keyspace: Keyspace, key_id: str) -> StoredKey:
        with store_errors():
            digests = await self._connection.client.hget(keyspace.key_index, key_id)
        found = await self._record(keyspace, digests.decode().split()) if digests else None
        if found is None:
            raise NotFound
        return found

    async def _record(self, keyspace: Keyspace, digests: list[str]) -> StoredKey | None:
        (record,) = await self._records(keyspace, [digests])
        return record

    async def _records(self, keyspace: Keyspace, entries: Sequence[list[str]]) -> list[StoredKey | None]:
        with store_errors():
            pipe = self._connection.client.pipeline(transaction=False)
            for digests in entries:
                pipe.hmget(keyspace.api_key(digests[0]), ["document", "revision", "used_ms"])
            replies = await pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
                    raise reply
        found = [_NO_RECORD if isinstance(reply, Exception) else reply for reply in replies]
        return [_stored(digests, *reply) for digests, reply in zip(entries, found, strict=True)]

    async def _index(self, secret_digest: str, subdomain: str) -> None:
        # before the record: an entry without a record is harmless, a record without its entry could not be found
        with store_errors():
            await self._connection.client.set(key_lookup(secret_digest), subdomain)

    async def _forget(self, *secret_digests: str) -> None:
        with store_errors():
            for secret_digest in secret_digests:  # one by one: in a cluster they live in different slots
                await self._connection.client.delete(key_lookup(secret_digest))


def _stored(digests: list[str], document: bytes | None, revision: bytes, used_ms: bytes | None) -> StoredKey | None:
    if document is None:
        return None
    last_used_at = None
    if used_ms is not None and used_ms.isdigit():  # what is damaged here must not hide the key
        last_used_at = format_time(datetime.fromtimestamp(int(used_ms) / 1_000, UTC))
    key = parsed_or_none(ApiKey, document, f"the key with the digest {digests[0][:SHOWN_DIGEST]}…")
    return None if key is None else StoredKey(key, last_used_at, etag(document), revision.decode(), tuple(digests))


def _check(reply: list[object], wanted: bytes) -> None:
    if reply == [wanted]:
        return
    if reply == [b"conflict"]:
        raise Conflict
    if reply == [b"unknown_key"]:
        raise NotFound
    raise InternalError from AssertionError(f"unexpected reply {reply!r}")
