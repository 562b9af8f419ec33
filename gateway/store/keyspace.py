"""The names of all keys in Redis; no other module builds one.

Every key of a tenant carries the hash tag ``{<subdomain>}``, so one script call touches one slot of a cluster. Values that
a client chooses enter a name only as a digest of fixed length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import date

from gateway.models import RING_PARTS, LimitKind, LimitSpec
from gateway.periods import PLAIN

PREFIX = "gw:"


class Keyspace:
    """Names of one tenant's keys.

    ``tenant`` is a hash of id, version, status, keys_version and document; ``rules`` one of rule id to document; ``key_index``
    one of key id to the digests of its secrets, the current one first. ``clock`` is a string, the latest time that the
    tenant's scripts have seen, in milliseconds.
    """

    __slots__ = ("_tag", "clock", "key_index", "rules", "tenant")

    def __init__(self, subdomain: str) -> None:
        self._tag = tag = f"{PREFIX}{{{subdomain}}}:"
        self.tenant = f"{tag}tenant"
        self.rules = f"{tag}rules"
        self.key_index = f"{tag}keys"
        self.clock = f"{tag}clock"

    @classmethod
    def of_tenant(cls, tenant_id: str) -> Keyspace:
        """The names of a tenant whose id is known: it begins with the subdomain."""
        return cls(tenant_id.rpartition("-")[0])

    def api_key(self, digest: str) -> str:
        """Hash: status, revision, expires_ms, grace_ends_ms, used_ms, document."""
        return f"{self._tag}key:{digest}"

    def marker(self, admission_id: str) -> str:
        """String: the state of one admission."""
        return f"{self._tag}req:{admission_id}"

    def idempotency(self, digest: str) -> str:
        """String: the answer to a POST with an Idempotency-Key."""
        return f"{self._tag}idem:{digest}"

    def alert(self, crossing: str) -> str:
        """String: who sends the webhook of a crossing, or how that has ended; see `crossing_of`."""
        return f"{self._tag}alert:{crossing}"

    def alert_count(self, crossing: str) -> str:
        """String: that a crossing was counted by the metrics of some replica."""
        return f"{self._tag}alert:{crossing}:counted"

    def usage(self, tenant_id: str, day: date) -> str:
        """Hash: what was used by requests admitted on this UTC day, see `gateway.store.usage`.

        It outlives the tenant, so its name is the tenant's: whoever has the subdomain next begins with nothing.
        """
        return f"{self._tag}usage:{tenant_id}:{day.isoformat()}"

    def receipts(self, tenant_id: str) -> str:
        """Stream: what each settled request used, until it is exported, see `gateway.store.receipts`.

        Like its ledger it is the tenant's and not the subdomain's, and here it must outlive the tenant.
        """
        return f"{self._tag}receipts:{tenant_id}"

    def exported(self, tenant_id: str) -> str:
        """String: the number of the last receipt that was exported and removed."""
        return f"{self.receipts(tenant_id)}:exported"

    def limit(self, tenant_id: str, owner: str, spec: LimitSpec) -> str:
        """The state of a limit without the part that differs between requests, see `limit_of`.

        ``owner`` is where the limit was declared (a rule, the tenant, a key): equal limits of different owners are
        different limits. Unit, window and its parts, period and time zone are in the name, so that a changed limit never reads
        what it cannot understand. What the clock of the zone shows is not: that changes.
        """
        identity = digest((tenant_id, owner, spec.name, spec.unit, *spec.per))
        extent = spec.period or str(spec.window_ms)
        if spec.kind is LimitKind.RING:
            extent = f"{extent}/{RING_PARTS}"
        elif spec.time_zone != PLAIN:
            extent = f"{extent}@{spec.time_zone}"
        return f"{self._tag}limit:{spec.kind}:{extent}:{identity}"


def limit_of(limit_key: str, values: Iterable[str]) -> str:
    """The state of a limit for these values of its levels (a key, an address, a model, …)."""
    return f"{limit_key}:{digest(values)}"


def crossing_of(limit_key: str, limit: int, percent: int, period_end_ms: int) -> str:
    """The name of a crossing: of this share of this many units, in this period, by a limit as `limit_of` names it."""
    return digest((limit_key, str(limit), str(percent), str(period_end_ms)))


def digest(parts: Iterable[str]) -> str:
    """32 hexadecimal digits that no two different sequences of texts share."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        hasher.update(len(data).to_bytes(4, "big"))
        hasher.update(data)
    return hasher.hexdigest()


def tenant_index() -> str:
    """Sorted set of the ids of all tenants, for lists."""
    return f"{PREFIX}index:tenants"


def receipt_index() -> str:
    """Sorted set of the ids of tenants that may have receipts, living or not, by when that was last said, ms since 1970."""
    return f"{PREFIX}index:receipts"


def tenant_creation(digest: str) -> str:
    """String: the fingerprint of a request to create a tenant, whose own keys cannot tell of one with another subdomain."""
    return f"{PREFIX}index:idem:{digest}"


def key_lookup(secret_digest: str) -> str:
    """String: the subdomain to which a key belongs, for requests whose host names no tenant."""
    return f"{PREFIX}index:key:{secret_digest}"
