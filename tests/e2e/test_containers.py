"""What docker-compose.yaml and Dockerfile say, done by hand: no container engine is needed to see that it works."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from gateway.store.embedded import find_server
from tests.e2e.processes import HOST, ROOT, Gateway, a_gateway, clean_environment, free_ports, run, running
from tests.servers import DEBIAN_REDIS

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text(encoding="utf-8"))["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
IN_IMAGE = "/opt/gateway/bin/"
TOKEN, MASTER_KEY = "operator-token-of-the-compose-file", "ab" * 32

SERVERS = [
    pytest.param(find_server(), id="valkey"),
    pytest.param(
        DEBIAN_REDIS,
        id="redis",
        marks=pytest.mark.skipif(not DEBIAN_REDIS.exists(), reason="Debian's redis-server is not installed"),
    ),
]


def words(instruction: str) -> list[str]:
    """The command of the last such instruction of the Dockerfile, with the programs of the environment of the tests."""
    (command,) = re.findall(rf"^{instruction} .*?(\[.*\])$", DOCKERFILE, re.MULTILINE)
    return [word.replace(IN_IMAGE, f"{Path(sys.executable).parent}/") for word in json.loads(command)]


@contextlib.contextmanager
def compose_redis(binary: Path, folder: Path) -> Iterator[redis.Redis]:
    """The service ``redis``, on loopback; a client of it."""
    program, *options = COMPOSE["redis"]["command"]
    assert program == "redis-server"
    (port,) = free_ports(1)
    here = ("--port", str(port), "--bind", HOST, "--dir", folder)
    with (
        running(binary, *options, *here, env=clean_environment(folder), cwd=folder) as server,
        redis.Redis(host=HOST, port=port) as client,
    ):

        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        server.wait_until(answers, "ready")
        yield client


def compose_settings(client: redis.Redis) -> dict[str, str]:
    """The environment of the service ``gateway``, with what its variables ask for and the addresses of loopback."""
    port = client.connection_pool.connection_kwargs["port"]
    given = {"GATEWAY_SERVER__ADMIN_TOKEN": TOKEN, "GATEWAY_SECRETS__MASTER_KEY": MASTER_KEY}
    settings = {}
    for name, text in COMPOSE["gateway"]["environment"].items():
        value = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: given[match[1]], text)
        value = value.replace("redis:6379", f"{HOST}:{port}").replace("0.0.0.0", HOST)
        settings[name.removeprefix("GATEWAY_")] = value
    return settings


@pytest.mark.parametrize("binary", SERVERS)
def test_the_redis_of_compose_forgets_nothing(binary: Path, folder: Path):
    with compose_redis(binary, folder) as client:
        found = {name: value for question in ("maxmemory*", "append*") for name, value in client.config_get(question).items()}
        assert found["maxmemory-policy"] == "noeviction"
        assert found["maxmemory"] == str(512 << 20)
        assert (found["appendonly"], found["appendfsync"]) == ("yes", "everysec")


@pytest.mark.parametrize("binary", SERVERS[:1])
def test_the_image_runs_as_compose_configures_it(binary: Path, folder: Path):
    entrypoint, default = words("ENTRYPOINT"), words("CMD")
    assert [*entrypoint, *default] == [str(Path(sys.executable).with_name("gateway")), "run"]
    with (
        compose_redis(binary, folder) as client,
        a_gateway(folder, command=entrypoint, settings=compose_settings(client)) as gateway,
    ):
        assert gateway.admin("POST", "/tenants", {"name": "A", "subdomain": "a"}).status == 401
        tenant = gateway.admin("POST", "/tenants", {"name": "A", "subdomain": "a"}, key=TOKEN)
        assert tenant.status == 201
        rule = {"path": "/", "target": "https://api.example.com", "headers": {"Authorization": "Bearer canary-secret"}}
        assert gateway.admin("POST", f"/tenants/{tenant.json['id']}/rules", rule, key=TOKEN).status == 201
        held = [client.dump(key) for key in client.keys("*")]
        assert held
        assert not any(b"canary-secret" in (value or b"") for value in held)
        assert gateway.demo_port
        assert not gateway.data_dir.exists()


def test_the_health_check_of_the_image_tells_ready_from_not(local_gateway: Gateway, folder: Path):
    def check(port: int) -> int:
        command = [word.replace(":8081/", f":{port}/") for word in words("HEALTHCHECK")]
        assert any(f":{port}/health/ready" in word for word in command)
        return run(*command, env=clean_environment(folder), cwd=folder)[0]

    assert check(local_gateway.proxy_port) == 0
    assert check(free_ports(1)[0]) == 1


def test_what_the_image_copies_is_enough_to_build_the_package(folder: Path):
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    (folder / "src").mkdir()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        for name in sources:
            assert f"!{name}" in ignored
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / "src" / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / name, folder / "src" / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    code, _, errors = run(*pip, folder / "src", env=clean_environment(folder), cwd=folder)
    assert (code, errors) == (0, "")
    assert len(list(folder.glob("ai_gateway-*.whl"))) == 1
