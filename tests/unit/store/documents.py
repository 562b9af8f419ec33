"""Tenants, keys and rules to store, and what is seen of them."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from gateway.models import ApiKey, Tenant
from gateway.store import Keyspace, Stores, new_id, new_tenant_id
from tests.builders import WHEN, a_tenant


def secret(name: str) -> str:
    """The digest of a secret."""
    return hashlib.sha256(name.encode()).hexdigest()


def a_key(**fields: Any) -> ApiKey:
    """A stored key with an id of its own."""
    given = {"id": new_id("key"), "hint": "gw_abc…", "status": "active", "created_at": WHEN, "updated_at": WHEN}
    return ApiKey.model_validate(given | fields)


def expiring(moment: datetime) -> ApiKey:
    """A key that ends then."""
    return a_key(expires_at=moment.isoformat())


def tenant_of(subdomain: str, **fields: Any) -> Tenant:
    """A tenant with an id of its own."""
    return a_tenant(subdomain=subdomain, id=new_tenant_id(subdomain), **fields)


async def created(stores: Stores, subdomain: str = "testcompany", key_secret: str | None = None, **fields: Any) -> Tenant:
    """A stored tenant; its first key has the secret ``first of <subdomain>`` unless named."""
    tenant = tenant_of(subdomain, **fields)
    assert await stores.tenants.create(tenant, a_key(), secret(key_secret or f"first of {subdomain}")) is None
    return tenant


async def keys_of(stores: Stores, pattern: str = "*") -> set[str]:
    """Names of all keys, or of those that match."""
    return {key.decode() for key in await stores.connection.client.keys(pattern)}


async def versions(stores: Stores, tenant: Tenant) -> tuple[bytes, bytes]:
    """Versions of the configuration and of the keys."""
    version, keys_version = await stores.connection.client.hmget(Keyspace(tenant.subdomain).tenant, ["version", "keys_version"])
    return version, keys_version


async def is_good(stores: Stores, tenant: Tenant, name: str) -> bool:
    """Whether the secret is one with which the tenant may be called now."""
    return await stores.api_keys.authenticate(tenant.id, secret(name)) is not None
