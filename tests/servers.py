"""Real stores for tests: one server, a replicated set behind Sentinel, a cluster. All on loopback, all gone afterwards.

Each function is a plain context manager, so it serves fixtures of any scope and both kinds of tests::

    with valkey_server() as server:
        async with connected(server.url) as connection:
            await connection.client.set("k", "v")
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from gateway.config.sections import RedisSettings
from gateway.store.connect import Connection, connect
from tests.single_server import (
    DEBIAN_REDIS,
    HOST,
    Certificates,
    Server,
    ServerDidNotStart,
    free_port,
    make_certificates,
    redis_server,
    short_directory,
    valkey_server,
    wait_until,
)
from tests.users import ADMINISTRATOR, GATEWAY, SENTINEL, SENTINEL_ACL, as_administrator, login_of, password_of, write_users

__all__ = [
    "DEBIAN_REDIS",
    "Certificates",
    "Cluster",
    "SentinelSet",
    "Server",
    "ServerDidNotStart",
    "connected",
    "free_port",
    "make_certificates",
    "redis_cluster",
    "redis_sentinel",
    "redis_server",
    "short_directory",
    "valkey_server",
    "wait_until",
]

_QUICK: Mapping[str, str | int] = {"repl-diskless-sync-delay": 0, "repl-ping-replica-period": 1}


@contextlib.asynccontextmanager
async def connected(url: str, *, as_gateway: bool = False, **settings: Any) -> AsyncIterator[Connection]:
    """The gateway's own connection to a server; ``settings`` are further keys of the section ``redis``.

    It is the administrator's unless told otherwise: tests of connections send what the gateway never does.
    Patient unless told otherwise: on a busy machine a test must not fail for a deadline that it is not about.
    """
    patient = {"connect_timeout": "5s", "command_timeout": "5s", "pool_wait": "5s"}
    url = url if as_gateway else as_administrator(url)
    connection = connect(RedisSettings.model_validate({"url": url, **patient, **settings}))
    try:
        yield connection
    finally:
        await connection.close()


@dataclass(frozen=True)
class Cluster:
    """Primaries first, in slot order; then their replicas."""

    nodes: tuple[Server, ...]
    primaries: int

    @property
    def url(self) -> str:
        """Names the primaries only: replicas are discovered."""
        return f"redis+cluster://{login_of(GATEWAY)}" + ",".join(node.address for node in self.nodes[: self.primaries])

    def owner(self, key: str) -> Server:
        """The primary that held the key's slot when the cluster was made."""
        slot = int(self.nodes[0].command("CLUSTER", "KEYSLOT", key))
        return self.nodes[slot * self.primaries // 16384]

    def node_id(self, node: Server) -> str:
        """The cluster's name for a node."""
        return _text(node.command("CLUSTER", "MYID"))

    def move_slot(self, slot: int, source: Server, target: Server) -> None:
        """Hand a slot and its keys over at once, as ``redis-cli --cluster reshard`` does at its end."""
        self.begin_move(slot, source, target)
        self.finish_move(slot, source, target)

    def begin_move(self, slot: int, source: Server, target: Server) -> None:
        """From now on the source answers ASK for keys of the slot that it does not have."""
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target))

    def finish_move(self, slot: int, source: Server, target: Server) -> None:
        """Move what is left; from now on the source answers MOVED."""
        with source.admin() as client:
            while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                login = ("AUTH2", ADMINISTRATOR, password_of(ADMINISTRATOR))
                client.execute_command("MIGRATE", HOST, target.port, "", 0, 1000, *login, "KEYS", *keys)
        owner = self.node_id(target)
        for node in (target, source, *(n for n in self.nodes if n not in (source, target))):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", owner)


@dataclass(frozen=True)
class SentinelSet:
    """A primary, its replicas and the sentinels that watch them under the name ``gateway``."""

    primary: Server
    replicas: tuple[Server, ...]
    sentinels: tuple[Server, ...]

    @property
    def url(self) -> str:
        """Of whichever server is the primary."""
        own = f"sentinel_username={GATEWAY}&sentinel_password={quote(password_of(GATEWAY), safe='')}"
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{login_of(GATEWAY)}{hosts}/gateway?{own}"

    def current(self) -> Server:
        """The server that the first sentinel takes for the primary."""
        _, port = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "gateway")
        return next(server for server in (self.primary, *self.replicas) if server.port == int(port))


@contextlib.contextmanager
def redis_cluster(binary: Path | str, *, primaries: int = 3, replicas: int = 0) -> Iterator[Cluster]:
    """A cluster that serves all slots, each primary with so many replicas; up in little more than two seconds.

    Two seconds are the servers' own: a primary refuses work that long after it started.
    """
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(primaries * (1 + replicas)):
            bus = free_port()
            options = {"cluster-enabled": "yes", "cluster-port": bus, "cluster-node-timeout": 1000, **_QUICK}
            nodes.append((stack.enter_context(redis_server(binary, options=options)), bus))
        cluster = Cluster(tuple(node for node, _ in nodes), primaries)
        for number, (node, _) in enumerate(nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < primaries:
                first, end = (-(-16384 * edge // primaries) for edge in (number, number + 1))
                node.command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            for other, bus in nodes[:number]:
                node.command("CLUSTER", "MEET", HOST, other.port, bus)
        for number, (replica, _) in enumerate(nodes[primaries:]):
            primary = cluster.node_id(nodes[number % primaries][0])
            wait_until(lambda replica=replica, primary=primary: _replicates(replica, primary), "a replica")  # type: ignore[misc]
        wait_until(lambda: all(_agrees(node, len(nodes), primaries) for node, _ in nodes), "the cluster")
        yield cluster


def _replicates(replica: Server, primary_id: str) -> bool:
    try:
        replica.command("CLUSTER", "REPLICATE", primary_id)
    except redis.ResponseError:  # it has not met the primary yet
        return False
    return True


def _agrees(node: Server, nodes: int, primaries: int) -> bool:
    info = _text(node.command("CLUSTER", "INFO"))
    if "cluster_state:ok" not in info or f"cluster_known_nodes:{nodes}" not in info:
        return False
    slots = node.command("CLUSTER", "SLOTS")
    return len(slots) == primaries and all(len(entry) - 2 == nodes // primaries for entry in slots)


@contextlib.contextmanager
def redis_sentinel(binary: Path | str, *, replicas: int = 1, sentinels: int = 1) -> Iterator[SentinelSet]:
    """A replicated set in which a dead primary is replaced after about two seconds (a majority of sentinels agrees)."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(redis_server(binary, options=_QUICK))
        followers = tuple(
            stack.enter_context(redis_server(binary, options={"replicaof": f"{HOST} {primary.port}", **_QUICK}))
            for _ in range(replicas)
        )
        wait_until(lambda: _info(primary, "replication").count("state=online") == replicas, "the replicas")
        watchers = tuple(stack.enter_context(_sentinel(binary, primary.port, sentinels // 2 + 1)) for _ in range(sentinels))
        for watcher in watchers:
            wait_until(lambda watcher=watcher: _sees(watcher, replicas, sentinels), "the sentinels")  # type: ignore[misc]
        yield SentinelSet(primary, followers, watchers)


@contextlib.contextmanager
def _sentinel(binary: Path | str, primary_port: int, quorum: int) -> Iterator[Server]:
    with short_directory() as directory:
        port = free_port()
        file = directory / "sentinel.conf"  # a sentinel rewrites it
        file.write_text(
            f"port {port}\nbind {HOST}\ndir {directory}\naclfile {write_users(directory, SENTINEL_ACL)}\n"
            f"sentinel sentinel-user {SENTINEL}\nsentinel sentinel-pass {password_of(SENTINEL)}\n"
            f"sentinel monitor gateway {HOST} {primary_port} {quorum}\n"
            f"sentinel auth-user gateway {SENTINEL}\nsentinel auth-pass gateway {password_of(SENTINEL)}\n"
            "sentinel down-after-milliseconds gateway 500\n"
            "sentinel failover-timeout gateway 2000\n"
        )
        server = Server((str(binary), str(file), "--sentinel"), directory, port, has_users=True)
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _sees(sentinel: Server, replicas: int, sentinels: int) -> bool:
    wanted = f"status=ok,address={HOST}"
    info = _info(sentinel, "sentinel")
    return wanted in info and f"slaves={replicas},sentinels={sentinels}" in info


def _info(server: Server, section: str) -> str:
    # The raw text: a client would parse the lines of Sentinel into other shapes.
    with server.admin() as client:
        client.response_callbacks.pop("INFO", None)
        return _text(client.execute_command("INFO", section))


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
