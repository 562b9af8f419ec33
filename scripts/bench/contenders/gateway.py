"""This gateway, of this checkout or another, on each engine and with several workers."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.load import Request
from scripts.bench.processes import HOST, Program, free_port, running

DOMAIN = "example.com"
SUBDOMAIN = "testcompany"
LIMIT = {"limit": 1_000_000_000, "window": "1m"}
"""A sliding window that nothing fills."""


@dataclass(frozen=True)
class Checkout:
    """A gateway to run: its Python and the folder it runs in, and the database of Redis that is its own."""

    name: str
    python: Path
    root: Path
    db: int = 0


@dataclass(frozen=True)
class Caller:
    """A tenant with a key and what they need to be called."""

    tenant_id: str
    secret: str
    subdomain: str = SUBDOMAIN

    @property
    def headers(self) -> dict[str, str]:
        return {"Host": f"{self.subdomain}.{DOMAIN}", "Authorization": f"Bearer {self.secret}"}


@dataclass(frozen=True)
class Running:
    """A gateway that accepts."""

    program: Program
    admin_port: int
    proxy_port: int

    def request(self, caller: Caller) -> Request:
        return Request(self.proxy_port, headers=caller.headers)

    def admin(self, method: str, path: str, body: Any = None, secret: str | None = None) -> Any:
        """A call of the admin API. Raises RuntimeError unless it is answered 2xx."""
        headers = {"Content-Type": "application/json"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        connection = http.client.HTTPConnection(HOST, self.admin_port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, f"/api/v1{path}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
        return json.loads(text) if text else None

    def create_tenant(self, subdomain: str = SUBDOMAIN) -> Caller:
        """A tenant without rules."""
        made = self.admin("POST", "/tenants", {"name": "Bench", "subdomain": subdomain})
        return Caller(made["id"], made["api_key"], subdomain)

    def create_rule(
        self, caller: Caller, target: str, path: str = "/v1", limits: Sequence[Mapping[str, Any]] = (LIMIT,)
    ) -> str:
        """A rule with so many limits; its id."""
        chain = [{"name": "rate_limiter", "settings": {"limits": list(limits)}}] if limits else []
        rule = {"path": path, "target": target, "plugin_chain": chain}
        made = self.admin("POST", f"/tenants/{caller.tenant_id}/rules", rule, caller.secret)
        return str(made["id"])


@contextlib.contextmanager
def a_gateway(
    bed: Bed,
    checkout: Checkout,
    *,
    engine: str = "hypercorn",
    workers: int = 1,
    cores: Sequence[int] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Running]:
    """Run one. ``settings`` are sections over the bench's own. Raises DidNotStart, also where the configuration is refused."""
    admin_port, proxy_port = free_port(), free_port()
    config: dict[str, dict[str, Any]] = {
        "server": {
            "admin_port": admin_port,
            "proxy_port": proxy_port,
            "proxy_host": HOST,
            "drain_delay": 0,
        },
        "redis": {"host": HOST, "port": bed.redis_port, "db": checkout.db},
        "upstream": {"allowed_networks": ["127.0.0.0/8"], "pool_size": 20_000},
        "limits": {"max_in_flight": 20_000, "max_in_flight_per_tenant": 20_000},
    }
    # unless asked for, not even named: an older checkout may not know the key
    if (checkout.root / "gateway/config/server.py").exists():
        config["server"]["max_connections_per_ip"] = 0
    if engine != "hypercorn":
        config["server"]["engine"] = engine
    if workers != 1:
        config["server"]["workers"] = workers
    for section, changed in (settings or {}).items():
        config.setdefault(section, {}).update(changed)
    name = f"{checkout.name}-{engine}-{workers}-{proxy_port}"
    path = bed.folder / f"{name}.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    command: list[str | Path] = [checkout.python, "-m", "gateway", "run", "--config", path]
    with running(
        name, command, folder=bed.folder, cores=cores or bed.cores.proxy, port=proxy_port, cwd=checkout.root
    ) as program:
        program.wait_for_port(admin_port)
        yield Running(program, admin_port, proxy_port)


@dataclass(frozen=True)
class Callers:
    """The tenant whose rule leads to the upstream that answers at once, and the one whose leads to that which streams."""

    json: Caller
    streams: Caller

    def of(self, streams: bool) -> Caller:
        return self.streams if streams else self.json


def create_callers(bed: Bed, gateway: Running) -> Callers:
    """In the database of this gateway's checkout."""
    found = []
    for subdomain, streams in ((SUBDOMAIN, False), (f"{SUBDOMAIN}-streams", True)):
        caller = gateway.create_tenant(subdomain)
        gateway.create_rule(caller, bed.target_url(streams))
        found.append(caller)
    return Callers(*found)


@dataclass(frozen=True)
class GatewayContender:
    """A checkout on an engine, called by tenants that are there already."""

    checkout: Checkout
    callers: Callers
    engine: str = "hypercorn"
    workers: int = 1

    @property
    def name(self) -> str:
        workers = f" x{self.workers}" if self.workers > 1 else ""
        return f"{self.checkout.name} {self.engine}{workers}"

    @contextlib.contextmanager
    def start(self, bed: Bed, *, streams: bool = False) -> Iterator[Endpoint]:
        with a_gateway(bed, self.checkout, engine=self.engine, workers=self.workers) as gateway:
            yield Endpoint(gateway.program, gateway.request(self.callers.of(streams)))
