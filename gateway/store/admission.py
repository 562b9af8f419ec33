"""The one call that decides a request: tenant, key, configuration version and every limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.errors import InternalError, InvalidApiKey, TenantSuspended, UnknownTenant
from gateway.models import LimitSpec
from gateway.plugin import LimitState
from gateway.store.connect import Connection, store_errors
from gateway.store.keyspace import Keyspace, key_lookup
from gateway.store.scripts import ScriptRunner

INTEGERS_PER_LIMIT = 5
COST = "1"


@dataclass(frozen=True, slots=True)
class PlacedLimit:
    """A limit at its place in a chain.

    ``key`` names its state but for the part that ``levels`` add with their values of a request. ``entry`` is the index of
    the chain entry that declared it, -1 for the key's own. ``arguments`` are what the scripts take.
    """

    spec: LimitSpec
    entry: int
    key: str
    levels: tuple[str, ...]
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BoundLimit:
    """A limit for one request; ``key`` is complete."""

    placed: PlacedLimit
    key: str


@dataclass(frozen=True, slots=True)
class Admission:
    """What was decided. ``states`` stand in the order of the limits that were asked."""

    admitted: bool
    now_ms: int
    states: tuple[LimitState, ...]


@dataclass(frozen=True, slots=True)
class Stale:
    """The caller's configuration is not the current one; nothing was decided. None where the caller's own is current."""

    version: str
    tenant_document: bytes | None
    rule_documents: tuple[bytes, ...]
    revision: str
    key_document: bytes | None


@dataclass(frozen=True, slots=True)
class Known:
    """What the caller knows of the configuration; empty texts for nothing."""

    version: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """An admission that holds something in these limits. ``admitted_ms`` is the time on the store's clock."""

    keyspace: Keyspace
    admission_id: str
    admitted_ms: int
    limits: tuple[BoundLimit, ...]


Due = tuple[BoundLimit, int | None]
"""A limit and what a request turned out to cost there; None for what it was charged."""


def place_limit(
    keyspace: Keyspace, tenant_id: str, owner: str, spec: LimitSpec, entry: int, levels: Sequence[str]
) -> PlacedLimit:
    """Prepare a limit once, when the configuration is compiled."""
    extent = spec.period or str(spec.window_ms)
    arguments = (spec.kind.value, COST, str(spec.limit), extent, str(spec.burst), "1" if spec.shadow else "0")
    return PlacedLimit(spec, entry, keyspace.limit(tenant_id, owner, spec), tuple(levels), arguments)


class Admissions:
    """Calls ``admit``, ``validate_key``, ``settle``, ``renew`` and ``peek``."""

    def __init__(self, connection: Connection, runner: ScriptRunner, lease_ms: int) -> None:
        self._connection = connection
        self._runner = runner
        self._lease_ms = str(lease_ms)

    async def admit(
        self, keyspace: Keyspace, secret_digest: str, known: Known, admission_id: str, limits: Sequence[BoundLimit]
    ) -> Admission | Stale:
        """Decide a request, atomically and in one round trip.

        ``admission_id`` is random and never a client's: repeating it repeats the first decision. Raises UnknownTenant,
        InvalidApiKey, TenantSuspended, StoreUnavailable. After any other outcome than a value, `cancel` with the same id.
        """
        keys = [keyspace.tenant, keyspace.rules, keyspace.api_key(secret_digest), keyspace.marker(admission_id), keyspace.clock]
        arguments: list[str] = [known.version, known.revision, self._lease_ms, admission_id, ""]
        for limit in limits:
            keys.append(limit.key)
            arguments.extend(limit.placed.arguments)
        reply = await self._runner.call("admit", keys, arguments)
        match reply:
            case [b"admitted" | b"replayed", int(now_ms), *numbers]:
                return Admission(True, now_ms, _states(limits, numbers))
            case [b"limited", int(now_ms), *numbers]:
                return Admission(False, now_ms, _states(limits, numbers))
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

    async def cancel(self, keyspace: Keyspace, admission_id: str, limits: Sequence[BoundLimit]) -> None:
        """Give back what these limits were charged for an admission, or void it if it has not arrived yet. Repeatable."""
        await self.settle(keyspace, admission_id, [(limit, 0) for limit in limits])

    async def settle(self, keyspace: Keyspace, admission_id: str, dues: Sequence[Due]) -> None:
        """End an admission: free what it holds and correct what it was charged. The first call for an id counts, no other.

        Limits that are not among ``dues`` keep their charge; those that hold something must be among them.
        """
        keys = [keyspace.marker(admission_id), keyspace.clock]
        arguments: list[str] = [self._lease_ms, admission_id, ""]
        for limit, actual in dues:
            keys.append(limit.key)
            arguments.extend((*limit.placed.arguments, "" if actual is None else str(actual)))
        match await self._runner.call("settle", keys, arguments):
            case [b"settled" | b"settled_before" | b"not_admitted"]:
                return
            case reply:
                raise InternalError from AssertionError(f"settle.lua replied {reply!r}")

    async def renew(self, held: Sequence[Held]) -> None:
        """Push the end of these leases forward, all in one round trip; those that are settled stay so.

        Raises what kept the first of them from being renewed; the others are renewed all the same.
        """
        calls = []
        for one in held:
            keys = [one.keyspace.marker(one.admission_id), one.keyspace.clock, *(limit.key for limit in one.limits)]
            facts = [self._lease_ms, one.admission_id, str(one.admitted_ms), ""]
            calls.append((keys, [*facts, *(word for limit in one.limits for word in limit.placed.arguments)]))
        for reply in await self._runner.call_each("renew", calls):
            match reply:
                case Exception():
                    raise reply
                case [b"renewed" | b"settled_before"]:
                    continue
            raise InternalError from AssertionError(f"renew.lua replied {reply!r}")

    async def peek(self, keyspace: Keyspace, limits: Sequence[BoundLimit]) -> tuple[LimitState, ...]:
        """What these limits would say if a request came now. Counts nothing, writes nothing."""
        arguments: list[str] = [self._lease_ms, ""]
        for limit in limits:
            arguments.extend(limit.placed.arguments)
        match await self._runner.call("peek", [keyspace.clock, *(limit.key for limit in limits)], arguments):
            case [b"peeked", int(), *numbers]:
                return _states(limits, numbers)
            case reply:
                raise InternalError from AssertionError(f"peek.lua replied {reply!r}")

    async def subdomain_of_key(self, secret_digest: str) -> str | None:
        """The tenant a key belongs to; never changes, so it may be cached."""
        with store_errors():
            found = await self._connection.client.get(key_lookup(secret_digest))
        return found.decode() if found else None


def _stale_or_refused(script: str, reply: list[Any]) -> Stale:
    match reply:
        case [b"stale", bytes(version), bytes(tenant), bytes(revision), bytes(key), *rules]:
            return Stale(version.decode(), tenant or None, tuple(rules), revision.decode(), key or None)
        case [b"unknown_tenant"]:
            raise UnknownTenant
        case [b"invalid_key"]:
            raise InvalidApiKey
        case [b"suspended"]:
            raise TenantSuspended
    raise InternalError from AssertionError(f"{script}.lua replied {reply!r}")


def _states(limits: Sequence[BoundLimit], numbers: Sequence[int]) -> tuple[LimitState, ...]:
    states = []
    position = 0
    for limit in limits:
        refuses, used, remaining, retry_ms, reset_ms = numbers[position : position + INTEGERS_PER_LIMIT]
        position += INTEGERS_PER_LIMIT
        spec = limit.placed.spec
        states.append(
            LimitState(
                name=spec.name,
                level=spec.per,
                unit=spec.unit,
                limit=spec.capacity,
                window_seconds=spec.window_seconds,
                used=used,
                remaining=remaining,
                retry_after_ms=retry_ms,
                reset_ms=reset_ms,
                refuses=refuses == 1,
                shadow=spec.shadow,
                kind=spec.kind.value,
                entry=limit.placed.entry,
            )
        )
    return tuple(states)
