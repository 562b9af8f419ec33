"""The only place that makes Redis clients.

No client retries a command: a script whose reply was lost may have run. Reconnecting and following MOVED and ASK remain.

Scripts go over one connection to each primary (`multiplexed`), single commands through redis-py's pools. A caller may be
cancelled at any time: the reply is read and dropped, or redis-py closes the connection, so nobody reads a reply that belongs to
somebody else. Such a command may have run or not.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from gateway.config.sections import RedisSettings
from gateway.errors import StoreUnavailable
from gateway.store.address import StoreAddress, parse_url, refusal
from gateway.store.breaker import STATES, Breaker
from gateway.store.cluster import ClusterClient
from gateway.store.failures import store_errors
from gateway.store.multiplexed import Commands, MultiplexedConnection
from gateway.store.multiplexed_cluster import MultiplexedCluster
from gateway.store.pools import Managed, Pool, SentinelPool, Tcp, Unix


class Node(Protocol):
    """One server, of a cluster or the only one."""

    @property
    def name(self) -> str:
        """For people."""

    async def execute_command(self, *args: Any) -> Any:
        """Send one command to this server and return its reply."""

    async def script_load(self, script: str | bytes) -> Any:
        """Make this server know a script; returns its SHA-1."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A client and what depends on the form of the store.

    ``client`` is a ``redis.asyncio`` client, loosely typed, and ``scripts`` takes the calls of scripts, by default one at a
    time through the client. What either does belongs inside ``store_errors()``.
    """

    client: Any
    scripts: Commands = None  # type: ignore[assignment]  # never after __post_init__
    is_cluster: bool = False
    sentinels: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.scripts is None:
            object.__setattr__(self, "scripts", _OneAtATime(self.client))

    async def ping(self) -> None:
        """Ask whether the store answers; of a cluster, one of its primaries. Raises StoreUnavailable, Overloaded."""
        if not self.is_cluster:
            with store_errors():
                await self.client.ping()
            return
        primaries = await self.primaries()
        for asked in asyncio.as_completed([primary.execute_command("PING") for primary in primaries]):
            with suppress(redis_errors.RedisError, OSError):
                await asked
                return
        raise StoreUnavailable

    def breakers(self) -> Sequence[Breaker]:
        """One for each server that runs scripts and is known by now."""
        return self.scripts.breakers()

    def breaker_states(self) -> dict[str, int]:
        """How many of them are in each state."""
        found = [breaker.state for breaker in self.breakers()]
        return {state: found.count(state) for state in STATES}

    async def close(self) -> None:
        """Close every connection, also those in use."""
        await asyncio.gather(self.scripts.aclose(), self.client.aclose())
        # last: until then somebody may be asking them
        await asyncio.gather(*(sentinel.aclose() for sentinel in self.sentinels))

    async def primaries(self) -> list[Node]:
        """Every server that runs scripts: all primaries of a cluster, otherwise the only one."""
        if not self.is_cluster:
            names = [breaker.server for breaker in self.breakers()]
            return [_Node(self.client, names[0] if names else "memory")]
        with store_errors():
            if self.client.is_stale:
                await self.client.know_topology()
        return [_Node(node, f"{node.host}:{node.port}") for node in self.client.get_primaries()]

    async def server_version(self) -> tuple[int, ...]:
        """The Redis version the first primary is compatible with: (7, 2, 4) on every Valkey, whatever its own number."""
        node = (await self.primaries())[0]
        with store_errors():
            info = await node.execute_command("INFO", "server")
        return tuple(int(part) for part in re.findall(r"\d+", str(info["redis_version"])))


@dataclass(frozen=True, slots=True)
class _Node:
    node: Any
    name: str

    async def execute_command(self, *args: Any) -> Any:
        return await self.node.execute_command(*args)

    async def script_load(self, script: str | bytes) -> Any:
        return await self.execute_command("SCRIPT LOAD", script)


@dataclass(frozen=True, slots=True)
class _OneAtATime:
    """For a client without a socket of its own, such as a server in memory."""

    client: Any

    async def call(self, *words: Any) -> Any:
        return await self.client.execute_command(*words)

    def breakers(self) -> Sequence[Breaker]:
        return ()

    async def aclose(self) -> None:
        """The client is closed by whom it belongs to."""


def connect(settings: RedisSettings, *, url: str | None = None) -> Connection:
    """A client for ``url``, by default for what the settings name. Opens no connection yet.

    Raises ConfigurationError naming ``redis.url``, also when a certificate file cannot be read.
    """
    url = url or settings.url
    if url == "embedded":
        raise refusal("embedded has no address before the embedded server is started")
    address = parse_url(url) if url else _from_fields(settings)
    timeout = settings.command_timeout / 1000
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": settings.connect_timeout / 1000,
        "health_check_interval": 0,
        "client_name": "gateway",
        "driver_info": None,
        "username": address.username,
        "password": address.password,
        "retry": Retry(NoBackoff(), 0),
        # On by default over TCP, they cost a command per connection, stretch timeouts and skip the check for unread replies.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if address.kind == "cluster":
        tls = _tls_context(address)
        node_options = {"connection_class": Tcp, "tls": tls}
        pool: dict[str, Any] = {"pool_size": settings.pool_size, "pool_wait": settings.pool_wait / 1000}
        cluster = ClusterClient(address.hosts, node_options=node_options, **pool, **options)
        calls = MultiplexedCluster(cluster, lambda host, port: Tcp(host=host, port=port, tls=tls, **options), timeout)
        return Connection(cluster, calls, is_cluster=True)
    options |= {"max_connections": settings.pool_size, "timeout": settings.pool_wait / 1000}
    name = _places(address)
    if address.kind == "unix":
        return _pooled(Pool(connection_class=Unix, path=address.path, db=address.db, **options), name, timeout)
    options |= {"tls": _tls_context(address), "connection_class": Tcp}
    servers = [options | {"host": host, "port": port} for host, port in address.hosts]
    if address.kind == "single":
        return _pooled(Pool(db=address.db, **servers[0]), name, timeout)
    login = {name: address.options.get(f"sentinel_{name}") or None for name in ("username", "password")}
    sentinel: Any = Sentinel([])  # type: ignore[no-untyped-call]
    sentinel.sentinels = [Redis.from_pool(Pool(**server | login)) for server in servers]
    options |= {"connection_class": Managed, "connection_pool_class": SentinelPool}
    client = sentinel.master_for(address.service, db=address.db, **options)
    return replace(_pooled(client.connection_pool, name, timeout), client=client, sentinels=tuple(sentinel.sentinels))


def _pooled(pool: Pool, name: str, timeout: float) -> Connection:
    calls = MultiplexedConnection(pool, name, timeout)
    pool.breaker = calls.breaker
    return Connection(Redis.from_pool(pool), calls)


def describe(settings: RedisSettings) -> str:
    """Where the store is, for people; without user, password and options. Raises ConfigurationError like `connect`."""
    if settings.is_embedded:
        return f"embedded, in {settings.data_dir}"
    address = parse_url(settings.url) if settings.url else _from_fields(settings)
    return f"{address.kind} {_places(address)}"


def _places(address: StoreAddress) -> str:
    places = address.path or ", ".join(f"{host}:{port}" for host, port in address.hosts)
    return places + (f" name {address.service}" if address.service else "")


def sentinel_service(settings: RedisSettings) -> str:
    """The name under which sentinels know the primary; empty without them. Raises ConfigurationError like `connect`."""
    return parse_url(settings.url).service if settings.url and not settings.is_embedded else ""


def certificate_files(settings: RedisSettings) -> tuple[list[Path], list[Path]]:
    """What the store's address names: certificates, then keys. Raises ConfigurationError like `connect`."""
    options = parse_url(settings.url).options if settings.url and not settings.is_embedded else {}
    certificates = [Path(options[name]) for name in ("ssl_ca_certs", "ssl_certfile") if name in options]
    return certificates, [Path(options[name]) for name in ("ssl_keyfile",) if name in options]


def _from_fields(settings: RedisSettings) -> StoreAddress:
    hosts = ((settings.host, settings.port),)
    password = settings.password.get_secret_value() or None
    return StoreAddress("single", hosts, db=settings.db, username=settings.username or None, password=password)


def _tls_context(address: StoreAddress) -> ssl.SSLContext | None:
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=address.options.get("ssl_ca_certs"))
        if "ssl_certfile" in address.options:
            # An empty passphrase, so that an encrypted key is refused instead of asked for on the terminal.
            context.load_cert_chain(address.options["ssl_certfile"], address.options.get("ssl_keyfile"), password="")
    except OSError as error:
        raise refusal(f"the certificate files cannot be used: {error}") from error
    context.check_hostname = address.options.get("ssl_check_hostname") != "false"
    return context
