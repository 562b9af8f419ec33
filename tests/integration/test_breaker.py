"""A server that is away or silent is left alone after a few calls and found again by one probe at a time."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time

import pytest
from redis.asyncio import Redis

from gateway.errors import StoreAway, StoreUnavailable
from gateway.store.breaker import FAILURES, Breaker
from gateway.store.connect import Connection
from gateway.store.embedded import find_server
from gateway.store.failures import store_errors
from tests.scripted_store import scripted_store
from tests.servers import connected, redis_cluster, valkey_server, wait_until
from tests.wire import eventually

pytestmark = pytest.mark.real_store

ECHO = "return {ARGV[1]}"


async def echo(connection: Connection, token: str, key: str = "k") -> str:
    with store_errors():
        (reply,) = await connection.scripts.call("EVAL", ECHO, 1, key, token)
    return str(reply.decode())


async def fails(connection: Connection, key: str = "k") -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        await echo(connection, "x", key)
    return caught.value


def the_breaker(connection: Connection) -> Breaker:
    (breaker,) = connection.breakers()
    return breaker


async def closed(connection: Connection) -> None:
    """The gateway is back within two seconds of its store; a busy machine may take longer."""
    await eventually(lambda: not any(breaker.is_open for breaker in connection.breakers()))


async def test_a_server_that_is_gone_is_not_asked_after_a_few_calls_and_used_again_when_it_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO, "gateway.store")
    connects: list[float] = []
    with valkey_server(persistent=True) as server:
        async with connected(server.url) as connection:
            await echo(connection, "first")
            server.kill()
            for _ in range(FAILURES):
                await fails(connection)
            breaker = the_breaker(connection)
            assert breaker.is_open

            make = connection.client.connection_pool.make_connection

            def noted():
                connects.append(time.monotonic())
                return make()

            monkeypatch.setattr(connection.client.connection_pool, "make_connection", noted)
            started = time.monotonic()
            for number in itertools.count():
                assert isinstance(await fails(connection), StoreAway)
                if number % 100 == 0:  # the other commands are refused as well
                    with pytest.raises(StoreAway):
                        await connection.ping()
                    await asyncio.sleep(0.01)
                if time.monotonic() > started + 1.2:
                    break
            assert number > 1_000
            # nothing but probes, at their distance
            assert 1 <= len(connects) <= 5
            assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(connects))

            server.start()
            await closed(connection)
            made = len(connects)
            assert await echo(connection, "back") == "back"
            assert len(connects) == made, "the probe's connection is the one that calls use"
            await connection.ping()
    logged = [record.message for record in caplog.records if record.name == "gateway.store"]
    assert len(logged) == 2
    assert logged[0].startswith(f"store {server.address} does not answer and is not asked until it does: ConnectionError")
    assert logged[1].startswith(f"store {server.address} answers again after")


async def test_calls_that_fail_together_are_one_failure():
    async with scripted_store() as store, connected(store.url) as connection:
        for _ in range(FAILURES - 1):
            store.silent = True
            asked = len(store.asked)
            calls = [asyncio.create_task(echo(connection, "x")) for _ in range(50)]
            await store.until(lambda asked=asked: len(store.asked) == asked + 50)  # type: ignore[misc]
            store.cut()
            await asyncio.gather(*calls, return_exceptions=True)
        assert (the_breaker(connection).failures, the_breaker(connection).is_open) == (FAILURES - 1, False)
        store.speak()
        assert await echo(connection, "y") == "y"
        assert the_breaker(connection).failures == 0


async def test_a_pause_of_less_than_two_deadlines_opens_nothing():
    with valkey_server() as server:
        async with connected(server.url, command_timeout="400ms") as connection:
            await echo(connection, "first")
            with server.hung():
                calls = []
                for _ in range(60):
                    calls.append(asyncio.create_task(echo(connection, "x")))
                    await asyncio.sleep(0.01)
            assert await asyncio.wait_for(echo(connection, "y"), 5) == "y"
            await asyncio.gather(*calls, return_exceptions=True)
            assert not the_breaker(connection).is_open


async def test_a_hung_server_is_used_again_after_it_goes_on():
    with valkey_server() as server:
        async with connected(server.url, command_timeout="500ms") as connection:
            await echo(connection, "first")
            with server.hung():
                for _ in range(FAILURES):
                    await fails(connection)
                assert the_breaker(connection).is_open
                started = time.monotonic()
                assert isinstance(await fails(connection), StoreAway)
                assert time.monotonic() - started < 0.4  # at once, and not at its deadline
                await asyncio.sleep(1.2)  # a probe is not answered either
                assert the_breaker(connection).is_open
            await closed(connection)
            assert await echo(connection, "back") == "back"


async def test_what_a_server_answers_never_opens_a_breaker():
    async with scripted_store() as store, connected(store.url) as connection:
        for answer in (b"-OOM no", b"-READONLY no", b"-BUSY no", b"-LOADING no", b"-CLUSTERDOWN no"):
            store.answer = answer + b"\r\n"
            for _ in range(FAILURES + 1):
                await fails(connection)
        assert the_breaker(connection).failures == 0


async def test_a_server_that_runs_a_script_for_long_is_back_when_it_has_ended():
    with valkey_server(options={"busy-reply-threshold": 3000}) as server:
        async with connected(server.url, command_timeout="100ms") as connection:
            await echo(connection, "first")
            async with Redis.from_url(server.url) as other:
                await other.ping()
                busy = asyncio.create_task(other.execute_command("EVAL", "while true do end", 0))
                await asyncio.sleep(0.1)
                for _ in range(FAILURES):
                    await fails(connection)
                assert the_breaker(connection).is_open
                await asyncio.sleep(4)  # it takes connections and answers BUSY
                assert the_breaker(connection).is_open
                await asyncio.to_thread(server.command, "SCRIPT", "KILL")
                await asyncio.gather(busy, return_exceptions=True)
            await closed(connection)
            assert await echo(connection, "back") == "back"


async def test_closing_ends_a_probe():
    with valkey_server() as server:
        async with connected(server.url) as connection:
            server.kill()
            for _ in range(FAILURES):
                await fails(connection)
            assert the_breaker(connection).is_open
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_dead_primary_of_a_cluster_does_not_stop_the_others_and_is_used_again():
    with redis_cluster(find_server()) as cluster:
        for node in cluster.nodes:
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        keys = {cluster.owner(f"key{number}").port: f"key{number}" for number in range(50)}
        dead = cluster.nodes[0]
        async with connected(cluster.url) as connection:
            for key in keys.values():
                assert await echo(connection, "first", key) == "first"
            dead.kill()
            for _ in range(FAILURES):
                await fails(connection, keys[dead.port])
            states = {breaker.server: breaker.state for breaker in connection.breakers()}
            assert states.pop(dead.address) != "closed"
            assert set(states.values()) == {"closed"}
            for _ in range(50):
                assert isinstance(await fails(connection, keys[dead.port]), StoreUnavailable)
                for port, key in keys.items():
                    if port != dead.port:
                        assert await echo(connection, "others", key) == "others"
            await connection.ping()  # it serves, though not everybody
            await asyncio.sleep(1.1)  # for another look at the topology, which may ask the dead one first
            connection.client.forget_topology()
            await connection.client.ask_topology()
            dead.start()
            wait_until(lambda: b"cluster_state:ok" in dead.command("CLUSTER", "INFO"), "part of the cluster again")
            await closed(connection)
            for key in keys.values():
                assert await echo(connection, "back", key) == "back"


async def test_a_primary_whose_slots_another_node_has_got_is_not_probed_for_ever():
    with redis_cluster(find_server(), replicas=1) as cluster:
        keys = {cluster.owner(f"key{number}").port: f"key{number}" for number in range(50)}
        dead = cluster.nodes[0]
        async with connected(cluster.url) as connection:
            for key in keys.values():
                await echo(connection, "first", key)
            dead.kill()
            for _ in range(FAILURES):
                await fails(connection, keys[dead.port])
            await eventually(lambda: not any(breaker.is_open for breaker in connection.breakers()), 20)
            # nobody called meanwhile
            assert await echo(connection, "from the new primary", keys[dead.port]) == "from the new primary"
