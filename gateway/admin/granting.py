"""What a caller may hand out: nothing that a key creates can exceed the key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.admin.auth import Caller
from gateway.errors import NotAllowed
from gateway.models import ApiKey, NewKey, NewRule, NewTenant, Rule, Tenant

GOVERNED = ("tier", "status", "enabled_plugins", "required_plugins", "limits", "prices")
"""Fields of a tenant that, where an operator token is configured, only the operator may change."""

GOVERNED_OF_RULES = ("format", "prices")
"""The same of a rule: what decides how the operator's limits of tokens and money count."""


def check_governed(caller: Caller, before: Tenant, after: Tenant) -> None:
    """Raises NotAllowed if the caller changes what a tenant is given by the operator, or gives its key more models."""
    _check_unchanged(caller, GOVERNED, before, after)
    if caller.key is not None and caller.key.allowed_models is not None and before.model_aliases != after.model_aliases:
        raise NotAllowed("A key that is limited to some models may not change model_aliases.", param="model_aliases")


def check_governed_rule(caller: Caller, before: Rule | None, after: Rule) -> None:
    """Raises NotAllowed if the caller changes how the operator's limits count, or makes a rule where they count otherwise."""
    _check_unchanged(caller, GOVERNED_OF_RULES, before or NewRule(path="/", target="https://example.com"), after)


def _check_unchanged(caller: Caller, names: Sequence[str], before: NewTenant | NewRule, after: NewTenant | NewRule) -> None:
    if caller.governs:
        return
    for name in names:
        if getattr(before, name) != getattr(after, name):
            raise NotAllowed(f"Only the operator may change {name}.", param=name)


def check_granted(caller: Caller, key: NewKey, before: ApiKey | None = None) -> None:
    """Raises NotAllowed if the key may do more than the caller's own; what it may as ``before`` is not looked at again.

    The operator's keys may do anything. A limit of the caller must be among the key's.
    """
    if caller.key is None:
        return
    for name, fits in _FITS.items():
        own, wanted = getattr(caller.key, name), getattr(key, name)
        if before is not None and getattr(before, name) == wanted:
            continue
        if not fits(own, wanted):
            raise NotAllowed(f"{name}: this would be more than the API key that asks for it may do.", param=name)


def _is_subset(own: Sequence[Any] | None, wanted: Sequence[Any] | None) -> bool:
    return own is None or (wanted is not None and all(value in own for value in wanted))


def _is_earlier(own: Any, wanted: Any) -> bool:
    return own is None or (wanted is not None and wanted <= own)


def _are_within(own: Sequence[Any] | None, wanted: Sequence[Any] | None) -> bool:
    if own is None or wanted is None:
        return own is None
    return all(any(net.version == mine.version and net.subnet_of(mine) for mine in own) for net in wanted)


def _includes(own: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return all(limit in wanted for limit in own)


_FITS: dict[str, Callable[[Any, Any], bool]] = {
    "scopes": _is_subset,
    "expires_at": _is_earlier,
    "limits": _includes,
    "allowed_models": _is_subset,
    "allowed_rules": _is_subset,
    "allowed_networks": _are_within,
}
