"""The admin app over a fresh fake store, and what tests ask of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import fakeredis

from gateway.admin import create_admin_app
from gateway.config import Config
from gateway.registry import Registry
from gateway.secrets import Vault
from gateway.store import Connection, open_stores
from tests.builders import an_accounting

OPERATOR = "operator-token-of-the-tests"
MASTER_KEY = b"k" * 32
API = "/api/v1"
LIMIT = {"limit": 3, "window": "1m"}


@dataclass(frozen=True)
class Got:
    status: int
    headers: Any
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def refusal(self) -> tuple[int, str, str | None]:
        return self.status, self.error["code"], self.error["param"]


@dataclass
class Admin:
    """``token`` is sent unless a call names another credential; None sends none."""

    app: Any
    redis: Any
    stores: Any
    token: str | None = None
    seen: list[Got] = field(default_factory=list)
    peer: str = "192.0.2.7"

    async def call(self, method, path, body=None, *, key: Any = ..., data: bytes | None = None, more=(), **headers) -> Got:
        """``more`` header fields may be called anything."""
        token = self.token if key is ... else key
        fields = {name.replace("_", "-"): value for name, value in headers.items()} | dict(more)
        if token is not None:
            fields.setdefault("authorization", f"Bearer {token}")
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            fields.setdefault("content-type", "application/json")
        path = path if path.startswith(("/health", "/docs", "/openapi", "/api/")) else API + path
        client = self.app.test_client()
        response = await client.open(path, method=method, headers=fields, data=data, scope_base={"client": (self.peer, 50_000)})
        got = Got(response.status_code, response.headers, await response.get_data(as_text=False))
        self.seen.append(got)
        return got

    async def tenant(self, subdomain="acme", **fields) -> Any:
        """A tenant as created; its own key is used from now on unless there is an operator token."""
        got = await self.call("POST", "/tenants", {"name": "Acme", "subdomain": subdomain} | fields)
        assert got.status == 201, got.raw
        if self.token is None:
            self.token = got.json["api_key"]
        return got.json

    async def make(self, tenant, kind, **fields) -> Any:
        """A key or a rule as created."""
        got = await self.call("POST", f"/tenants/{tenant['id']}/{kind}", fields)
        assert got.status == 201, got.raw
        return got.json

    async def rule(self, tenant, **fields) -> Any:
        return await self.make(tenant, "rules", **({"path": "/v1", "target": "https://api.example.com"} | fields))

    async def key(self, tenant, **fields) -> Any:
        return await self.make(tenant, "api-keys", **fields)

    async def dump(self) -> dict[str, Any]:
        """Everything in the store."""
        found: dict[str, Any] = {}
        for name in await self.redis.keys("*"):
            match await self.redis.type(name):
                case b"hash":
                    found[name] = await self.redis.hgetall(name)
                case b"zset":
                    found[name] = await self.redis.zrange(name, 0, -1, withscores=True)
                case b"list":
                    found[name] = await self.redis.lrange(name, 0, -1)
                case _:
                    found[name] = await self.redis.get(name)
        return found


def an_app(
    stores, *, token: str | None = None, master_key: bytes | None = MASTER_KEY, server=(), upstream=(), **options
) -> Any:
    """``token`` makes an operator; ``server`` and ``upstream`` are sections of the configuration, ``options`` the app's."""
    config = Config(server={"admin_token": token, **dict(server)}, upstream=dict(upstream))
    options = {"failed_logins_per_minute": 10_000} | options
    return create_admin_app(
        stores, Registry.load((), entry_points=False), Vault(master_key), config, an_accounting(config), **options
    )


async def an_admin(*, token: str | None = None, **options) -> Admin:
    """Over an empty store; ``options`` are those of `an_app`."""
    redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    stores = await open_stores(Connection(redis), 60_000, shebang=False)
    return Admin(an_app(stores, token=token, **options), redis, stores, token)


def routes(app) -> Iterable[tuple[str, str, str]]:
    """Method, path as registered, and endpoint of every route, read from the app itself."""
    for rule in app.url_map.iter_rules():
        for method in sorted(rule.methods - {"HEAD"}):
            yield method, rule.rule, rule.endpoint


def texts(value: Any) -> str:
    """All that a dump holds, as one text to search."""
    return repr(value)
