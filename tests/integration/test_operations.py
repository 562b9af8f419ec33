"""docs/operations.md: its backup comes back whole, its alerts name series and codes that exist."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from gateway import errors
from gateway.store.embedded import find_server
from gateway.telemetry import Metrics
from tests.gateways import Gateway, running_proxy
from tests.servers import DEBIAN_REDIS, Server, free_port, redis_server
from tests.stores import dump
from tests.users import ROOT, as_administrator, write_users
from tests.wire import an_upstream

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

needs_redis = pytest.mark.skipif(
    not DEBIAN_REDIS.exists() or shutil.which("redis-cli") is None, reason="redis-server and redis-cli are not installed"
)
TWO = {"name": "rate_limiter", "settings": {"quota": {"monthly": 3}}}


def commands(name: str) -> str:
    """The shell commands of a part of the page."""
    found = re.search(rf"<!-- {name}: start -->\n```bash\n(.*?)```\n<!-- {name}: end -->", PAGE, re.DOTALL)
    assert found is not None, name
    return found[1]


def shell(text: str, folder: Path, **environment: str) -> None:
    done = subprocess.run(
        ["bash", "-euc", text],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def used_up(gateway: Gateway) -> tuple[str, str]:
    """A tenant that has used two of three requests, and its key."""
    tenant = await gateway.new_tenant()
    async with an_upstream() as upstream:
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[TWO])
        for _ in range(2):
            assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200
        await gateway.idle()
    return tenant.id, tenant.secret


async def still_whole(url: str, tenant_id: str, secret: str) -> None:
    """Its key is known, the third request is the last, and the ledger goes on."""
    async with running_proxy(url) as gateway, an_upstream() as upstream:
        (rule,) = await gateway.stores.rules.all(tenant_id)
        await gateway.stores.rules.update(tenant_id, rule.id, lambda _, rule: rule.model_copy(update={"target": upstream.url}))
        statuses = [(await gateway.ask("GET", "/v1/x", key=secret)).status for _ in range(2)]
        assert statuses == [200, 429]
        await counted(gateway, tenant_id, 3)


@pytest.mark.real_store
@needs_redis
async def test_a_snapshot_comes_back_with_keys_limits_and_ledger(tmp_path: Path):
    with redis_server(DEBIAN_REDIS, persistent=True) as server:
        async with running_proxy(server.url) as gateway:
            tenant_id, secret = await used_up(gateway)
            names = await counted(gateway, tenant_id, 2)
            before = await dump(gateway.stores.connection)
        await asyncio.to_thread(shell, commands("backup"), tmp_path, REDIS_ADMIN_URL=as_administrator(server.url))
    assert any(b":limit:" in name for name in before)
    port = free_port()
    conf, data = tmp_path / "redis.conf", tmp_path / "data"
    data.mkdir()
    conf.write_text(
        f"port {port}\nbind 127.0.0.1\naclfile {write_users(tmp_path)}\npidfile {tmp_path}/pid\n"
        f'logfile {tmp_path}/log\nsave ""\n'
    )
    restored = Server((), data, port, has_users=True)
    with ended(tmp_path / "pid"):
        await asyncio.to_thread(
            shell,
            commands("restore"),
            tmp_path,
            REDIS_ADMIN_URL=as_administrator(restored.url),
            DATA_DIR=str(data),
            REDIS_CONF=str(conf),
        )
        async with running_proxy(restored.url) as gateway:
            assert await dump(gateway.stores.connection) == before
            assert names <= before.keys()
        await still_whole(restored.url, tenant_id, secret)
        assert list(data.glob("appendonlydir/*.aof")), "from now on it is written down"


@contextlib.contextmanager
def ended(pidfile: Path) -> Iterator[None]:
    """The daemon that writes the file ends with the context, or with this process in whatever way that dies."""
    waiting = 'read _; kill -KILL "$(cat "$0")" 2>/dev/null'
    watchdog = subprocess.Popen(["/bin/sh", "-c", waiting, str(pidfile)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        watchdog.communicate()


async def counted(gateway: Gateway, tenant_id: str, requests: int) -> set[bytes]:
    """The names of the ledger's days, once so many requests are in it."""
    client = gateway.stores.connection.client
    async with asyncio.timeout(20):
        while True:
            names = set(await client.keys(f"*:usage:{tenant_id}:*"))
            counts = [
                value for name in names for field, value in (await client.hgetall(name)).items() if field.startswith(b"r:")
            ]
            if sum(map(int, counts)) == requests:
                return names
            await asyncio.sleep(0.02)


@pytest.mark.real_store
async def test_append_only_files_come_back_with_keys_limits_and_ledger(tmp_path: Path):
    with redis_server(find_server(), persistent=True) as server:
        async with running_proxy(server.url) as gateway:
            tenant_id, secret = await used_up(gateway)
            await counted(gateway, tenant_id, 2)
            before = await dump(gateway.stores.connection)
        server.signal(signal.SIGTERM)
        assert server._process is not None
        server._process.wait(20)
        shutil.copytree(server.directory / "appendonlydir", tmp_path / "appendonlydir")
        server.kill()
    with redis_server(find_server(), persistent=True) as fresh:
        fresh.kill()
        shutil.rmtree(fresh.directory / "appendonlydir")
        shutil.copytree(tmp_path / "appendonlydir", fresh.directory / "appendonlydir")
        fresh.start()
        async with running_proxy(fresh.url) as gateway:
            assert await dump(gateway.stores.connection) == before
        await still_whole(fresh.url, tenant_id, secret)


# Alerts


def expressions() -> list[str]:
    part = PAGE.partition("## Alerts")[2].partition("\n## ")[0]
    found = re.findall(r"^\| [^|]+ \| `(.+?)` \| \d", part, re.MULTILINE)
    assert len(found) >= 10
    return [expression.replace(r"\|", "|") for expression in found]


def series() -> dict[str, set[str]]:
    """Every series that is exposed, with the labels it has."""
    found: dict[str, set[str]] = {}
    for collector in vars(Metrics()).values():
        if isinstance(collector, MetricWrapperBase):
            labels = set(collector._labelnames)
            if isinstance(collector, Histogram):
                found |= {f"{collector._name}_bucket": labels | {"le"}}
                found |= {f"{collector._name}_{part}": labels for part in ("sum", "count")}
            else:
                found[f"{collector._name}_total" if isinstance(collector, Counter) else collector._name] = labels
    return found


def test_every_series_that_is_exposed_is_known():
    text = Metrics().exposition()[0].decode()
    exposed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert {name.removesuffix("_bucket") for name in series() if not name.endswith(("_sum", "_count"))} == exposed


@pytest.mark.parametrize("expression", expressions())
def test_an_alert_names_series_and_labels_that_exist(expression: str):
    known = series()
    # what is summed by labels is the one series behind them
    pattern = r"(?:\bby \(([^)]*)\) \((?:\w+\()?)?(gateway_\w+)(?:\{([^}]*)\})?"
    named = re.findall(pattern, expression)
    assert [name for _, name, _ in named] == re.findall(r"gateway_\w+", expression)
    assert expression.count("by (") == len([by for by, _, _ in named if by])
    for by, name, selector in named:
        assert name in known, name
        assert set(re.findall(r"\w+", by)) | set(re.findall(r'(\w+)=~?"', selector)) <= known[name]


def test_the_codes_of_alerts_and_faults_exist():
    codes = {value.code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "code")}
    named = set(re.findall(r'code="(\w+)"', PAGE)) | set(re.findall(r"\b50\d `(\w+)`", PAGE))
    assert len(named) >= 6
    assert named <= codes


def measured(title: str) -> dict[str, dict[str, float]]:
    """The first table of performance.md under that title: its rows by their first cell, with their figures by column."""
    _, found, rest = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").partition(f"\n**{title}**\n\n")
    assert found, title
    head, _, *rows = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rest.partition("\n\n")[0].splitlines())
    return {
        row[0]: {name: float(cell.replace(",", "")) for name, cell in zip(head[1:], row[1:], strict=True) if cell}
        for row in rows
    }


def test_the_sizes_are_those_that_were_measured():
    engines = "hypercorn", "uvicorn", "granian"

    def each(title: str, column: str) -> list[float]:
        rows = measured(title)
        return [rows[f"gateway {engine}"][column] for engine in engines]

    def redis(limits: str) -> list[float]:
        return [measured(f"{engine}: limits of a request")[limits]["Redis CPU µs/request"] for engine in engines]

    requests = each("32 connections", "CPU µs/request")
    chunks = each("Streams with a chunk each 20 ms; one at a time, 32, and 200", "CPU µs/chunk, 200 streams")
    memory = "1,000 idle keep-alive connections; then open streams with a chunk each 2 s"
    rest, stream, idle = (each(memory, column) for column in ("MB at rest", "KB/open stream", "KB/idle connection"))
    part = PAGE.partition("## How much is needed")[2].partition("\n## ")[0]
    said = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in part.splitlines() if row.startswith("| ")}
    said.pop("")
    assert said == {
        "CPU of a forwarded request": "{:.0f} µs with `hypercorn`, {:.0f} with `uvicorn`, {:.0f} with `granian`".format(
            *requests
        ),
        "CPU of a streamed chunk, 200 streams": "{:.1f}, {:.1f} and {:.1f} µs".format(*chunks),
        "memory of a process": (
            f"{span(rest)} MB at rest; {span(stream)} KB for an open stream, {span(idle)} KB for an idle connection"
        ),
        "Redis, a request with one limit": f"{span(redis('1'), 1)} µs; with five limits {span(redis('5'), 1)}",
    }


def span(figures: list[float], digits: int = 0) -> str:
    return f"{min(figures):.{digits}f} to {max(figures):.{digits}f}"


def test_every_key_and_page_that_is_named_exists():
    known = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for key in re.findall(r"`((?:server|redis|limits|upstream|secrets)\.\w+)`", PAGE):
        assert f"`{key}`" in known, key
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
