"""Script calls over one connection: who gets which reply, and what happens when connection or server fail."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import time
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.asyncio import Connection as RedisPyConnection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from gateway.errors import Overloaded, StoreAway, StoreUnavailable
from gateway.store.connect import Connection
from gateway.store.failures import store_error, store_errors
from gateway.store.multiplexed import MAX_PENDING
from gateway.store.script_source import Script
from gateway.store.scripts import ScriptRunner
from tests.fault_proxy import Fault, fault_proxy
from tests.scripted_store import scripted_store
from tests.servers import DEBIAN_REDIS, Server, connected, make_certificates, redis_server, valkey_server
from tests.wire import eventually

pytestmark = pytest.mark.real_store

ECHO = "return {ARGV[1]}"
COUNT = "return {redis.call('INCR', KEYS[1])}"

loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work)


async def echo(connection: Connection, token: str) -> str:
    with store_errors():
        (reply,) = await connection.scripts.call("EVAL", ECHO, 1, "k", token)
    return str(reply.decode())


async def count(connection: Connection, key: str = "n") -> int:
    with store_errors():
        (reply,) = await connection.scripts.call("EVAL", COUNT, 1, key)
    return int(reply)


def script_connections(server: Server) -> list[dict[str, str]]:
    """What the server tells of those that ran a script last."""
    with server.admin() as client:
        return [one for one in client.client_list() if one["cmd"].startswith("eval")]


# One write


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every write of scripts at a socket."""
    writes: list[bytes] = []

    def send(sending: socket.socket, data: bytes, *flags: int) -> int:
        if b"EVAL" in bytes(data):
            writes.append(bytes(data))
        return super(socket.socket, sending).send(data, *flags)

    monkeypatch.setattr(socket.socket, "send", send)
    return writes


async def test_calls_of_one_tick_are_one_write_on_one_connection(sent: list[bytes]):
    scripts = {name: Script(name, ECHO, "", (f"{name}.lua:1",)) for name in ("admit", "settle")}
    with valkey_server() as server:
        async with connected(server.url) as connection:
            runner = ScriptRunner(connection, scripts)
            await runner.start(shebang=False)
            await runner.call("admit", ["k"], ["warm"])
            sent.clear()
            alone = [asyncio.create_task(runner.call("admit", ["k"], [f"{number}"])) for number in range(40)]
            together = asyncio.create_task(runner.call_each("settle", [(["k"], [f"{number}"]) for number in range(40, 60)]))
            replies = [*await asyncio.gather(*alone), *await together]
            assert replies == [[b"%d" % number] for number in range(60)]
            assert [write.count(b"EVALSHA") for write in sent] == [60]
            assert len(script_connections(server)) == 1


async def test_a_connection_is_made_once_for_all_that_wait_for_it_and_like_any_other():
    with valkey_server() as server:
        async with connected(f"{server.url}/3") as connection:
            calls = []
            for number in range(50):
                calls.append(asyncio.create_task(echo(connection, f"{number}")))
                await asyncio.sleep(0)
            assert await asyncio.gather(*calls) == [f"{number}" for number in range(50)]
            (one,) = script_connections(server)
            assert (one["name"], one["db"], one["resp"], one["lib-name"]) == ("gateway", "3", "3", "")


@pytest.mark.skipif(not DEBIAN_REDIS.exists(), reason=f"{DEBIAN_REDIS} is not installed")
@loops
def test_calls_go_over_tls_too(new_loop, tmp_path: Path):
    async def work() -> None:
        with redis_server(DEBIAN_REDIS, certificates=make_certificates(tmp_path), password="pw") as server:
            async with connected(server.url) as connection:
                tokens = [f"{number}" * 10_000 for number in range(50)]
                assert await asyncio.gather(*(echo(connection, token) for token in tokens)) == tokens
            async with connected(server.url.partition("?")[0]) as connection:
                with pytest.raises(StoreUnavailable):
                    await echo(connection, "stranger")

    run(new_loop, work())


async def test_a_refused_login_is_unavailable_to_all_that_wait_and_logged(caplog: pytest.LogCaptureFixture):
    with valkey_server(unix=True, users=False) as server:
        async with connected(server.url.replace("unix://", "unix://u:wrong@")) as connection:
            replies = await asyncio.gather(*(echo(connection, "x") for _ in range(3)), return_exceptions=True)
    assert {type(reply) for reply in replies} == {StoreAway}
    assert caplog.text.count("refuses the gateway's user or password") == 3


# Whose reply


async def bombard(connection: Connection, seed: int, workers: int, each: int, enough: int = 0) -> tuple[int, int, int]:
    """Calls cancelled at random points, until enough were. How many were answered, with their own token; cancelled; failed."""
    rng = random.Random(seed)
    answered = cancelled = failed = 0

    async def ask(token: str) -> None:
        nonlocal answered
        assert await echo(connection, token) == token
        answered += 1

    async def worker(name: int) -> None:
        nonlocal cancelled, failed
        for number in itertools.count():
            # on a busy machine fewer are cancelled before their reply is there
            if number >= each and (cancelled > enough or number >= 10 * each):
                return
            token = f"{name}-{number}" * rng.choice([1, 1, 1, 200])
            task = asyncio.create_task(ask(token))
            if rng.random() < 0.4:
                for _ in range(rng.randrange(6)):
                    await asyncio.sleep(0)
                await asyncio.sleep(rng.choice([0, 0, 0.0001, 0.0005, 0.002]))
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                cancelled += 1
            except StoreUnavailable:
                failed += 1

    await asyncio.gather(*(worker(name) for name in range(workers)))
    assert answered + cancelled + failed >= workers * each
    return answered, cancelled, failed


@loops
@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
def test_no_reply_ever_reaches_another_caller_and_a_cancelled_one_costs_no_connection(new_loop, unix: bool):
    async def work() -> None:
        with valkey_server(unix=unix) as server:
            async with connected(server.url) as connection:
                await echo(connection, "first")
                before = script_connections(server)[0]["id"]
                answered, cancelled, failed = await bombard(connection, seed=1, workers=40, each=250, enough=1_000)
                assert (answered > 1_000, cancelled > 1_000, failed) == (True, True, 0)
                assert [one["id"] for one in script_connections(server)] == [before]

    run(new_loop, work())


@loops
def test_no_reply_ever_reaches_another_caller_over_a_bad_network(new_loop):
    faults = {
        Fault.DELAY_REPLY: 0.01,
        Fault.SPLIT_REPLY: 0.2,
        Fault.CUT_IN_REPLY: 0.02,
        Fault.DROP_REPLY: 0.002,
        Fault.DROP_REPLY_AND_CUT: 0.02,
        Fault.CUT_BEFORE_REQUEST: 0.02,
        Fault.CUT_AFTER_REQUEST: 0.02,
    }

    async def work() -> None:
        with valkey_server() as server, fault_proxy(server.port, seed=2, delay_ms=(20, 400)) as proxy:
            async with connected(server.url_over(proxy.port), command_timeout="250ms") as connection:
                proxy.at_random(faults)
                for seed in range(20):
                    await bombard(connection, seed, workers=30, each=60)
                    if set(faults) == set(proxy.seen):
                        break
                else:
                    pytest.fail(f"{proxy.seen}")
                proxy.at_random({})
                proxy.cut_all()
                await asyncio.sleep(0.05)
                (breaker,) = connection.breakers()
                await eventually(lambda: not breaker.is_open)
                assert await echo(connection, "last") == "last"

    run(new_loop, work())


# Deadlines


@loops
@pytest.mark.parametrize("warm", [True, False], ids=["on an open connection", "while connecting"])
def test_a_hung_server_fails_every_call_at_its_deadline_and_runs_it_once_at_most(new_loop, warm: bool):
    async def work() -> None:
        with valkey_server() as server:
            async with connected(server.url, command_timeout="250ms") as connection:
                if warm:
                    await count(connection, "warm")
                with server.hung():

                    async def ask(key: str) -> float:
                        started = time.monotonic()
                        with pytest.raises(StoreUnavailable):
                            await count(connection, key)
                        return time.monotonic() - started

                    asking = []
                    for number in range(40):
                        asking.append(asyncio.create_task(ask(f"n{number}")))
                        await asyncio.sleep(0.02)
                    waited = await asyncio.gather(*asking)
                    # those that wait for a connection fail with it
                    assert waited[0] > 0.2
                    assert max(waited) < 0.7
                await eventually(lambda: not any(breaker.is_open for breaker in connection.breakers()))
                assert await count(connection, "after") == 1
                counts = [int(await connection.client.get(f"n{number}") or 0) for number in range(40)]
                assert set(counts) <= {0, 1}

    run(new_loop, work())


async def test_a_call_is_late_before_a_slow_connection_is_made_and_that_is_used_by_the_next():
    async with scripted_store() as store, connected(store.url, command_timeout="400ms") as connection:
        # two waits for replies, each in time
        store.greets_after_s = 0.3
        with pytest.raises(StoreUnavailable) as caught:
            await echo(connection, "late")
        assert str(caught.value.__cause__) == "no connection in time"
        await asyncio.sleep(0.3)
        assert await echo(connection, "next") == "next"
        assert (store.accepted, store.asked) == (1, ["next"])


async def test_a_late_call_fails_alone_and_new_ones_connect_anew():
    async with scripted_store() as store, connected(store.url, command_timeout="1s") as connection:
        store.silent = True
        late = asyncio.create_task(echo(connection, "late"))
        await asyncio.sleep(0.6)
        younger = asyncio.create_task(echo(connection, "younger"))
        with pytest.raises(StoreUnavailable):
            await late
        assert not younger.done()
        store.speak()
        assert await younger == "younger"
        assert await echo(connection, "new") == "new"
        assert store.accepted == 2
        await store.until(lambda: store.connected == 1)


# Bounds


@loops
def test_what_a_server_did_not_read_for_a_while_goes_over_the_same_connection(new_loop):
    async def work() -> None:
        async with scripted_store() as store, connected(store.url, command_timeout="20s") as connection:
            await echo(connection, "first")
            store.stop_reading()
            tokens = [f"{number:03}" + "x" * 200_000 for number in range(100)]
            calls = [asyncio.create_task(echo(connection, token)) for token in tokens]
            await asyncio.sleep(0.1)
            store.read_again()
            assert await asyncio.gather(*calls) == tokens
            assert (store.accepted, store.asked) == (1, ["first", *tokens])

    run(new_loop, work())


async def test_more_calls_than_may_wait_are_overload_at_once():
    async with scripted_store() as store, connected(store.url, command_timeout="5s") as connection:
        store.silent = True
        calls = [asyncio.create_task(echo(connection, f"{number}")) for number in range(MAX_PENDING)]
        await store.until(lambda: len(store.asked) == MAX_PENDING)
        with pytest.raises(Overloaded):
            await echo(connection, "one more")
        store.speak()
        assert await asyncio.gather(*calls) == [f"{number}" for number in range(MAX_PENDING)]
        assert await echo(connection, "again") == "again"


@loops
def test_what_a_server_does_not_read_is_kept_back_and_goes_over_the_next_connection(new_loop):
    async def work() -> None:
        async with scripted_store() as store, connected(store.url, command_timeout="20s") as connection:
            await echo(connection, "first")
            store.stop_reading()
            tokens = [f"{number:03}" + "x" * 200_000 for number in range(100)]
            calls = [asyncio.create_task(echo(connection, token)) for token in tokens]
            await asyncio.sleep(0.2)
            (link,) = connection.scripts._links  # type: ignore[attr-defined]
            assert link._transport.get_write_buffer_size() < 1_000_000
            assert 0 < len(link.in_flight) < 60
            in_flight = len(link.in_flight)
            store.cut()
            replies = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(reply) for reply in replies[:in_flight]} == {StoreUnavailable}
            assert replies[in_flight:] == tokens[in_flight:]
            assert store.asked.count(tokens[0]) <= 1

    run(new_loop, work())


# A connection that ends


async def test_a_lost_connection_fails_what_is_in_flight_and_asks_for_nothing_twice():
    async with scripted_store() as store, connected(store.url) as connection:
        store.silent = True
        calls = [asyncio.create_task(echo(connection, f"{number}")) for number in range(10)]
        await store.until(lambda: len(store.asked) == 10)
        store.cut()
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(reply) for reply in replies} == {StoreUnavailable}
        store.speak()
        assert await echo(connection, "next") == "next"
        assert store.asked == [*(f"{number}" for number in range(10)), "next"]


async def test_a_server_that_cannot_be_reached_fails_all_that_wait_and_is_tried_again_by_the_next():
    with valkey_server(persistent=True) as server:
        async with connected(server.url) as connection:
            server.kill()
            started = time.monotonic()
            replies = await asyncio.gather(*(echo(connection, "x") for _ in range(50)), return_exceptions=True)
            assert {type(reply) for reply in replies} == {StoreAway}
            assert time.monotonic() - started < 1
            server.start()
            assert await echo(connection, "back") == "back"


@loops
def test_a_connection_that_ended_while_it_was_idle_fails_nobody(new_loop):
    async def work() -> None:
        with valkey_server() as server:
            async with connected(server.url) as connection:
                for number in range(5):
                    assert await count(connection) == number + 1
                    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                    await asyncio.sleep(0.05)

    run(new_loop, work())


async def test_a_primary_that_became_a_replica_is_left_for_the_address_it_had():
    with valkey_server() as server:
        async with connected(server.url) as connection:
            await count(connection)
            (before,) = script_connections(server)
            server.command("REPLICAOF", "127.0.0.1", 1)
            with pytest.raises(StoreUnavailable):
                await count(connection)
            server.command("REPLICAOF", "NO", "ONE")
            assert await count(connection) == 2
            (after,) = script_connections(server)
            assert before["id"] != after["id"]


# What redis-py does for us


@pytest.mark.parametrize(
    "text",
    [
        "NOSCRIPT No matching script. Please use EVAL.",
        "READONLY You can't write against a read only replica.",
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "NOAUTH Authentication required.",
        "MOVED 1 127.0.0.1:1",
        "ASK 1 127.0.0.1:1",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
        "MASTERDOWN Link with MASTER is down",
        "MISCONF Errors writing to the AOF file",
        "NOREPLICAS Not enough good replicas to write.",
        "CROSSSLOT Keys in request don't hash to the same slot",
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "ERR max number of clients reached",
        "ERR user_script:3: attempt to index a nil value",
    ],
)
async def test_an_error_is_the_exception_that_redis_py_makes_of_it(text: str):
    async with scripted_store() as store, connected(store.url) as connection:
        store.answer = b"-%b\r\n" % text.encode()
        with pytest.raises(RedisError) as caught:
            await connection.scripts.call("EVAL", ECHO, 1, "k", "v")
        ours = caught.value
        with pytest.raises(RedisError) as caught:
            await connection.client.execute_command("EVAL", ECHO, 1, "k", "v")
        theirs = caught.value
        assert (type(ours), str(ours)) == (type(theirs), str(theirs))
        assert type(store_error(ours)) is type(store_error(theirs))


@pytest.mark.parametrize("garbage", [b"?what\r\n", b"+one\r\n+too many\r\n"], ids=["no reply", "one too many"])
async def test_a_server_that_does_not_speak_the_protocol_is_left(garbage: bytes):
    async with scripted_store() as store, connected(store.url) as connection:
        store.answer = garbage
        await asyncio.gather(connection.scripts.call("EVAL", ECHO, 1, "k", "v"), return_exceptions=True)
        await store.until(lambda: store.connected == 0)
        store.answer = None
        assert await echo(connection, "next") == "next"


async def test_what_a_server_pushes_is_nobodys_reply():
    async with scripted_store() as store, connected(store.url) as connection:
        store.answer = b">2\r\n+invalidate\r\n*1\r\n+k\r\n*1\r\n+mine\r\n"
        assert await connection.scripts.call("EVAL", ECHO, 1, "k", "v") == [b"mine"]


async def test_redis_py_keeps_its_streams_where_they_were_when_its_source_was_read():
    """`gateway.store.link` takes them from 8.1.0; what differs later must be read again."""
    async with scripted_store() as store:
        port = int(store.url.rpartition(":")[2])
        made: AbstractConnection = RedisPyConnection(port=port)
        await made.connect()
        assert isinstance(made._reader, asyncio.StreamReader)
        assert isinstance(made._writer, asyncio.StreamWriter)
        assert not await made.can_read()
        writer, made._reader, made._writer = made._writer, None, None
        assert not made.is_connected
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made.__del__()
        writer.transport.abort()


# The end


@loops
@pytest.mark.parametrize("when", ["in the same tick", "while connecting", "in flight"])
def test_closing_fails_what_is_pending_and_leaves_nothing_behind(new_loop, when: str):
    async def work() -> None:
        async with scripted_store() as store:
            async with asyncio.timeout(20), connected(store.url, command_timeout="1m") as connection:
                store.silent = True
                if when == "in flight":
                    store.silent = False
                    await echo(connection, "warm")
                    store.silent = True
                calls = [asyncio.create_task(echo(connection, "x")) for _ in range(10)]
                for _ in range({"in the same tick": 1, "while connecting": 4, "in flight": 1}[when]):
                    await asyncio.sleep(0)
                if when == "in flight":
                    await store.until(lambda: len(store.asked) == 11)
            replies = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(reply) for reply in replies} == {StoreUnavailable if when == "in flight" else StoreAway}
            with pytest.raises(StoreUnavailable):
                await echo(connection, "later")
            await store.until(lambda: store.connected == 0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run(new_loop, work())
