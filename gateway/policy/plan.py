"""What a request is about to be, as far as our knowledge of the configuration goes; the admission call confirms it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from gateway.errors import GatewayError, InvalidJson, NotAllowed
from gateway.plugin import check_alike, parse_json
from gateway.policy.call import check_readable
from gateway.policy.compiled import CompiledKey, CompiledRule, CompiledTenant
from gateway.policy.facts import RequestFacts
from gateway.targets.addresses import plain

BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


class Plan(NamedTuple):
    """The rule that matches, and what refuses the request if anything does, before any limit is charged."""

    rule: CompiledRule | None
    refusal: GatewayError | None


def plan_request(tenant: CompiledTenant | None, key: CompiledKey | None, head: RequestFacts) -> Plan:
    """Match the rule and check what the key may do; with an incomplete configuration there is nothing to decide yet."""
    if tenant is None or key is None:
        return Plan(None, None)
    if not key.may_call:
        return Plan(None, NotAllowed("The API key lacks the scope proxy."))
    if key.networks is not None and not _is_inside(head.client_ip, key):
        return Plan(None, NotAllowed("The API key may not be used from this address."))
    try:
        rule = tenant.matcher.match(head.method, head.path)
    except GatewayError as refusal:
        return Plan(None, refusal)
    if key.rules is not None and rule.info.id not in key.rules:
        return Plan(rule, NotAllowed("The API key may not use this route."))
    return Plan(rule, rule.fault)


def model_of(head: RequestFacts, body: bytes) -> str | None:
    """The ``model`` of a JSON body. Raises InvalidJson, UnsupportedMediaType for a body that cannot be read."""
    if not body:
        return None
    check_readable(head, None)
    document = parse_json(body)
    if not isinstance(document, dict):
        raise InvalidJson("The body must be a JSON object.")
    check_alike(document, "model")
    model = document.get("model")
    return model if isinstance(model, str) else None


def check_model(key: CompiledKey, head: RequestFacts, names: Sequence[str | None]) -> None:
    """Raises NotAllowed if the key is restricted to other models; a body that names none is not let through either.

    ``names`` are those by which the model goes: any of them may be the one that the key is allowed.
    """
    if key.models is None or any(name in key.models for name in names):
        return
    if not any(names) and head.method in BODILESS and not head.has_body:
        return
    raise NotAllowed("The API key may not use this model.", param="model")


def _is_inside(address: str, key: CompiledKey) -> bool:
    try:
        parsed = plain(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False
    return any(parsed in network for network in key.networks or () if network.version == parsed.version)
