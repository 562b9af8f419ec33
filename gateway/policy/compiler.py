"""Compiles a tenant's configuration once, so that a request finds everything ready."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from functools import partial

from gateway.config import Config
from gateway.errors import GatewayError, InternalError
from gateway.headers import ForwardedFields, RawHeaders, ReturnedFields
from gateway.models import ApiKey, Rule, Tenant, limit_specs
from gateway.pipeline import Chain, Entry, OnFailure
from gateway.plugin import ApiKeyInfo, RuleInfo, TenantInfo
from gateway.policy.compiled import CompiledKey, CompiledRule, CompiledTenant, Placed
from gateway.prices import PriceList
from gateway.registry import Registry
from gateway.routing import Matcher, Route
from gateway.secrets import Vault, is_sealed
from gateway.store import Keyspace, PlacedLimit, Stale, place_limit
from gateway.targets import Target, parse_target

_LOG = logging.getLogger("gateway.proxy")

BEFORE_CHAIN = -1
"""The entry of limits that the key or the tenant itself has."""

_STATIC_LEVELS = frozenset({"tenant", "rule"})


class Compiler:
    """Makes the compiled forms from the documents in the store. Without a vault, sealed headers are left out."""

    def __init__(self, registry: Registry, vault: Vault | None, config: Config, on_failure: OnFailure) -> None:
        self._registry = registry
        self._vault = vault
        self._config = config
        self._on_failure = on_failure

    def tenant(self, stale: Stale, last: CompiledTenant | None = None) -> CompiledTenant:
        """From a reply that carries the tenant's document. Raises pydantic's ValidationError for a damaged one.

        A rule takes about 150 µs, during which nobody is served; those that are as in ``last`` are taken from there.
        """
        if stale.tenant_document is None:
            raise InternalError from AssertionError("no tenant document")
        tenant = Tenant.model_validate_json(stale.tenant_document)
        keyspace = Keyspace(tenant.subdomain)
        digest = _digest(stale.tenant_document)
        known = last.placed if last is not None and last.document_digest == digest else {}
        placed: dict[bytes, Placed] = {}
        for document in stale.rule_documents:
            key = _digest(document)
            placed[key] = known.get(key) or self._placed(tenant, Rule.model_validate_json(document), keyspace)
        return CompiledTenant(
            stale.version,
            TenantInfo(tenant.id, tenant.name, tenant.subdomain, tenant.tier),
            keyspace,
            Matcher(one.route for one in sorted(placed.values(), key=lambda one: one[:2]) if one.route is not None),
            digest,
            placed,
        )

    def _placed(self, tenant: Tenant, rule: Rule, keyspace: Keyspace) -> Placed:
        route = Route(rule.path, rule.methods, self._rule(tenant, rule, keyspace)) if rule.active else None
        return Placed(rule.created_at, rule.id, route)

    def rule(self, tenant: Tenant, rule: Rule) -> CompiledRule:
        """One rule by itself; what keeps it from being used is its ``fault``."""
        return self._rule(tenant, rule, Keyspace(tenant.subdomain))

    def key(self, tenant: TenantInfo, document: bytes, revision: str, grace_ends_ms: int | None = None) -> CompiledKey:
        """From a key's document, and when the grace of this secret ends if it was replaced."""
        key = ApiKey.model_validate_json(document)
        keyspace = Keyspace(tenant.subdomain)
        limits = tuple(
            place_limit(
                keyspace,
                tenant.id,
                f"key:{key.id}",
                spec,
                BEFORE_CHAIN,
                [level for level in spec.per if level != "tenant"],
                key_id=key.id,
            )
            for spec in limit_specs(key.limits, ("api_key",))
        )
        return CompiledKey(
            revision,
            ApiKeyInfo(key.id, key.name, key.metadata),
            "proxy" in key.scopes,
            None if key.allowed_rules is None else frozenset(key.allowed_rules),
            None if key.allowed_models is None else frozenset(key.allowed_models),
            None if key.allowed_networks is None else tuple(ipaddress.ip_network(str(net)) for net in key.allowed_networks),
            limits,
            key.allowed_models is not None or any("model" in limit.levels for limit in limits),
            any(limit.spec.is_measured for limit in limits),
            any(limit.spec.alerts for limit in limits),
            min([end for end in (key.expires_ms, grace_ends_ms) if end is not None], default=None),
        )

    def _rule(self, tenant: Tenant, rule: Rule, keyspace: Keyspace) -> CompiledRule:
        fault: GatewayError | None = None
        headers: RawHeaders = []
        chain = Chain((), 1, self._on_failure)
        limits: tuple[PlacedLimit, ...] = ()
        target = Target("https", "invalid", 443, "", inner=False)
        try:
            target = parse_target(rule.target, self._config.upstream)
            headers = self._headers(tenant, rule)
            entries = self._entries(tenant, rule)
            chain = Chain(entries, self._config.limits.plugin_timeout, self._on_failure)
            limits = self._limits(keyspace, tenant, rule, chain)
        except Exception as error:
            # stored settings, seals and plugins may fail in any way; only this rule's requests do
            _LOG.error("rule %s of tenant %s cannot be used: %s", rule.id, tenant.id, error)
            fault = InternalError("This route is configured in a way that cannot be used; the log names the reason.")
            if isinstance(error, GatewayError):
                fault.add_note(error.message)  # for the rule's owner; clients do not see it
        fields = partial(ForwardedFields, headers, preserve_host=rule.preserve_host)
        return CompiledRule(
            info=RuleInfo(rule.id, rule.path, rule.target),
            strip_path=rule.strip_path,
            target=target,
            forwarded=fields(identity=chain.needs_reply_body),
            plainly_forwarded=fields(identity=True),
            returned=ReturnedFields(frozenset(name.lower().encode() for name in rule.pass_response_headers)),
            retries=rule.retry_attempts,
            chain=chain,
            limits=limits,
            needs_model=any("model" in limit.levels for limit in limits),
            is_measured=any(limit.spec.is_measured for limit in limits),
            alerts=any(limit.spec.alerts for limit in limits),
            format=rule.format,
            ask_for_usage=rule.ask_for_usage,
            usage_comment=rule.usage_comment,
            aliases=tenant.model_aliases,
            prices=tuple(PriceList(prices) for prices in (rule.prices, tenant.prices) if prices),
            price_host=target.host + target.path,
            fault=fault,
        )

    def _headers(self, tenant: Tenant, rule: Rule) -> RawHeaders:
        headers: RawHeaders = []
        for name, stored in rule.headers.items():
            lowered = name.lower()
            if self._vault is None and is_sealed(stored):
                continue
            value = (
                self._vault.open(stored, f"{tenant.id}/{rule.id}/{lowered}") if self._vault and is_sealed(stored) else stored
            )
            headers.append((lowered.encode(), value.encode("latin-1")))
        return headers

    def _entries(self, tenant: Tenant, rule: Rule) -> list[Entry]:
        entries = []
        for name, ref in tenant.required_plugins.items():
            if ref.enabled:
                plugin = self._registry.create(name, ref.settings, ref.stage)
                entries.append(Entry(name, plugin, ref.priority, ref.on_error, required=True))
        for own in rule.plugin_chain:
            if own.enabled:
                plugin = self._registry.create(own.name, own.settings, own.stage)
                entries.append(Entry(own.name, plugin, own.priority, own.on_error, required=False))
        return entries

    def _limits(self, keyspace: Keyspace, tenant: Tenant, rule: Rule, chain: Chain) -> tuple[PlacedLimit, ...]:
        placed: list[PlacedLimit] = []
        taken: set[str] = set()
        declared = [(BEFORE_CHAIN, "", True, spec) for spec in limit_specs(tenant.limits, ("tenant",))]
        declared += [(index, entry.name, entry.required, spec) for index, entry, spec in chain.limits(tenant.tier)]
        for index, name, required, spec in declared:
            # a limit belongs to where it is configured; `tenant` in `per` lifts it to all rules, `rule` splits it among them
            shared = required or "tenant" in spec.per
            owner = f"tenant/{name}" if shared else f"rule:{rule.id}/{name}"
            if shared and "rule" in spec.per:
                owner = f"{owner}/rule:{rule.id}"
            rule_id = None if shared and "rule" not in spec.per else rule.id
            levels = [level for level in spec.per if level not in _STATIC_LEVELS]
            number = 1
            limit = place_limit(keyspace, tenant.id, owner, spec, index, levels, rule_id=rule_id)
            while limit.key in taken:
                # two equal limits in one chain are two limits; one call must not charge the same state twice
                number += 1
                limit = place_limit(keyspace, tenant.id, f"{owner}#{number}", spec, index, levels, rule_id=rule_id)
            taken.add(limit.key)
            placed.append(limit)
        return tuple(placed)


def _digest(document: bytes) -> bytes:
    return hashlib.blake2b(document, digest_size=16).digest()
