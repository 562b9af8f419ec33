"""What the proxy would be told if a key were presented now."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import GatewayError, InternalError, InvalidApiKey, StoreUnavailable, TenantSuspended, UnknownTenant
from gateway.store.admission import Known, Stale
from gateway.store.api_keys import StoredKey
from gateway.store.stores import Stores
from gateway.store.tenants import StoredTenant

MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Standing:
    """A tenant and one of its keys. ``outcome`` is their configuration, or what refuses every request with the key."""

    tenant: StoredTenant
    key: StoredKey
    outcome: Stale | GatewayError


async def read_standing(stores: Stores, tenant_id: str, key_id: str) -> Standing:
    """Decided by the script that the proxy uses, on the store's clock, and all of one moment. Raises NotFound."""
    for _ in range(MAX_ROUNDS):
        tenant = await stores.tenants.get(tenant_id)
        key = await stores.api_keys.get(tenant_id, key_id)
        outcome: Stale | GatewayError | None
        try:
            outcome = await stores.admissions.validate(tenant.keyspace, key.digests[0], Known())
        except (InvalidApiKey, TenantSuspended, UnknownTenant) as refusal:
            outcome = refusal
        if outcome is None:
            raise InternalError from AssertionError("validate_key.lua withheld a configuration that nobody knew")
        if isinstance(outcome, Stale):
            unchanged = (outcome.version, outcome.revision) == (tenant.version, key.revision)
        else:
            current = await stores.tenants.get(tenant_id)
            again = await stores.api_keys.get(tenant_id, key_id)
            unchanged = (current.version, again.revision) == (tenant.version, key.revision)
        if unchanged:
            return Standing(tenant, key, outcome)
    raise StoreUnavailable("The configuration changes faster than it can be read; try again.")
