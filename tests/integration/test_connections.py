"""Every form of ``redis.url`` against real servers, and what happens to callers when those servers fail."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import ssl
import subprocess
import time

import pytest
from redis.exceptions import NoScriptError

from gateway.config.sections import RedisSettings
from gateway.errors import InternalError, Overloaded, StoreUnavailable
from gateway.store.connect import Connection, connect
from gateway.store.embedded import EmbeddedServer
from gateway.store.failures import store_error, store_errors
from tests.servers import (
    DEBIAN_REDIS,
    connected,
    make_certificates,
    redis_server,
    short_directory,
    valkey_server,
)

pytestmark = pytest.mark.real_store

SET_AND_GET = b"redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])"
SHA = hashlib.sha1(SET_AND_GET).hexdigest()

debian = pytest.mark.skipif(not DEBIAN_REDIS.exists(), reason=f"{DEBIAN_REDIS} is not installed")


async def works(connection: Connection) -> None:
    """Commands, scripts and the version."""
    client = connection.client
    assert await client.set("k", "v")
    assert await client.get("k") == b"v"
    for node in await connection.primaries():
        await node.script_load(SET_AND_GET)
    for key in range(20):
        assert await client.evalsha(SHA, 1, key, f"v{key}") == b"v%d" % key
    assert await connection.server_version() >= (7, 0)


# The forms


async def test_the_embedded_server_is_reached_over_its_socket():
    with short_directory() as directory:
        async with EmbeddedServer(directory) as url, connected(url) as connection:
            await works(connection)
            assert await connection.server_version() == (7, 2, 4)


@debian
async def test_a_server_with_a_password_is_reached_over_tcp():
    with redis_server(DEBIAN_REDIS, password="p@ss/w ord?") as server:
        async with connected(server.url + "/3") as connection:
            await works(connection)
            assert (await connection.client.client_info())["db"] == 3
        async with connected(server.url.replace("p%40ss", "wrong")) as connection:
            with pytest.raises(StoreUnavailable) as caught, store_errors():
                await connection.client.get("k")
            assert caught.value.message == StoreUnavailable.default_message


async def test_a_user_of_its_own_may_not_do_more_than_it_was_given():
    with valkey_server() as server:
        server.command("ACL", "SETUSER", "gw", "on", ">secret", "~gw:*", "+get", "+client|setname", "+hello")
        async with connected(f"redis://gw:secret@{server.address}") as connection:
            assert await connection.client.get("gw:k") is None
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.set("gw:k", "v")
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.get("other")


async def test_a_wrong_login_over_a_socket_is_logged_and_answered_as_unavailable(caplog):
    with valkey_server(unix=True, users=False) as server:
        async with connected(server.url.replace("unix://", "unix://u:wrong@")) as connection:
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.get("k")
    assert "refuses the gateway's user or password" in caplog.text


def speaks_tls(binary: os.PathLike[str]) -> bool:
    return "libssl" in subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout


@debian
async def test_tls_is_verified(tmp_path):
    if not speaks_tls(DEBIAN_REDIS):
        pytest.skip(f"{DEBIAN_REDIS} is built without TLS")
    certificates = make_certificates(tmp_path)
    with redis_server(DEBIAN_REDIS, certificates=certificates, password="pw") as server:
        async with connected(server.url) as connection:
            await works(connection)
        stranger = server.url.partition("?")[0]
        async with connected(stranger) as connection:
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.ping()
        in_the_clear = stranger.replace("rediss://", "redis://")
        async with connected(in_the_clear) as connection:
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.ping()


@debian
async def test_the_name_in_the_certificate_counts_unless_told_otherwise(tmp_path):
    if not speaks_tls(DEBIAN_REDIS):
        pytest.skip(f"{DEBIAN_REDIS} is built without TLS")
    with redis_server(DEBIAN_REDIS, certificates=make_certificates(tmp_path)) as server:
        elsewhere = server.url.replace("127.0.0.1", "127.0.0.2")
        async with connected(elsewhere) as connection:
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.ping()
        # The server listens on one address; another name for it does.
        context = connect(RedisSettings(url=f"{elsewhere}&ssl_check_hostname=false"))
        tls = context.client.connection_pool.connection_kwargs["tls"]
        assert (tls.check_hostname, tls.verify_mode) == (False, ssl.CERT_REQUIRED)


async def test_every_connection_is_named_and_says_nothing_else_about_itself():
    with valkey_server() as server:
        async with connected(server.url) as connection:
            info = await connection.client.client_info()
            assert (info["name"], info["lib-name"], info["lib-ver"]) == ("gateway", "", "")


# A server that fails


async def test_a_server_that_is_down_is_unavailable_at_once_and_back_without_a_new_client():
    with valkey_server(persistent=True) as server:
        async with connected(server.url) as connection:
            await connection.client.set("k", "v")
            server.kill()
            started = time.monotonic()
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.get("k")
            assert time.monotonic() - started < 0.2
            server.start()
            assert await connection.client.get("k") == b"v"


@pytest.mark.parametrize("warm", [True, False], ids=["on an open connection", "while connecting"])
async def test_a_hung_server_costs_one_deadline_and_its_command_runs_once(warm):
    with valkey_server() as server:
        async with connected(server.url, command_timeout="250ms") as connection:
            if warm:
                await connection.client.ping()
            with server.hung():
                started = time.monotonic()
                with pytest.raises(StoreUnavailable), store_errors():
                    await connection.client.incr("n")
                assert 0.2 < time.monotonic() - started < 1
            # What was sent before the deadline may run when the server wakes up, but only once.
            await asyncio.sleep(0.1)
            assert int(await connection.client.get("n") or 0) == (1 if warm else 0)


async def test_a_lost_reply_is_not_asked_for_again():
    """A listener that swallows commands and closes: every command arrives exactly once."""
    received: list[bytes] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if b"INCR" in data:
                    received.append(data)
                    break
                writer.write(b"%1\r\n$5\r\nproto\r\n:3\r\n" if b"HELLO" in data else b"+OK\r\n")
        writer.close()

    async with await asyncio.start_server(swallow, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with connected(f"redis://127.0.0.1:{port}") as connection:
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.incr("n")
    assert len(received) == 1


async def test_a_pool_without_a_free_connection_is_overload_and_heals():
    with valkey_server() as server:
        async with connected(server.url, pool_size=2, pool_wait="50ms", command_timeout="2s") as connection:
            client = connection.client
            blocked = [asyncio.create_task(client.blpop("never", timeout=0.5)) for _ in range(2)]
            await asyncio.sleep(0.1)
            started = time.monotonic()
            with pytest.raises(Overloaded), store_errors():
                await client.get("k")
            assert 0.04 < time.monotonic() - started < 0.3
            await asyncio.gather(*blocked)
            assert await client.get("k") is None


async def test_a_server_that_cannot_be_reached_is_not_overload_however_many_ask():
    async with connected("redis://127.0.0.1:1", pool_size=2, pool_wait="5s") as connection:
        answers = await asyncio.gather(*(connection.client.get("k") for _ in range(50)), return_exceptions=True)
        assert {type(store_error(error)) for error in answers if isinstance(error, Exception)} == {StoreUnavailable}
        assert len(answers) == 50


@pytest.mark.parametrize("url", ["redis+sentinel://127.0.0.1:1,127.0.0.1:2/gateway", "redis+cluster://127.0.0.1:1,127.0.0.1:2"])
async def test_a_set_of_servers_none_of_which_answers_is_an_outage(url):
    async with connected(url) as connection:
        with pytest.raises(StoreUnavailable), store_errors():
            await connection.client.get("k")
        with pytest.raises(StoreUnavailable), store_errors():
            await connection.client.pipeline(transaction=False).get("k").execute()


async def test_a_primary_that_became_a_replica_is_left_for_the_address_it_had():
    with valkey_server() as server:
        async with connected(server.url, pool_size=1) as connection:
            before = await connection.client.client_id()
            server.command("REPLICAOF", "127.0.0.1", 1)
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.eval(SET_AND_GET, 1, "k", "v")
            assert await connection.client.client_id() != before


async def test_a_full_server_and_a_busy_one_are_unavailable():
    with valkey_server(options={"maxmemory": "1", "busy-reply-threshold": 50}) as server:
        async with connected(server.url, command_timeout="300ms") as connection:
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.set("k", "v")
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.eval("return redis.call('SET', KEYS[1], 'v')", 1, "k")
            spinning = asyncio.create_task(connection.client.eval("while true do end", 0))
            await asyncio.sleep(0.15)
            with pytest.raises(StoreUnavailable) as caught, store_errors():
                await connection.client.get("k")
            assert "BUSY" in str(caught.value.__cause__)
            server.command("SCRIPT", "KILL")
            with contextlib.suppress(Exception):
                await spinning


async def test_a_script_that_fails_is_a_bug_and_one_that_is_unknown_says_so():
    with valkey_server() as server:
        async with connected(server.url) as connection:
            with pytest.raises(InternalError), store_errors():
                await connection.client.eval("local x return x.y", 0)
            with pytest.raises(NoScriptError), store_errors():
                await connection.client.evalsha("0" * 40, 0)


# Cancellation


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_cancelled_command_never_gives_its_reply_to_another(seed):
    """Thousands of commands, a third of them cancelled at a random point; every reply names its request."""
    rng = random.Random(seed)
    with valkey_server(unix=seed == 1) as server:
        async with connected(server.url, pool_size=3, pool_wait="5s", command_timeout="5s") as connection:
            checked = cancelled = 0

            async def ask(token: bytes) -> None:
                nonlocal checked
                if rng.random() < 0.5:
                    assert await connection.client.echo(token) == token
                else:
                    pipeline = connection.client.pipeline(transaction=False)
                    for part in range(4):
                        pipeline.echo(b"%s-%d" % (token, part))
                    assert await pipeline.execute() == [b"%s-%d" % (token, part) for part in range(4)]
                checked += 1

            async def worker(name: int) -> None:
                nonlocal cancelled
                for number in range(150):
                    task = asyncio.create_task(ask(b"%d-%d" % (name, number)))
                    if rng.random() < 0.35:
                        for _ in range(rng.randrange(12)):
                            await asyncio.sleep(0)
                        await asyncio.sleep(rng.choice([0, 0, 0, 0.0001, 0.0005]))
                        task.cancel()
                    try:
                        await task
                    except asyncio.CancelledError:
                        cancelled += 1

            await asyncio.gather(*(worker(name) for name in range(20)))
            assert checked + cancelled == 3000
            assert cancelled > 500
            pool = connection.client.connection_pool
            assert (len(pool._in_use_connections), len(pool._available_connections) <= 3) == (0, True)
