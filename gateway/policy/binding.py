"""Completes the limits of a rule and a key with what one request has on their levels."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import InvalidHeader
from gateway.policy.accounting import Demand
from gateway.policy.compiled import CompiledKey, CompiledRule
from gateway.policy.facts import RequestFacts
from gateway.store import BoundLimit, PlacedLimit, limit_of
from gateway.targets import subscriber

MAX_DIGITS = 10
MOST_KEPT = 64
"""Rules of which a key keeps the limits."""

_OF_KEY_AND_RULE = frozenset({"api_key", "rule"})


def limits_of_request(
    head: RequestFacts, key: CompiledKey, rule: CompiledRule, model: str | None, demand: Demand | None
) -> Sequence[BoundLimit]:
    """The limits of the key and the rule, completed. Raises InvalidHeader.

    Where nothing in them differs between the requests of a key, that is done once. Requests that call no model, so that there
    is no ``demand``, are not limited in tokens or cost.
    """
    kept = key.bound.get(rule.info.id)
    if kept is not None and kept[0] is rule:
        return kept[1]
    limits = (*key.limits, *rule.limits)
    bound = bind_limits(limits, head, key, rule, model, demand)
    if rule.is_measured or key.is_measured:
        return bound
    if all(limit.spec.cost.header is None and _OF_KEY_AND_RULE.issuperset(limit.levels) for limit in limits):
        if len(key.bound) >= MOST_KEPT:
            key.bound.clear()
        key.bound[rule.info.id] = rule, bound
    return bound


def bind_limits(
    limits: Sequence[PlacedLimit],
    head: RequestFacts,
    key: CompiledKey,
    rule: CompiledRule,
    model: str | None,
    demand: Demand | None,
) -> list[BoundLimit]:
    """Complete the limits with what this request has on their levels and what it costs. Raises InvalidHeader."""
    bound = []
    for limit in limits:
        cost = limit.spec.cost
        if limit.spec.is_measured:
            if demand is None:
                continue
            units = demand.units(limit.spec)
        else:
            units = cost.units if cost.header is None else _units(head, cost.header, cost.units)
        if limit.levels:
            values = tuple([_level(level, head, key, rule, model) for level in limit.levels])
            bound.append(BoundLimit(limit, limit_of(limit.key, values), units, values))
        else:
            bound.append(BoundLimit(limit, limit.key, units))
    return bound


def units_of(text: bytes) -> int | None:
    """A number of units as a header says it; None for anything but up to ten digits."""
    return int(text) if len(text) <= MAX_DIGITS and text.isdigit() else None


def _units(head: RequestFacts, header: str, default: int) -> int:
    wanted = header.encode()
    given = [value for name, value in head.headers if name == wanted]
    if not given:
        return default
    units = units_of(given[0]) if len(given) == 1 else None
    if not units:
        raise InvalidHeader(f"The header {header} must be a whole number of at least 1, once.", param=header)
    return units


def _level(level: str, head: RequestFacts, key: CompiledKey, rule: CompiledRule, model: str | None) -> str:
    match level:
        case "api_key":
            return key.info.id
        case "ip":
            return subscriber(head.client_ip)
        case "method":
            return head.method
        case "model":
            return model or ""
        case "rule":
            return rule.info.id
    wanted = level.removeprefix("header:").encode()
    return next((value.decode("latin-1") for name, value in head.headers if name == wanted), "")
