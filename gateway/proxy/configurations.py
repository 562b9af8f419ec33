"""What this replica knows of tenants and keys. Never the truth: every admission checks the versions."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TypeVar

from pydantic import ValidationError

from gateway.errors import InternalError
from gateway.policy import CompiledKey, CompiledTenant, Compiler, Recent
from gateway.store import Keyspace, Known, Stale

_LOG = logging.getLogger("gateway.proxy")

MAX_TENANTS = 10_000
MAX_KEYS = 100_000

V = TypeVar("V")


class Configurations:
    """Compiled tenants by subdomain, compiled keys by tenant and digest, and which tenant a key belongs to."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._tenants: Recent[str, CompiledTenant] = Recent(MAX_TENANTS)
        self._keys: Recent[tuple[str, str], CompiledKey] = Recent(MAX_KEYS)
        self._subdomains: Recent[str, str] = Recent(MAX_KEYS)

    def tenant(self, subdomain: str) -> CompiledTenant | None:
        """As last seen."""
        return self._tenants.get(subdomain)

    def keyspace(self, subdomain: str) -> Keyspace:
        """The names of a tenant's keys in the store."""
        tenant = self._tenants.get(subdomain)
        return Keyspace(subdomain) if tenant is None else tenant.keyspace

    def key(self, subdomain: str, digest: str) -> CompiledKey | None:
        """As last seen."""
        return self._keys.get((subdomain, digest))

    def known(self, tenant: CompiledTenant | None, key: CompiledKey | None) -> Known:
        """What to tell the script about our knowledge."""
        return Known(tenant.version if tenant else "", key.revision if key else "")

    def update(self, subdomain: str, digest: str, stale: Stale) -> None:
        """Compile what the script sent instead of a decision.

        In place of a document that is damaged the last good one stays in force. Raises InternalError where there is none.
        """
        last = self._tenants.get(subdomain)
        # of many requests that were told the same, the first has compiled it
        if stale.tenant_document is not None and (last is None or last.version != stale.version):
            try:
                compiled = self._compiler.tenant(stale, last)
            except ValidationError as error:
                compiled = replace(_kept(last, subdomain, error), version=stale.version)
            self._tenants.put(subdomain, compiled)
        tenant = self._tenants.get(subdomain)
        last_key = self._keys.get((subdomain, digest))
        if stale.key_document is not None and tenant is not None and (last_key is None or last_key.revision != stale.revision):
            try:
                key = self._compiler.key(tenant.info, stale.key_document, stale.revision, stale.grace_ends_ms)
            except ValidationError as error:
                key = replace(_kept(last_key, subdomain, error), revision=stale.revision)
            self._keys.put((subdomain, digest), key)
            self._subdomains.put(digest, subdomain)

    def forget_key(self, subdomain: str, digest: str) -> None:
        """A key that is no longer good; whoever uses it again is a stranger."""
        self._keys.forget((subdomain, digest))

    def subdomain_of(self, digest: str) -> str | None:
        """The tenant of a key, if it was asked for before; it never changes."""
        return self._subdomains.get(digest)

    def remember_subdomain(self, digest: str, subdomain: str) -> None:
        """Keep what the index said."""
        self._subdomains.put(digest, subdomain)


def _kept(last: V | None, subdomain: str, error: ValidationError) -> V:
    _LOG.error("the stored configuration of tenant %s is damaged: %d errors", subdomain, error.error_count())
    if last is None:
        raise InternalError("This tenant's stored configuration is damaged.") from error
    return last
