"""Completes the limits of a rule and a key with what one request has on their levels."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from gateway.policy.compiled import CompiledKey, CompiledRule
from gateway.policy.facts import RequestFacts
from gateway.store import BoundLimit, PlacedLimit, limit_of
from gateway.targets.addresses import plain


def bind_limits(
    limits: Sequence[PlacedLimit], head: RequestFacts, key: CompiledKey, rule: CompiledRule, model: str | None
) -> list[BoundLimit]:
    """Complete the names of the limits with what this request has on their levels."""
    return [
        BoundLimit(limit, limit_of(limit.key, [_level(level, head, key, rule, model) for level in limit.levels]))
        if limit.levels
        else BoundLimit(limit, limit.key)
        for limit in limits
    ]


def _level(level: str, head: RequestFacts, key: CompiledKey, rule: CompiledRule, model: str | None) -> str:
    match level:
        case "api_key":
            return key.info.id
        case "ip":
            return _subscriber(head.client_ip)
        case "method":
            return head.method
        case "model":
            return model or ""
        case "rule":
            return rule.info.id
    wanted = level.removeprefix("header:").encode()
    return next((value.decode("latin-1") for name, value in head.headers if name == wanted), "")


def _subscriber(address: str) -> str:
    """One subscriber has a whole /64 of IPv6 (RFC 6177); counting single addresses would limit nobody."""
    try:
        parsed = plain(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
