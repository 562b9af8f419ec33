"""Findings about what tenants have configured: whether it still comes into force with this version and these plugins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from pydantic import ValidationError

from gateway.doctor.finding import Finding, fail, ok, warn
from gateway.errors import InvalidField
from gateway.models import PluginEntry, Rule, Tenant
from gateway.registry import Registry
from gateway.secrets import SealBroken, Vault, is_sealed
from gateway.store import Connection, stored_documents

MOST_TOLD = 20
"""So many findings of a kind are told one by one."""


async def configured_findings(connection: Connection, registry: Registry, vault: Vault | None) -> AsyncIterator[Finding]:
    """Of every tenant; sealed headers are opened where there is a vault. Raises StoreUnavailable."""
    tenants = rules = told = 0
    async for tenant_id, document, texts in stored_documents(connection):
        if document is None:
            continue  # a tenant that was deleted or is being made
        tenants += 1
        rules += len(texts)
        for finding in _of_tenant(tenant_id, document, texts, registry, vault):
            told += 1
            if told <= MOST_TOLD:
                yield finding
    if told > MOST_TOLD:
        yield fail("tenants", f"{told - MOST_TOLD} further findings", "mend these first")
    elif not told:
        yield ok("tenants", f"{tenants} tenants with {rules} rules can be read, their plugins take their settings")


def _of_tenant(
    tenant_id: str, document: bytes, texts: Mapping[str, bytes], registry: Registry, vault: Vault | None
) -> list[Finding]:
    subject = f"tenant {tenant_id}"
    try:
        tenant = Tenant.model_validate_json(document)
    except ValidationError:
        return [fail(subject, "its stored document cannot be read", "restore it from a backup, or write it again")]
    found = _entries(subject, [(name, "required_plugins", ref) for name, ref in tenant.required_plugins.items()], registry)
    found += [
        warn(subject, f"requires the plugin {name}, which is switched off", "remove it or switch it on")
        for name, ref in tenant.required_plugins.items()
        if not ref.enabled
    ]
    for rule_id, text in texts.items():
        where = f"{subject} rule {rule_id}"
        try:
            rule = Rule.model_validate_json(text)
        except ValidationError:
            found.append(fail(where, "its stored document cannot be read", "restore it from a backup, or write it again"))
            continue
        found += _entries(where, [(ref.name, "plugin_chain", ref) for ref in rule.plugin_chain], registry)
        if not _opens(vault, tenant, rule):
            advice = "set the key it was stored with, or enter the credential again"
            found.append(fail(where, "its credential does not open with this secrets.master_key", advice))
    return found


def _entries(subject: str, entries: Sequence[tuple[str, str, PluginEntry]], registry: Registry) -> list[Finding]:
    found = []
    for name, where, entry in entries:
        if entry.enabled:
            try:
                registry.validate(name, entry.settings, entry.stage, where=f"{where}.{name}")
            except InvalidField as error:
                found.append(
                    fail(subject, f"{error.param}: {error.message}", "install the plugin it was written for, or change it")
                )
    return found


def _opens(vault: Vault | None, tenant: Tenant, rule: Rule) -> bool:
    if vault is None:
        return True
    try:
        for name, value in rule.headers.items():
            if is_sealed(value):
                vault.open(value, f"{tenant.id}/{rule.id}/{name.lower()}")
    except SealBroken:
        return False
    return True
