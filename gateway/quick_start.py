"""First steps on one machine: a demo tenant against the demo upstream, and lines to paste into a shell."""

from __future__ import annotations

import os
from pathlib import Path

from gateway import virtual_key
from gateway.config import Config
from gateway.models import ApiKey, NewRule, Rule, Tenant, utc_now
from gateway.store import StoredTenant, Stores, new_id, new_tenant_id

SUBDOMAIN = "testcompany"
KEY_FILE = "demo.key"
_MARK = {"demo": "true"}


async def seed_demo(stores: Stores, folder: Path, demo_port: int) -> None:
    """Make the tenant ``testcompany`` with a rule to the demo upstream, unless it is there; its key is in ``demo.key``.

    A tenant of that name which somebody else made is left alone.
    """
    stored = await stores.tenants.by_subdomain(SUBDOMAIN)
    if stored is None:
        await _create(stores, folder)
        stored = await stores.tenants.by_subdomain(SUBDOMAIN)
    if stored is None or stored.tenant.metadata != _MARK:
        return
    await _ensure_key(stores, stored, folder / KEY_FILE)
    await _ensure_rule(stores, stored.tenant.id, f"http://127.0.0.1:{demo_port}")


async def _create(stores: Stores, folder: Path) -> None:
    now = utc_now()
    tenant = Tenant(
        id=new_tenant_id(SUBDOMAIN),
        name="Test Company",
        subdomain=SUBDOMAIN,
        status="active",
        metadata=_MARK,
        created_at=now,
        updated_at=now,
    )
    secret = virtual_key.new_secret()
    await stores.tenants.create(tenant, _key(secret), virtual_key.digest(secret))
    _write_private(folder / KEY_FILE, secret)


async def _ensure_key(stores: Stores, stored: StoredTenant, path: Path) -> None:
    kept = _read_private(path)
    if kept is not None:
        digest = virtual_key.digest(kept)
        # whoever tried out a suspension must still be able to start again
        if await stores.api_keys.authenticate(stored.tenant.id, digest, even_suspended=True) is not None:
            return
    secret = virtual_key.new_secret()
    await stores.api_keys.create(stored.tenant.id, _key(secret), virtual_key.digest(secret))
    _write_private(path, secret)


async def _ensure_rule(stores: Stores, tenant_id: str, target: str) -> None:
    now = utc_now()
    for rule in await stores.rules.all(tenant_id):
        if rule.metadata == _MARK:
            if rule.target != target:
                await _retarget(stores, tenant_id, rule.id, target)
            return
    wanted = NewRule.model_validate(
        {
            "name": "demo",
            "path": "/v1",
            "target": target,
            "metadata": _MARK,
            "plugin_chain": [{"name": "rate_limiter", "settings": {"limit": 100, "window": "1m"}}],
            "prices": {"demo-*": {"input_usd_per_mtok": 0.5, "output_usd_per_mtok": 1.5}},
        }
    )
    rule = Rule(**wanted.model_dump(), id=new_id("rule"), created_at=now, updated_at=now)
    await stores.rules.create(tenant_id, lambda _tenant: rule)


async def _retarget(stores: Stores, tenant_id: str, rule_id: str, target: str) -> None:
    moved = {"target": target, "updated_at": utc_now()}
    await stores.rules.update(tenant_id, rule_id, lambda _, rule: rule.model_copy(update=moved))


def _key(secret: str) -> ApiKey:
    now = utc_now()
    return ApiKey(
        id=new_id("key"),
        name="demo",
        hint=virtual_key.hint(secret),
        status="active",
        scopes=("admin", "proxy"),
        created_at=now,
        updated_at=now,
    )


def _read_private(path: Path) -> str | None:
    return path.read_text(encoding="ascii").strip() if path.is_file() else None


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")


def first_steps(config: Config, folder: Path, *, demo: bool) -> str:
    """Lines for a shell, complete as they stand."""
    scheme = {name: "https" if config.server.has_tls(name) else "http" for name in ("admin", "proxy")}
    admin = f"{scheme['admin']}://localhost:{config.server.admin_port}/api/v1"
    proxy = f"{scheme['proxy']}://{SUBDOMAIN}.localhost:{config.server.proxy_port}"
    if demo:
        return f"""
The gateway is running. Tenant {SUBDOMAIN} leads to the demo upstream, 100 requests a minute. Paste into another shell:

  KEY=$(cat {folder / KEY_FILE})
  curl {proxy}/v1/chat/completions \\
    -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
    -d '{{"model": "demo-small", "messages": [{{"role": "user", "content": "Hello"}}]}}'
"""
    return f"""
The gateway is running. Make a tenant and a rule; paste into another shell:

  TENANT=$(curl -s {admin}/tenants -H "Content-Type: application/json" \\
    -d '{{"name": "Test Company", "subdomain": "{SUBDOMAIN}"}}')
  ID=$(echo "$TENANT" | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
  KEY=$(echo "$TENANT" | python3 -c 'import json, sys; print(json.load(sys.stdin)["api_key"])')
  curl {admin}/tenants/$ID/rules -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
    -d '{{"path": "/v1", "target": "https://api.openai.com",
         "headers": {{"Authorization": "Bearer '"$OPENAI_API_KEY"'"}},
         "plugin_chain": [{{"name": "rate_limiter", "settings": {{"limit": 100, "window": "1m"}}}}]}}'
  curl {proxy}/v1/models -H "Authorization: Bearer $KEY"
"""
