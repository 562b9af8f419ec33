"""The gateway's own Redis user (docs/redis.acl): it may do what the gateway does, nothing else, and what it lacks is an outage.

The rest of the suite runs as this user on real servers (`tests.users`): a command that is missing turns tests red there.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import itertools
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.commands.core import AsyncCoreCommands

from gateway.config import RedisSettings
from gateway.errors import ConfigurationError, StoreUnavailable
from gateway.resources import lua_folder
from gateway.store import Keyspace, connect, open_stores
from gateway.store.embedded import find_server
from gateway.store.failures import store_errors
from gateway.store.permissions import CLUSTER, CONNECTING, DATA, EXAMINING, NEEDED
from gateway.store.script_source import read_scripts
from tests.gateways import running_proxy
from tests.servers import (
    DEBIAN_REDIS,
    Server,
    connected,
    redis_cluster,
    redis_sentinel,
    redis_server,
    wait_until,
)
from tests.users import GATEWAY, REDIS_ACL, ROOT, SENTINEL_ACL, password_of
from tests.wire import an_upstream, eventually

pytestmark = pytest.mark.real_store

SERVERS = [
    pytest.param("valkey", id="valkey"),
    pytest.param(
        "redis", id="redis", marks=pytest.mark.skipif(not DEBIAN_REDIS.exists(), reason=f"{DEBIAN_REDIS} is not installed")
    ),
]
ALWAYS_ALLOWED = {"hello", "auth"}
HOST = "127.0.0.1"
TENANT = Keyspace("testcompany")
A_LIMIT = {"name": "rate_limiter", "settings": {"limit": 100, "window": "1m"}}
STORE = ROOT / "gateway" / "store"


@pytest.fixture(params=SERVERS)
def binary(request: pytest.FixtureRequest) -> Path:
    return find_server() if request.param == "valkey" else DEBIAN_REDIS


def users_of(file: Path) -> dict[str, list[str]]:
    """The rules of each user."""
    return {words[1]: words[2:] for line in file.read_text().splitlines() if (words := line.split())}


def commands_of(rules: list[str]) -> set[str]:
    return {rule[1:] for rule in rules if rule.startswith("+")}


# What the file gives


def test_the_gateways_user_has_its_own_keys_no_channels_and_no_groups_of_commands():
    rules = users_of(REDIS_ACL)[GATEWAY]
    assert [rule for rule in rules if not rule.startswith("+")] == [
        "on", ">REPLACE-gateway", "resetkeys", "~gw:*", "resetchannels", "nocommands"
    ]  # fmt: skip
    assert not [rule for rule in rules if rule.startswith("+@")]


def test_nobody_comes_in_without_a_password():
    for file in REDIS_ACL, SENTINEL_ACL:
        for user, rules in users_of(file).items():
            assert rules == ["off"] if user == "default" else {"on", f">REPLACE-{user}"} <= set(rules)
            assert "nopass" not in rules


def test_the_file_gives_what_the_gateway_needs_and_nothing_else():
    assert commands_of(users_of(REDIS_ACL)[GATEWAY]) == set(NEEDED)


def test_each_example_is_of_its_command_and_within_the_gateways_keys():
    for command, words in NEEDED.items():
        assert "|".join(words[: 1 + command.count("|")]).lower() == command
        assert all(word.startswith("gw:") for word in words if ":" in word)


# What is needed: by the scripts, the stores and the connections


def called_by_scripts() -> set[str]:
    """Every command that a script names; none is named otherwise than by a literal."""
    found = set()
    for script in read_scripts(lua_folder()).values():
        code = re.sub(r"--[^\n]*", "", script.body)
        named = re.findall(r"\bredis\s*\.\s*p?call\s*[(,]\s*'([A-Z]+)'", code)
        assert len(named) == len(re.findall(r"\bredis\s*\.\s*p?call\b", code)), script.name
        found |= {name.lower() for name in named}
    return found


def sent_by_stores() -> set[str]:
    """Every method of a client or pipeline that a store calls: redis-py names them as the commands, but for a few."""
    other_names = {"delete": "del"}
    found = set()
    for file in STORE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                receiver = ast.unparse(node.func.value)
                if receiver.rpartition(".")[2] in {"client", "_client", "pipe"} and hasattr(AsyncCoreCommands, node.func.attr):
                    found.add(other_names.get(node.func.attr, node.func.attr))
    return found


def sent_as_words() -> Iterator[tuple[str, str]]:
    """Every command that code of the store spells out where it executes, sends or calls: with its second word, and without."""
    for file in STORE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("execute_command", "send_command", "scripts.call")
            ):
                words = [str(word.value) for word in node.args[:2] if isinstance(word, ast.Constant)]
                if words:
                    command = "|".join(words).replace(" ", "|").lower()
                    yield command, command.partition("|")[0]


def test_what_scripts_call_and_stores_send_is_exactly_what_is_needed_of_data():
    sent = called_by_scripts() | sent_by_stores()
    assert sent - {"execute_command", "ping"} == set(DATA)


def test_what_is_spelled_out_in_words_is_needed():
    spelled_out = set(sent_as_words())
    assert {"info", "script|load", "acl|dryrun", "get"} <= set(itertools.chain(*spelled_out))
    assert [each for each in spelled_out if not set(each) & set(NEEDED)] == []


async def come_and_go(url: str) -> None:
    """Connect, load scripts, ask, and ask again where the scripts are forgotten."""
    async with connected(url, as_gateway=True) as connection:
        stores = await open_stores(connection, 60_000)
        await connection.ping()
        await stores.admissions.subdomain_of_key("0" * 64)
        await stores.admissions.tenant_exists(TENANT)


async def sent_to(servers: Iterable[Server], url: str, meanwhile: Callable[[], None] = lambda: None) -> set[str]:
    """What MONITOR tells of connections that have named themselves the gateway's, while they come and go."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.admin()) for server in servers]
        monitors = [stack.enter_context(client.monitor()) for client in clients]
        meanwhile()
        await come_and_go(url)
        lines: list[tuple[str, list[str]]] = []
        for client, monitor in zip(clients, monitors, strict=True):
            client.execute_command("PING", "the end")
            while (told := monitor.next_command())["command"] != "PING the end":
                lines.append((f"{told['client_address']}:{told['client_port']}", told["command"].split(" ")))
    ours = {whose for whose, words in lines if words[:3] == ["CLIENT", "SETNAME", "gateway"]}
    return {command_of(words) for whose, words in lines if whose in ours} - ALWAYS_ALLOWED


def command_of(words: list[str]) -> str:
    pair = "|".join(words[:2]).lower()
    return pair if words[0] in {"ACL", "CLIENT", "CLUSTER", "SCRIPT", "SENTINEL"} else pair.partition("|")[0]


async def test_a_server_is_told_what_is_needed_to_connect(binary: Path):
    with redis_server(binary) as server:
        sent = await sent_to([server], f"{server.url}/3", lambda: server.command("SCRIPT", "FLUSH"))
        assert sent - set(DATA) - {"evalsha", "eval"} == set(CONNECTING) - {"evalsha", "eval"}
        assert "evalsha" in sent


async def test_the_primaries_of_a_cluster_are_told_what_is_needed_to_connect(binary: Path, caplog: pytest.LogCaptureFixture):
    with redis_cluster(binary) as cluster:
        sent = await sent_to(cluster.nodes, cluster.url)
        assert sent <= set(NEEDED) - set(EXAMINING)
        assert set(CLUSTER) - {"asking"} <= sent
        slot = int(cluster.nodes[0].command("CLUSTER", "KEYSLOT", TENANT.tenant))
        source = cluster.owner(TENANT.tenant)
        cluster.begin_move(slot, source, next(node for node in cluster.nodes if node is not source))
        assert "asking" in await sent_to(cluster.nodes, cluster.url)
        assert denials(*cluster.nodes) == set()
        for command in CLUSTER.keys() - {"asking"}:
            caplog.clear()
            with without(cluster.nodes, command), pytest.raises(StoreUnavailable):
                await come_and_go(cluster.url)
            assert command in caplog.text, "redis-py says that this is no cluster"


@pytest.mark.parametrize(
    "binary", [SERVERS[0], pytest.param("redis", id="redis", marks=[*SERVERS[1].marks, pytest.mark.long])], indirect=True
)
@pytest.mark.timeout(300)
async def test_a_sentinel_and_its_primary_are_told_what_is_needed_to_connect(binary: Path):
    with redis_sentinel(binary, sentinels=3) as replicated:
        everybody = (replicated.primary, *replicated.replicas, *replicated.sentinels)
        assert await sent_to([replicated.primary], replicated.url) <= set(CONNECTING) | set(DATA)
        assert commands_of(users_of(SENTINEL_ACL)[GATEWAY]) == {"client|setname", "sentinel|masters"}
        for command in "client|setname", "sentinel|masters":
            with without(replicated.sentinels, command), pytest.raises(StoreUnavailable):
                await come_and_go(replicated.url)
        replicated.primary.kill()
        old = str(replicated.primary.port).encode()
        wait_until(lambda: old not in {primary_of(each) for each in replicated.sentinels}, "a failover all know of", 90)
        async with asyncio.timeout(30):
            while not await is_served(replicated.url):  # noqa: ASYNC110 - the new name comes before the end of it
                await asyncio.sleep(0.1)
        replicated.primary.start()
        wait_until(lambda: replicated.primary.command("ROLE")[0] == b"slave", "the old primary as a replica", 90)
        # nobody else wanted more than it may
        assert denials(*everybody) <= {"gateway: client|setname", "gateway: sentinel|masters"}


def primary_of(sentinel: Server) -> Any:
    """The port that it names."""
    return sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "gateway")[1]


async def is_served(url: str) -> bool:
    try:
        await come_and_go(url)
    except StoreUnavailable:
        return False
    return True


def denials(*servers: Server) -> set[str]:
    """What servers have refused to whom."""
    return {
        f"{entry[b'username'].decode()}: {entry[b'object'].decode()}"
        for server in servers
        for entry in (dict(zip(found[::2], found[1::2], strict=True)) for found in raw(server, "ACL", "LOG"))
    }


def raw(server: Server, *words: str) -> Any:
    with server.admin(protocol=2) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)


@pytest.mark.parametrize("command", sorted(set(CONNECTING) - {"eval", "select"}))
async def test_without_a_command_to_connect_nothing_works(restricted: Server, command: str):
    with without(restricted, command), pytest.raises((ConfigurationError, StoreUnavailable)):
        await come_and_go(restricted.url)
    await come_and_go(restricted.url)


# What is refused while the gateway runs


@pytest.fixture(scope="module")
def restricted() -> Iterator[Server]:
    """A server whose rules a test changes."""
    with redis_server(DEBIAN_REDIS if DEBIAN_REDIS.exists() else find_server()) as server:
        yield server


@contextlib.contextmanager
def without(servers: Server | Iterable[Server], command: str) -> Iterator[None]:
    """The gateway may not run a command meanwhile."""
    servers = [servers] if isinstance(servers, Server) else list(servers)
    for server in servers:
        server.command("ACL", "SETUSER", GATEWAY, f"-{command}")
    try:
        yield
    finally:
        for server in servers:
            server.command("ACL", "SETUSER", GATEWAY, f"+{command}")


@pytest.mark.parametrize("command", ["evalsha", "hmget", "set"])
async def test_a_command_that_is_refused_is_an_outage_and_the_log_names_it(
    binary: Path, command: str, caplog: pytest.LogCaptureFixture
):
    with redis_server(binary) as server:
        async with running_proxy(server.url) as gateway, an_upstream() as upstream:
            tenant = await gateway.new_tenant()
            await gateway.new_rule(tenant, upstream.url, plugin_chain=[A_LIMIT])
            assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200
            await gateway.idle()
            with without(server, command):
                reply = await gateway.ask("GET", "/v1/x", key=tenant.secret)
            assert (reply.status, reply.get("retry-after")) == (503, "1")
            assert b"store_unavailable" in reply.body
            assert command not in reply.body.decode()
            assert re.search(rf"\b{command}\b", caplog.text, re.IGNORECASE)
            assert "Traceback" not in caplog.text
            assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200


async def test_a_command_that_only_settlements_need_is_named_too(restricted: Server, caplog: pytest.LogCaptureFixture):
    async with running_proxy(restricted.url) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        with without(restricted, "hincrby"):
            assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200
            await eventually(lambda: "does not let the gateway's user run a command of lua/settle.lua" in caplog.text)
        assert "gateway: hincrby" in denials(restricted)


async def test_another_key_than_the_gateways_is_refused(restricted: Server):
    async with connected(restricted.url, as_gateway=True) as connection:
        with pytest.raises(StoreUnavailable), store_errors():
            await connection.client.set("session:1", "x")


@pytest.mark.parametrize(
    "words",
    [
        ("CONFIG", "GET", "*"), ("KEYS", "*"), ("FLUSHALL",), ("FLUSHDB",), ("ACL", "LIST"), ("ACL", "GETUSER", GATEWAY),
        ("DEBUG", "SLEEP", "0"), ("SHUTDOWN",), ("SCRIPT", "FLUSH"), ("MONITOR",), ("REPLICAOF", "NO", "ONE"), ("SAVE",),
        ("CLIENT", "LIST"), ("PUBLISH", "x", "y"), ("SCAN", "0"), ("RANDOMKEY",), ("SUBSCRIBE", "x"), ("MODULE", "LIST"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_nobody_needs_is_refused(restricted: Server, words: tuple[str, ...]):
    told = restricted.command("ACL", "DRYRUN", GATEWAY, *words)
    assert b"no permissions" in (told if isinstance(told, bytes) else told.encode())


async def test_the_user_may_also_be_named_by_the_keys_of_a_single_server(restricted: Server):
    settings = RedisSettings(
        host=HOST, port=restricted.port, username=GATEWAY, password=SecretStr(password_of(GATEWAY)), connect_timeout=5
    )
    connection = connect(settings)
    try:
        await connection.ping()
        assert await connection.client.execute_command("ACL", "WHOAMI") == GATEWAY.encode()
    finally:
        await connection.close()


def test_a_user_needs_a_password():
    with pytest.raises(ValueError, match="username needs a password"):
        RedisSettings(username=GATEWAY)


def test_the_documented_command_gives_every_user_a_password_of_its_own(tmp_path: Path):
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    command = re.search(r"```bash\n(sed .*?)```", page, re.DOTALL)
    assert command is not None
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / REDIS_ACL.name).write_text(REDIS_ACL.read_text())
    subprocess.run(["sh", "-euc", command[1]], cwd=tmp_path, check=True)
    made = tmp_path / "users.acl"
    passwords = re.findall(r">([0-9a-f]{48})\b", made.read_text())
    assert "REPLACE" not in made.read_text()
    assert len(set(passwords)) == len(passwords) == len(users_of(REDIS_ACL)) - 1
    assert made.stat().st_mode & 0o077 == 0
