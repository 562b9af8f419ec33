"""The one call that decides a request: tenant, key, configuration version and every limit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.errors import InternalError, InvalidApiKey, TenantSuspended, UnknownTenant
from gateway.plugin import LimitState
from gateway.store.connect import Connection
from gateway.store.failures import store_errors
from gateway.store.keyspace import Keyspace, key_lookup
from gateway.store.placed import INTEGERS_PER_LIMIT, PERIOD, BoundLimit, states_of
from gateway.store.scripts import ScriptRunner


class Admission(NamedTuple):
    """What was decided. ``states`` stand in the order of the limits that were asked."""

    admitted: bool
    now_ms: int
    states: tuple[LimitState, ...]


@dataclass(frozen=True, slots=True)
class Stale:
    """The caller's configuration is not the current one; nothing was decided. None where the caller's own is current.

    ``grace_ends_ms`` is when a key whose secret was replaced ends.
    """

    version: str
    tenant_document: bytes | None
    rule_documents: tuple[bytes, ...]
    revision: str
    key_document: bytes | None
    grace_ends_ms: int | None = None


class Known(NamedTuple):
    """What the caller knows of the configuration; empty texts for nothing."""

    version: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Unseeded:
    """The store has no count of these budgets, so nothing was decided: `Admissions.seed` them, then ask again."""

    now_ms: int
    limits: tuple[BoundLimit, ...]


@dataclass(frozen=True, slots=True)
class Peeked:
    """What limits say before a request. ``unseeded`` are the indexes of budgets of which the store has no count."""

    now_ms: int
    states: tuple[LimitState, ...]
    unseeded: tuple[int, ...]


class Admissions:
    """Calls ``admit``, ``validate_key``, ``lookup_tenant``, ``peek`` and ``seed_budget``."""

    def __init__(self, connection: Connection, runner: ScriptRunner, lease_ms: int) -> None:
        self._connection = connection
        self._runner = runner
        self._lease_ms = str(lease_ms)
        self._asking: dict[str, asyncio.Task[str | None]] = {}

    async def admit(
        self, keyspace: Keyspace, secret_digest: str, known: Known, admission_id: str, limits: Sequence[BoundLimit]
    ) -> Admission | Stale | Unseeded:
        """Decide a request, atomically and in one round trip.

        ``admission_id`` is random and never a client's: repeating it repeats the first decision. Raises UnknownTenant,
        InvalidApiKey, TenantSuspended, StoreUnavailable. After any other outcome than a value, settle it with the same id and
        without a time of admission.
        """
        keys = [keyspace.tenant, keyspace.rules, keyspace.api_key(secret_digest), keyspace.marker(admission_id), keyspace.clock]
        arguments: list[str] = [known.version, known.revision, self._lease_ms, admission_id, ""]
        for limit in limits:
            keys.append(limit.key)
            arguments.extend(limit.arguments)
        reply = await self._runner.call("admit", keys, arguments)
        match reply:
            case [b"admitted" | b"replayed", int(now_ms), *numbers]:
                return Admission(True, now_ms, states_of(limits, numbers))
            case [b"limited", int(now_ms), *numbers]:
                return Admission(False, now_ms, states_of(limits, numbers))
            case [b"unseeded", int(now_ms), *places]:
                return Unseeded(now_ms, tuple(limits[place - 1] for place in places))
        return _stale_or_refused("admit", reply)

    async def validate(self, keyspace: Keyspace, secret_digest: str, known: Known) -> Stale | None:
        """Only tenant and key, before something costly is read for the limits. None means good. Raises as `admit` does."""
        keys = [keyspace.tenant, keyspace.rules, keyspace.api_key(secret_digest)]
        reply = await self._runner.call("validate_key", keys, [known.version, known.revision, ""])
        if reply[0] == b"valid":
            return None
        return _stale_or_refused("validate_key", reply)

    async def tenant_exists(self, keyspace: Keyspace) -> bool:
        """Whether a tenant has this subdomain, for callers without a usable key."""
        reply = await self._runner.call("lookup_tenant", [keyspace.tenant], [])
        return bool(reply[0] == b"tenant")

    async def seed(self, budgets: Sequence[tuple[BoundLimit, int]], at_ms: int) -> None:
        """Tell the store what was spent of budgets in the period around ``at_ms``. Those that it knows keep what they have."""
        arguments = [str(at_ms)]
        for limit, units in budgets:
            arguments += [limit.arguments[PERIOD], str(units)]
        match await self._runner.call("seed_budget", [limit.key for limit, _ in budgets], arguments):
            case [b"seeded", int()]:
                return
            case reply:
                raise InternalError from AssertionError(f"seed_budget.lua replied {reply!r}")

    async def peek(self, keyspace: Keyspace, limits: Sequence[BoundLimit]) -> Peeked:
        """What these limits would say if a request came now. Counts nothing, writes nothing."""
        arguments: list[str] = [self._lease_ms, ""]
        for limit in limits:
            arguments.extend(limit.arguments)
        match await self._runner.call("peek", [keyspace.clock, *(limit.key for limit in limits)], arguments):
            case [b"peeked", int(now_ms), *numbers]:
                places = numbers[INTEGERS_PER_LIMIT * len(limits) :]
                return Peeked(now_ms, states_of(limits, numbers), tuple(place - 1 for place in places))
            case reply:
                raise InternalError from AssertionError(f"peek.lua replied {reply!r}")

    async def subdomain_of_key(self, secret_digest: str) -> str | None:
        """The tenant a key belongs to; never changes, so it may be cached. Who asks at once for the same key shares a call."""
        asking = self._asking.get(secret_digest)
        if asking is None:
            asking = self._asking[secret_digest] = asyncio.create_task(self._ask_subdomain(secret_digest))
        # one that is cancelled does not take the answer from the others
        return await asyncio.shield(asking)

    async def _ask_subdomain(self, secret_digest: str) -> str | None:
        try:
            with store_errors():
                found = await self._connection.scripts.call("GET", key_lookup(secret_digest))
        finally:
            del self._asking[secret_digest]
        return found.decode() if found else None


def _stale_or_refused(script: str, reply: list[Any]) -> Stale:
    match reply:
        case [b"stale", bytes(version), bytes(tenant), bytes(revision), bytes(key), bytes(grace), *rules]:
            ends_ms = int(grace) if grace else None
            return Stale(version.decode(), tenant or None, tuple(rules), revision.decode(), key or None, ends_ms)
        case [b"unknown_tenant"]:
            raise UnknownTenant
        case [b"invalid_key"]:
            raise InvalidApiKey
        case [b"suspended"]:
            raise TenantSuspended
    raise InternalError from AssertionError(f"{script}.lua replied {reply!r}")
