"""``gateway export-usage`` as a process: killed at random while requests run, it loses nothing and its files stay whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.store import Keyspace, Settlement, Stores, Used, connect, open_stores
from tests.e2e.processes import GATEWAY, Gateway, Program, a_gateway, clean_environment, run, running
from tests.servers import DEBIAN_REDIS, redis_cluster, short_directory, valkey_server, wait_until
from tests.stores import LEASE_MS, patient
from tests.wire import Call, an_upstream, connected_to

pytestmark = pytest.mark.real_store

KILLS = 8
SUMS = ("requests", "input_tokens", "output_tokens", "cached_tokens", "cost_nano_usd")
SETTINGS = {
    "USAGE__RECEIPTS": "true",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
    "REDIS__COMMAND_TIMEOUT": "20s",
    "REDIS__CONNECT_TIMEOUT": "20s",
    "LOG__ACCESS": "false",
}


@contextlib.contextmanager
def a_store(form: str) -> Iterator[str]:
    """The URL of a server, or of a cluster of three primaries."""
    if form == "single":
        with valkey_server() as server:
            yield server.url
    else:
        if not DEBIAN_REDIS.exists():
            pytest.skip("Debian's redis-server is not installed")
        with redis_cluster(DEBIAN_REDIS) as cluster:
            yield cluster.url


@contextlib.contextmanager
def an_export(folder: Path, url: str, *options: str) -> Iterator[Program]:
    env = clean_environment(folder, GATEWAY_REDIS__URL=url, GATEWAY_REDIS__COMMAND_TIMEOUT="20s")
    with running(*GATEWAY, "export-usage", "--to", folder / "out", *options, env=env, cwd=folder) as program:
        yield program


def export_once(folder: Path, url: str, *options: str, **env: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error without log lines."""
    env = clean_environment(folder, GATEWAY_REDIS__URL=url, **env)
    code, output, errors = run(*GATEWAY, "export-usage", "--to", folder / "out", *options, env=env, cwd=folder)
    return code, output, "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("{"))


def documents(folder: Path) -> list[dict[str, Any]]:
    """Every line of every file; each must be whole."""
    found = []
    for path in sorted((folder / "out").glob("receipts-*.jsonl")):
        content = path.read_bytes()
        assert content == b"" or content.endswith(b"\n"), path
        found += [json.loads(line) for line in content.splitlines()]
    return found


# A process that is killed


@dataclass
class Tenant:
    """A tenant of the gateway, and what it was asked and settled for."""

    id: str
    subdomain: str
    key: str
    answered: int = 0
    settled: dict[str, Used] = field(default_factory=dict)


def a_tenant(gateway: Gateway, subdomain: str, target: str) -> Tenant:
    made = gateway.admin("POST", "/tenants", {"name": subdomain, "subdomain": subdomain}).json
    for path in ("/one", "/two"):
        rule = {"path": path, "target": target}
        assert gateway.admin("POST", f"/tenants/{made['id']}/rules", rule, key=made["api_key"]).status == 201
    return Tenant(made["id"], subdomain, made["api_key"])


async def answering(call: Call) -> None:
    await call.read_body()
    await call.answer(200, body=b"{}")


async def ask(gateway: Gateway, tenant: Tenant, stop: asyncio.Event, chance: random.Random) -> None:
    """Requests of one client until it is told to stop; it counts those that were answered."""
    async with connected_to(gateway.proxy_port) as wire:
        while not stop.is_set():
            body = json.dumps({"model": chance.choice(["small", "large:ü", ""])}).encode()
            fields = [
                ("host", f"{tenant.subdomain}.example.com"),
                ("authorization", f"Bearer {tenant.key}"),
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
            ]
            reply = await wire.ask("POST", chance.choice(["/one", "/two"]), fields, body)
            assert reply.status == 200, reply
            tenant.answered += 1
            await asyncio.sleep(0.002)


async def settle(stores: Stores, tenants: list[Tenant], stop: asyncio.Event, chance: random.Random) -> None:
    """Settlements with amounts that a provider may report, many of them alike; some are repeated."""
    while not stop.is_set():
        tenant = chance.choice(tenants)
        now = int(time.time() * 1_000) - chance.choice([0, 0, 0, 86_400_000])
        what = Used(
            tenant.id, "key_x", f"rule_{chance.choice('ab')}", chance.choice(["small", "gpt:4"]),
            1, chance.randrange(10**5), chance.randrange(10**4), chance.randrange(10**3), chance.randrange(10**12),
        )  # fmt: skip
        names = [f"{chance.getrandbits(128):032x}" for _ in range(chance.choice([1, 1, 2, 30, 90]))]
        settlements = [Settlement(Keyspace(tenant.subdomain), name, now, (), what) for name in names]
        for _ in range(chance.choice([1, 1, 2])):
            assert not any(await stores.settlements.settle(settlements))
        tenant.settled.update(dict.fromkeys(names, what))
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def traffic(gateway: Gateway, stores: Stores, tenants: list[Tenant], seed: int) -> AsyncIterator[None]:
    stop, chance = asyncio.Event(), random.Random(seed)
    clients = [ask(gateway, tenant, stop, random.Random(chance.random())) for tenant in tenants for _ in range(2)]
    tasks = [asyncio.create_task(work) for work in (*clients, settle(stores, tenants, stop, chance))]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def usage(gateway: Gateway, tenant: Tenant) -> dict[str, Any]:
    today = datetime.now(UTC).date()
    query = f"group_by=day,key,rule,model&from={today - timedelta(3)}&to={today + timedelta(1)}"
    report: dict[str, Any] = gateway.admin("GET", f"/tenants/{tenant.id}/usage?{query}", key=tenant.key).json
    return report


def check(gateway: Gateway, tenant: Tenant, receipts: dict[str, dict[str, Any]]) -> None:
    """Receipts by id and the ledger are the same to the last nano-dollar, and both are what was settled."""
    assert len(receipts) == tenant.answered + len(tenant.settled)
    for name, what in tenant.settled.items():
        receipt = receipts[name]
        assert (receipt["tenant_id"], receipt["api_key_id"], receipt["rule_id"], receipt["model"]) == what[:4]
        assert tuple(receipt[metric] for metric in SUMS) == what[4:]
    sums: dict[tuple[str, ...], Counter[str]] = {}
    for receipt in receipts.values():
        row = receipt["admitted_at"][:10], receipt["api_key_id"], receipt["rule_id"], receipt["model"]
        sums.setdefault(row, Counter()).update({metric: receipt[metric] for metric in SUMS})
    report = usage(gateway, tenant)
    rows = {(row["day"], row["key"], row["rule"], row["model"]): row for row in report["rows"]}
    assert {row: {metric: sums[row][metric] for metric in SUMS} for row in sums} == {
        row: {metric: rows[row][metric] for metric in SUMS} for row in rows
    }
    assert report["total"] == {metric: sum(receipt[metric] for receipt in receipts.values()) for metric in SUMS}
    assert sorted(receipt["number"] for receipt in receipts.values()) == list(range(1, len(receipts) + 1))


async def kill_exports(folder: Path, url: str, chance: random.Random) -> int:
    """Follow, die at a random moment, again. Returns how many lines there are in the end."""
    for number in range(KILLS):
        before = _size(folder)
        with an_export(folder, url, "--follow", "--every", "20ms", "--max-file-bytes", "200KB") as program:
            if number:
                await asyncio.to_thread(program.wait_until, lambda: _size(folder) > before, "exporting")  # noqa: B023
            await asyncio.sleep(chance.choice([0, 0.005, chance.uniform(0, 0.5)]))
            program.kill()
    return sum(path.read_bytes().count(b"\n") for path in (folder / "out").glob("receipts-*"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "out").glob("receipts-*"))


@pytest.mark.parametrize("form", ["single", "cluster"])
async def test_an_export_that_is_killed_again_and_again_has_every_settled_request(form: str):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with contextlib.AsyncExitStack() as stack:
        url = stack.enter_context(a_store(form))
        folder = stack.enter_context(short_directory())
        gateway = await asyncio.to_thread(stack.enter_context, a_gateway(folder, settings={**SETTINGS, "REDIS__URL": url}))
        upstream = await stack.enter_async_context(an_upstream(answering))
        connection = connect(patient(url))
        stack.push_async_callback(connection.close)
        stores = await open_stores(connection, LEASE_MS, max_receipts=1_000_000)
        tenants = [await asyncio.to_thread(a_tenant, gateway, name, upstream.url) for name in ("acme", "beta", "gamma")]
        async with traffic(gateway, stores, tenants, seed):
            lines = await kill_exports(folder, url, random.Random(seed))
            assert lines > 0
        for tenant in tenants:
            total = tenant.answered + len(tenant.settled)
            await asyncio.to_thread(
                wait_until,
                lambda tenant=tenant, total=total: usage(gateway, tenant)["total"]["requests"] == total,  # type: ignore[misc]
                "the end of settlement",
            )
        code, _, errors = await asyncio.to_thread(export_once, folder, url, GATEWAY_REDIS__COMMAND_TIMEOUT="20s")
        assert (code, errors.count("\n")) == (0, 1), errors
        assert errors.endswith("lost before they were exported: 0\n")
        found = documents(folder)
        by_tenant: dict[str, dict[str, dict[str, Any]]] = {}
        for document in found:
            known = by_tenant.setdefault(document["tenant_id"], {}).setdefault(document["id"], document)
            assert known == document, "what is repeated is the same"
        assert by_tenant.keys() == {tenant.id for tenant in tenants}
        for tenant in tenants:
            await asyncio.to_thread(check, gateway, tenant, by_tenant[tenant.id])
        distinct = sum(map(len, by_tenant.values()))
        print(f"{form}: {KILLS} kills, {distinct} receipts, {len(found) - distinct} lines repeated")
        assert await stores.receipts.waiting([tenant.id for tenant in tenants]) == {}


# What it says


async def leave_receipts(url: str, count: int) -> None:
    connection = connect(patient(url))
    stores = await open_stores(connection, LEASE_MS, max_receipts=1_000)
    what, now = Used("acme-0123456789ab", "key_1", "rule_1"), int(time.time() * 1_000)
    names = [f"{random.getrandbits(128):032x}" for _ in range(count)]
    assert not any(await stores.settlements.settle([Settlement(Keyspace("acme"), name, now, (), what) for name in names]))
    await connection.close()


def test_once_says_in_one_line_what_it_did(folder: Path):
    with valkey_server() as server:
        asyncio.run(leave_receipts(server.url, 3))
        for count, files in ((3, 1), (0, 0)):
            code, output, errors = export_once(folder, server.url)
            assert (code, output) == (0, "")
            assert re.fullmatch(
                rf"exported to {folder}/out: receipts {count}, tenants {files}, files {files};"
                r" lost before they were exported: 0\n",
                errors,
            )
    assert [document["number"] for document in documents(folder)] == [1, 2, 3]


def test_following_waits_for_the_store_and_ends_in_order(folder: Path):
    with valkey_server(persistent=True) as server:
        asyncio.run(leave_receipts(server.url, 3))
        server.kill()
        with an_export(folder, server.url, "--follow", "--every", "10ms") as program:
            program.wait_until(lambda: "nothing can be exported now" in program.stderr(), "waiting")
            server.start()
            program.wait_until(lambda: len(documents(folder)) == 3, "exporting")
            other = clean_environment(folder, GATEWAY_REDIS__URL=server.url)
            code, _, errors = run(*GATEWAY, "export-usage", "--to", folder / "out", env=other, cwd=folder)
            assert (code, errors) == (1, f"Error: {folder}/out is in use by another running export\n")
            program.signal(signal.SIGTERM)
            assert program.wait() == 0
            assert program.stderr().splitlines()[-1].startswith(f"exported to {folder}/out: receipts 3, tenants 1, files 1;")


def test_once_without_a_store_or_a_folder_says_what_is_wrong(folder: Path):
    code, output, errors = export_once(folder, "redis://127.0.0.1:1")
    assert (code, output, errors) == (1, "", "Error: the store (single 127.0.0.1:1) does not answer\n")
    (folder / "file").write_text("")
    env = clean_environment(folder)
    for where, why in (("file/out", "Not a directory"), ("no/out", "No such file or directory")):
        code, _, errors = run(*GATEWAY, "export-usage", "--to", folder / where, env=env, cwd=folder)
        assert (code, errors) == (1, f"Error: {folder}/{where}: {why}\n")
    code, _, errors = export_once(folder, "redis://127.0.0.1:1", "--every", "soon")
    assert code == 2
    assert "'--every': a duration is" in errors


def test_receipts_of_an_embedded_store_are_exported_while_its_gateway_runs_and_after_it(folder: Path):
    with a_gateway(folder, "--demo", settings={"REDIS__URL": "embedded", "USAGE__RECEIPTS": "true"}) as local:
        assert local.proxy("GET", "/v1/models", key=local.demo_key()).status == 200
        env = {"GATEWAY_REDIS__DATA_DIR": str(local.data_dir)}
        wait_until(lambda: export_once(folder, "embedded", **env)[0] == 0 and len(documents(folder)) == 1, "the receipt")
        assert local.proxy("GET", "/v1/models", key=local.demo_key()).status == 200
        local.program.signal(signal.SIGTERM)
        assert local.program.wait() == 0
    assert export_once(folder, "embedded", **env)[0] == 0
    assert [document["number"] for document in documents(folder)] == [1, 2]
