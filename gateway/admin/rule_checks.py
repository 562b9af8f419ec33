"""Whether a rule may be written, in what form its secrets are stored, and what is probably not meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from gateway.admin.parts import Parts
from gateway.admin.reading import field_errors, parsed, stored
from gateway.errors import InvalidField
from gateway.models import MASK, Document, NewRule, Rule, Tenant, edited, is_plain_header, utc_now
from gateway.models.rule import UpstreamHeaders
from gateway.plugin.patterns import count_patterns
from gateway.routing import upstream_path
from gateway.secrets import is_sealed
from gateway.targets import parse_target

MAX_PATTERNS = 50
"""In the active rules of a tenant: each may take a millisecond to compile, in which a replica serves nobody."""


class _GivenHeaders(Document):
    """The checks of `NewRule` for this field alone; what a stored rule holds is sealed and would not pass them."""

    headers: UpstreamHeaders


def built(parts: Parts, tenant: Tenant, rule_id: str, new: NewRule) -> Rule:
    """The rule to store. Raises InvalidField."""
    now = utc_now()
    rule = stored(Rule, new, id=rule_id, created_at=now, updated_at=now)
    _check(parts, tenant, rule)
    return rule.model_copy(update={"headers": _sealed(parts, tenant, rule_id, new.headers, {})})


def changed(parts: Parts, tenant: Tenant, rule: Rule, changes: Mapping[str, Any]) -> Rule:
    """The rule with some of its fields replaced; a masked header keeps its value. Raises InvalidField."""
    rest = {name: value for name, value in changes.items() if name != "headers"}
    with field_errors(Rule):
        result = edited(rule, rest)
    if "headers" in changes:
        given = parsed(_GivenHeaders, {"headers": changes["headers"]}).headers
        result = result.model_copy(update={"headers": _sealed(parts, tenant, rule.id, given, rule.headers)})
    _check(parts, tenant, result, before=rule)
    _check_credentials_stay(rule, result)
    return result if result == rule else result.model_copy(update={"updated_at": utc_now()})


def _check(parts: Parts, tenant: Tenant, rule: Rule, before: Rule | None = None) -> None:
    # What was allowed once and is no longer must not stand in the way of making the rule inactive.
    def is_new(name: str) -> bool:
        return before is None or rule.active or getattr(rule, name) != getattr(before, name)

    if is_new("target"):
        parse_target(rule.target, parts.config.upstream)
    if not is_new("plugin_chain"):
        return
    patterns = 0
    for index, entry in enumerate(rule.plugin_chain):
        where = f"plugin_chain.{index}"
        patterns += count_patterns(parts.registry.validate(entry.name, entry.settings, entry.stage, where=where))
        if patterns > MAX_PATTERNS:
            raise InvalidField(f"{where}.settings: a tenant has at most {MAX_PATTERNS} patterns", param=f"{where}.settings")
        if not tenant.allows_plugin(entry.name):
            raise InvalidField(f"{where}.name: {entry.name} is not enabled for this tenant", param=f"{where}.name")


def check_patterns(parts: Parts, rule: Rule, others: Iterable[Rule]) -> None:
    """Raises InvalidField if the tenant's active rules would have too many patterns with this one."""
    own = _patterns(parts, rule)
    if own and own + sum(_patterns(parts, other) for other in others if other.id != rule.id) > MAX_PATTERNS:
        raise InvalidField(
            f"plugin_chain: the tenant's active rules would have more than {MAX_PATTERNS} patterns", param="plugin_chain"
        )


def _patterns(parts: Parts, rule: Rule) -> int:
    if not rule.active:
        return 0
    count = 0
    for entry in rule.plugin_chain:
        with suppress(InvalidField):  # written for a plugin that was another one then, and is not in force
            count += count_patterns(parts.registry.validate(entry.name, entry.settings, entry.stage, where="plugin_chain"))
    return count


def _check_credentials_stay(before: Rule, after: Rule) -> None:
    """A stored secret was given for one origin; whoever may edit the rule must not be able to have it sent to another."""
    if _origin(before.target) == _origin(after.target):
        return
    for name, value in after.headers.items():
        if is_sealed(value) and value in before.headers.values():
            param = f"headers.{name}"
            raise InvalidField(f"{param}: the target leads to another origin, so give the value again", param=param)


def _origin(target: str) -> tuple[str, str]:
    parts = urlsplit(target)
    return parts.scheme, parts.netloc.lower()


def _sealed(parts: Parts, tenant: Tenant, rule_id: str, given: Mapping[str, str], kept: Mapping[str, str]) -> dict[str, str]:
    kept = {name.lower(): value for name, value in kept.items()}
    headers = {}
    for name, text in given.items():
        param = f"headers.{name}"
        if text == MASK:
            if name.lower() not in kept:
                raise InvalidField(f"{param}: {MASK} stands for a stored value, and none is stored", param=param)
            headers[name] = kept[name.lower()]
        elif is_plain_header(name):
            headers[name] = text
        else:
            headers[name] = parts.vault.seal(text, f"{tenant.id}/{rule_id}/{name.lower()}", param=param)
    return headers


def shown(parts: Parts, rule: Rule, others: Iterable[Rule]) -> dict[str, Any]:
    """The rule as the admin API answers it, with warnings."""
    return rule.public() | {"warnings": warnings(parts, rule, others)}


def warnings(parts: Parts, rule: Rule, others: Iterable[Rule]) -> list[str]:
    """What the rule does that its author may not expect.

    ``others`` are the tenant's rules, at least those with the same path, with or without this one.
    """
    return [*_stripped_to_root(parts, rule), *_overlaps(rule, others)]


def _stripped_to_root(parts: Parts, rule: Rule) -> list[str]:
    if not rule.strip_path or rule.path == "/":
        return []
    try:
        target = parse_target(rule.target, parts.config.upstream)
    except InvalidField as error:
        return [f"target: requests fail: {error.message}"]
    if target.path:
        return []
    root = target.url(upstream_path(rule.path, True, rule.path), "")
    whole = target.url(rule.path, "")
    return [
        f"strip_path: a request for {rule.path} goes to {root}, because the whole path is the prefix that is removed. "
        f'If it should go to {whole}, write "strip_path": false, or "target": "{whole}".'
    ]


def _overlaps(rule: Rule, others: Iterable[Rule]) -> list[str]:
    if not rule.active:
        return []
    found = []
    for other in others:
        if other.id == rule.id or not other.active or other.path != rule.path:
            continue
        if rule.methods and other.methods and not set(rule.methods) & set(other.methods):
            continue
        # the rule that is being created is not among the others, and is the youngest
        older = min((rule, other), key=lambda each: (each.created_at, each.id))
        found.append(f"path: {other.id} has the same path and methods in common; {older.id} is older and takes those requests.")
    return found
