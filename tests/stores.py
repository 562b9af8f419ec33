"""The stores on every server they must work on, as the fixture ``stores``; import the fixtures where they are wanted.

    from tests.stores import *  # in a conftest.py

Real servers run for the whole session and are emptied before each test. Time in tests is a number that the test passes to the
scripts; on the servers only lifetimes of keys pass in real time.

The stores are the user ``gateway`` of docs/redis.acl; their ``connection`` is the administrator's, for what the tests do.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer

from gateway.config.sections import RedisSettings
from gateway.resources import lua_folder
from gateway.store import Connection, Stores, connect, open_stores
from gateway.store.script_source import read_scripts
from gateway.store.scripts import ScriptRunner
from tests.servers import DEBIAN_REDIS, Server, redis_server, valkey_server
from tests.users import as_administrator

__all__ = [
    "any_server",
    "debian_store_server",
    "real_server",
    "real_stores",
    "receipt_stores",
    "stores",
    "valkey_store_server",
]

LEASE_MS = 60_000
MAX_RECEIPTS = 1_000

needs_debian_redis = pytest.mark.skipif(not DEBIAN_REDIS.exists(), reason="Debian's redis-server is not installed")
REAL = [
    pytest.param("valkey", marks=pytest.mark.real_store, id="valkey"),
    pytest.param("redis", marks=[pytest.mark.real_store, needs_debian_redis], id="redis"),
]
ALL = [pytest.param("fakeredis", id="fakeredis"), *REAL]


@pytest.fixture(scope="session")
def valkey_store_server() -> Iterator[Server]:
    """The server of the embedded mode."""
    with valkey_server() as server:
        yield server


@pytest.fixture(scope="session")
def debian_store_server() -> Iterator[Server]:
    """The oldest supported server line."""
    with redis_server(DEBIAN_REDIS) as server:
        yield server


def _server(request: pytest.FixtureRequest) -> Server | None:
    if request.param == "fakeredis":
        return None
    server: Server = request.getfixturevalue("valkey_store_server" if request.param == "valkey" else "debian_store_server")
    server.command("FLUSHALL")
    return server


@pytest.fixture(params=ALL)
def any_server(request: pytest.FixtureRequest) -> Server | None:
    """An empty real server, or None for fakeredis."""
    return _server(request)


@pytest.fixture(params=REAL)
def real_server(request: pytest.FixtureRequest) -> Server:
    """An empty real server."""
    server = _server(request)
    assert server is not None
    return server


@pytest.fixture
async def stores(any_server: Server | None) -> AsyncIterator[Stores]:
    """All stores on fakeredis, on Valkey and on Redis."""
    async with opened(any_server) as opened_stores:
        yield opened_stores


@pytest.fixture
async def receipt_stores(any_server: Server | None) -> AsyncIterator[Stores]:
    """As ``stores``; what is settled leaves receipts."""
    async with opened(any_server, max_receipts=MAX_RECEIPTS) as opened_stores:
        yield opened_stores


@pytest.fixture
async def real_stores(real_server: Server) -> AsyncIterator[Stores]:
    """All stores on Valkey and on Redis."""
    async with opened(real_server) as opened_stores:
        yield opened_stores


@contextlib.asynccontextmanager
async def opened(
    server: Server | None, replacing: Mapping[str, str] | None = None, *, max_receipts: int | None = None
) -> AsyncIterator[Stores]:
    """The stores on a server, or on a fakeredis of their own; ``replacing`` changes the text of the scripts."""
    connection = fake_connection() if server is None else connect(patient(server.url))
    try:
        # fakeredis knows no shebang; a real server says itself what it knows
        shebang = False if server is None else None
        opened_stores = await open_stores(connection, LEASE_MS, max_receipts=max_receipts, shebang=shebang)
        if replacing:
            runner = await changed_runner(connection, replacing)
            opened_stores = dataclasses.replace(opened_stores, runner=runner)
        async with for_tests(opened_stores, None if server is None else server.url) as stores:
            yield stores
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def for_tests(stores: Stores, url: str | None) -> AsyncIterator[Stores]:
    """These stores with a connection for what the test does itself; the same one where there are no users."""
    if url is None:
        yield stores
        return
    connection = connect(patient(as_administrator(url)))
    try:
        yield dataclasses.replace(stores, connection=connection)
    finally:
        await connection.close()


async def changed_runner(connection: Connection, replacing: Mapping[str, str]) -> ScriptRunner:
    """A runner of scripts in which each text is replaced wherever it occurs; each must occur."""
    changed, found = {}, set()
    for name, script in read_scripts(lua_folder()).items():
        body = script.body
        for old, new in replacing.items():
            if old in body:
                found.add(old)
                body = body.replace(old, new)
        changed[name] = dataclasses.replace(script, body=body)
    assert found == set(replacing)
    runner = ScriptRunner(connection, changed)
    await runner.start(shebang=False)
    return runner


def fake_connection() -> Connection:
    """A server in memory that nobody else has: one stray global would break all later scripts of a shared one."""
    return Connection(FakeAsyncRedis(server=FakeServer()))


def patient(url: str) -> RedisSettings:
    """Settings for tests that are not about time limits."""
    return RedisSettings(url=url, connect_timeout=5, command_timeout=5, pool_wait=5)


@contextlib.contextmanager
def blocking_client(stores: Stores, server: Server | None) -> Iterator[Any]:
    """A client on the same server that does its work at once, for what happens in the middle of something else."""
    if server is None:
        yield FakeRedis(server=stores.connection.client.connection_pool.connection_kwargs["server"])
    else:
        with server.admin() as client:
            yield client


_CONTENT: Mapping[bytes, Callable[[Any, bytes], Awaitable[Any]]] = {
    b"string": lambda client, key: client.get(key),
    b"hash": lambda client, key: client.hgetall(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"stream": lambda client, key: client.xrange(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
}


async def dump(connection: Connection) -> dict[bytes, tuple[Any, int]]:
    """Every key with its content and the millisecond at which it expires (-1: never). Equal dumps mean an untouched store.

    DUMP itself is no use: a large hash that the server is rehashing has another serialisation each time it is asked.
    """
    client = connection.client
    return {
        key: (await _CONTENT[await client.type(key)](client, key), await client.pexpiretime(key))
        for key in await client.keys("*")
    }


async def age(connection: Connection, key: str, passed_ms: int) -> None:
    """Shorten the life of a key as if so much time had passed on the server."""
    left = await connection.client.pttl(key)
    if left > 0 and passed_ms:
        await connection.client.pexpire(key, left - passed_ms)


async def keys_without_end(connection: Connection) -> list[bytes]:
    """Every key that would stay for ever. One that ends meanwhile is none of them."""
    client = connection.client
    return sorted([key for key in await client.keys("*") if await client.pexpiretime(key) == -1])
