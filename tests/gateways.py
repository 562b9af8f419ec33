"""A running proxy for tests: the real app on the real server, in front of a real store.

    async with running_proxy(server.url) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        reply = await gateway.ask("GET", "/v1/models", key=tenant.secret)

Targets on 127.0.0.1 are allowed unless the test says otherwise. Keyword arguments are sections of the configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway import virtual_key
from gateway.config import Config
from gateway.models import ApiKey, NewKey, NewRule, NewTenant, Rule, Tenant, is_plain_header, utc_now
from gateway.plugin import Plugin
from gateway.proxy import ProxyParts, create_proxy_app
from gateway.registry import PluginInfo, Registry
from gateway.secrets import Vault
from gateway.serving import Listener, serve
from gateway.store import Connection, Stores, connect, new_id, new_tenant_id, open_stores
from gateway.telemetry import AccessLog, Metrics
from tests.builders import an_accounting, built_in_plugins
from tests.engines import ENGINE
from tests.no_secrets import assert_no_key
from tests.stores import for_tests, patient
from tests.wire import Fields, Message, Wire, connected_to, eventually

MASTER_KEY = bytes(range(32))
BASE_DOMAIN = "example.com"


@dataclass(frozen=True)
class ATenant:
    """A tenant in the store, and the secret of its first key."""

    id: str
    subdomain: str
    secret: str
    key_id: str = ""

    @property
    def host(self) -> str:
        return f"{self.subdomain}.{BASE_DOMAIN}"


@dataclass
class Gateway:
    """A proxy that serves on ``port``, and the hands of its operator.

    ``connection`` is the proxy's own; that of ``stores`` is the administrator's.
    """

    port: int
    config: Config
    connection: Connection
    stores: Stores
    vault: Vault
    metrics: Metrics
    log: io.StringIO
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log_lines(self) -> list[dict[str, Any]]:
        """The access log, parsed."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    async def logged(self, count: int = 1) -> dict[str, Any]:
        """The last line, once so many are there; a line is written after the client has its reply."""
        await eventually(lambda: len(self.log_lines()) >= count)
        return self.log_lines()[-1]

    async def idle(self) -> None:
        """Returns when no request is in flight."""
        await eventually(lambda: not self.in_flight())

    def in_flight(self) -> int:
        return int(next(iter(self.metrics.in_flight.collect())).samples[0].value)

    def series(self) -> set[str]:
        """Every series of the metrics, with its labels."""
        text = self.metrics.exposition()[0].decode()
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    # what clients do

    def connected(self) -> contextlib.AbstractAsyncContextManager[Wire]:
        """A client's connection."""
        return connected_to(self.port)

    async def ask(
        self,
        method: str,
        target: str,
        *,
        key: str | None = None,
        host: str = f"testcompany.{BASE_DOMAIN}",
        fields: Fields = (),
        body: bytes | None = None,
    ) -> Message:
        """One request on a connection of its own."""
        async with self.connected() as wire:
            return await wire.ask(method, target, self.fields(key=key, host=host, fields=fields, body=body), body or b"")

    def fields(
        self, *, key: str | None, host: str = f"testcompany.{BASE_DOMAIN}", fields: Fields = (), body: bytes | None = None
    ) -> list[tuple[str, str]]:
        """The header fields of an ordinary request."""
        more = list(fields.items() if isinstance(fields, Mapping) else fields)
        found = [("host", host)]
        if key is not None:
            found.append(("authorization", f"Bearer {key}"))
        if body is not None:
            found.append(("content-length", str(len(body))))
        return [*found, *more]

    # what operators do

    async def new_tenant(
        self, subdomain: str = "testcompany", *, key: Mapping[str, Any] | None = None, **fields: Any
    ) -> ATenant:
        """Store a tenant with a key; fields as in the admin API."""
        now = utc_now()
        new = NewTenant.model_validate({"name": "Test Company", "subdomain": subdomain, **fields})
        facts = {"id": new_tenant_id(subdomain), "status": "active", "created_at": now, "updated_at": now}
        tenant = Tenant.model_validate(new.model_dump(mode="json") | facts)
        secret = virtual_key.new_secret()
        first = _key(secret, key or {})
        await self.stores.tenants.create(tenant, first, virtual_key.digest(secret))
        return ATenant(tenant.id, subdomain, secret, first.id)

    async def change_tenant(self, tenant: ATenant, **fields: Any) -> None:
        """Replace fields of a tenant."""
        await self.stores.tenants.update(tenant.id, lambda stored: _changed(stored, fields))

    async def new_key(self, tenant: ATenant, **fields: Any) -> str:
        """A further key's secret."""
        secret = virtual_key.new_secret()
        await self.stores.api_keys.create(tenant.id, _key(secret, fields), virtual_key.digest(secret))
        return secret

    async def revoke(self, tenant: ATenant, secret: str) -> None:
        """Revoke the key of a secret."""
        found = await self.stores.api_keys.authenticate(tenant.id, virtual_key.digest(secret))
        assert found is not None
        await self.stores.api_keys.update(
            tenant.id, found.id, lambda key: key.model_copy(update={"status": "revoked", "updated_at": utc_now()})
        )

    async def new_rule(self, tenant: ATenant, target: str, path: str = "/v1", **fields: Any) -> str:
        """The id of a new rule; header values that may be secrets are sealed as the admin API does."""
        now, rule_id = utc_now(), new_id("rule")
        new = NewRule.model_validate({"path": path, "target": target, **fields})
        headers = {
            name: value
            if is_plain_header(name)
            else self.vault.seal(value, f"{tenant.id}/{rule_id}/{name.lower()}", param="headers")
            for name, value in new.headers.items()
        }
        rule = Rule(**(new.model_dump() | {"headers": headers}), id=rule_id, created_at=now, updated_at=now)
        await self.stores.rules.create(tenant.id, lambda _: rule)
        return rule_id

    async def change_rule(self, tenant: ATenant, rule_id: str, **fields: Any) -> None:
        """Replace fields of a rule."""
        await self.stores.rules.update(tenant.id, rule_id, lambda _, rule: _changed(rule, fields))


def _key(secret: str, fields: Mapping[str, Any]) -> ApiKey:
    now = utc_now()
    new = NewKey.model_validate({"scopes": ("admin", "proxy"), **fields})
    more = {"id": new_id("key"), "hint": virtual_key.hint(secret), "status": "active", "created_at": now, "updated_at": now}
    return ApiKey.model_validate(new.model_dump(mode="json") | more)


def _changed(stored: Any, fields: Mapping[str, Any]) -> Any:
    return type(stored).model_validate(stored.model_dump(mode="json") | dict(fields))


def registry_with(*plugins: type[Plugin[Any]]) -> Registry:
    """The built-in plugins and these."""
    built_in = built_in_plugins()
    infos = [info for name in built_in.names() if (info := built_in.get(name)) is not None]
    more = [
        PluginInfo(cls.name, cls.__doc__ or "", cls.stages(), cls.settings_type.model_json_schema(), "test", cls)
        for cls in plugins
    ]
    return Registry([*infos, *more])


@contextlib.asynccontextmanager
async def running_proxy(
    store_url: str,
    *,
    plugins: Sequence[type[Plugin[Any]]] = (),
    server: Mapping[str, Any] | None = None,
    upstream: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    redis: Mapping[str, Any] | None = None,
    prices: Mapping[str, Any] | None = None,
    alerts: Mapping[str, Any] | None = None,
) -> AsyncIterator[Gateway]:
    """Serve a proxy on a free port. ``plugins`` are installed besides the built-in ones."""
    config = Config.model_validate(
        {
            # every client of a test has the same address
            "server": {
                "base_domain": BASE_DOMAIN,
                "drain_delay": 0,
                "drain_timeout": "2s",
                "engine": ENGINE,
                "max_connections_per_ip": 0,
                **(server or {}),
            },
            "upstream": {"allowed_networks": "127.0.0.0/8", **(upstream or {})},
            "limits": dict(limits or {}),
            "prices": dict(prices or {}),
            "alerts": dict(alerts or {}),
        }
    )
    settings = patient(store_url).model_copy(update=dict(redis or {}))
    connection = connect(settings)
    try:
        stores = await open_stores(connection, config.limits.lease, config.usage.retention)
        metrics, log, leaving = Metrics(), io.StringIO(), asyncio.Event()
        vault = Vault(MASTER_KEY)
        app = create_proxy_app(
            ProxyParts(
                config, stores, registry_with(*plugins), vault, an_accounting(config), metrics, AccessLog(log), leaving.is_set
            )
        )
        bound: asyncio.Future[Mapping[str, tuple[str, int]]] = asyncio.get_running_loop().create_future()
        shutdown = asyncio.Event()
        listener = Listener(app, "127.0.0.1", 0, "proxy")
        task: asyncio.Future[Any] = asyncio.create_task(
            serve([listener], config.server, shutdown, ready=bound.set_result, leaving=leaving, cleanup_ms=1_000)
        )
        either: list[asyncio.Future[Any]] = [task, bound]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        try:
            async with for_tests(stores, store_url) as stores_for_tests:
                port = bound.result()["proxy"][1]
                yield Gateway(port, config, connection, stores_for_tests, vault, metrics, log, leaving)
        finally:
            shutdown.set()
            await task
        assert_no_key("the access log", log.getvalue())
        assert_no_key("the metrics", metrics.exposition()[0].decode())
    finally:
        await connection.close()
