"""The compiled forms of a tenant's configuration: what a request finds ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.errors import GatewayError
from gateway.formats import Endpoint
from gateway.headers import ForwardedFields, ReturnedFields
from gateway.models import RuleFormat
from gateway.pipeline import Chain
from gateway.plugin import ApiKeyInfo, RuleInfo, TenantInfo
from gateway.prices import PriceList
from gateway.routing import Matcher, Route, upstream_path
from gateway.store import BoundLimit, Keyspace, PlacedLimit
from gateway.targets import Target
from gateway.targets.addresses import IPNetwork


@dataclass(frozen=True, slots=True, eq=False)
class CompiledRule:
    """``fault`` is set where the stored rule cannot be used; then only this rule's requests fail.

    ``plainly_forwarded`` is for calls whose reply has to be read: the target must not compress it. ``prices`` are the rule's
    and the tenant's, ``price_host`` tells whose public prices hold. ``is_measured`` if one of the limits counts what only the
    reply tells, ``alerts`` if one has thresholds. ``endpoints`` keeps what paths of requests call at the target.
    """

    info: RuleInfo
    strip_path: bool
    target: Target
    forwarded: ForwardedFields
    plainly_forwarded: ForwardedFields
    returned: ReturnedFields
    retries: int | None
    chain: Chain
    limits: tuple[PlacedLimit, ...]
    needs_model: bool
    is_measured: bool
    alerts: bool
    format: RuleFormat
    ask_for_usage: bool
    usage_comment: bool
    aliases: Mapping[str, str]
    prices: tuple[PriceList, ...]
    price_host: str
    fault: GatewayError | None = None
    endpoints: dict[str, Endpoint | None] = field(default_factory=dict)

    def url(self, path: str, query: str) -> str:
        """Where a request goes. Raises InvalidPath."""
        return self.target.url(upstream_path(self.info.path, self.strip_path, path), query)


class Placed(NamedTuple):
    """A rule's place among the others and its route; None if it is not active."""

    created_at: str
    rule_id: str
    route: Route[CompiledRule] | None


@dataclass(frozen=True, slots=True)
class CompiledTenant:
    """A tenant at one version of its configuration.

    ``document_digest`` and ``placed``, by the digests of their documents, are for the next version: what has not changed is
    taken over.
    """

    version: str
    info: TenantInfo
    keyspace: Keyspace
    matcher: Matcher[CompiledRule]
    document_digest: bytes
    placed: Mapping[bytes, Placed]


@dataclass(frozen=True, slots=True)
class CompiledKey:
    """A key at one revision.

    ``ends_ms`` is when it expires, Unix milliseconds. ``bound`` keeps, by the id of a rule, that rule and the limits of its
    requests where they are the same each time.
    """

    revision: str
    info: ApiKeyInfo
    may_call: bool
    rules: frozenset[str] | None
    models: frozenset[str] | None
    networks: tuple[IPNetwork, ...] | None
    limits: tuple[PlacedLimit, ...]
    needs_model: bool
    is_measured: bool
    alerts: bool
    ends_ms: int | None
    bound: dict[str, tuple[CompiledRule, Sequence[BoundLimit]]] = field(default_factory=dict)
