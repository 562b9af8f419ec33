"""The compiled forms of a tenant's configuration: what a request finds ready."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import GatewayError
from gateway.pipeline import Chain
from gateway.plugin import ApiKeyInfo, RuleInfo, TenantInfo
from gateway.routing import Matcher, upstream_path
from gateway.store import Keyspace, PlacedLimit
from gateway.targets import Target
from gateway.targets.addresses import IPNetwork


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """``fault`` is set where the stored rule cannot be used; then only this rule's requests fail."""

    info: RuleInfo
    strip_path: bool
    preserve_host: bool
    target: Target
    headers: tuple[tuple[bytes, bytes], ...]
    header_names: frozenset[bytes]
    retries: int | None
    passed_headers: frozenset[bytes]
    chain: Chain
    limits: tuple[PlacedLimit, ...]
    needs_model: bool
    fault: GatewayError | None = None

    def url(self, path: str, query: str) -> str:
        """Where a request goes. Raises InvalidPath."""
        return self.target.url(upstream_path(self.info.path, self.strip_path, path), query)


@dataclass(frozen=True, slots=True)
class CompiledTenant:
    """A tenant at one version of its configuration."""

    version: str
    info: TenantInfo
    keyspace: Keyspace
    matcher: Matcher[CompiledRule]


@dataclass(frozen=True, slots=True)
class CompiledKey:
    """A key at one revision."""

    revision: str
    info: ApiKeyInfo
    may_call: bool
    rules: frozenset[str] | None
    models: frozenset[str] | None
    networks: tuple[IPNetwork, ...] | None
    limits: tuple[PlacedLimit, ...]
    needs_model: bool
