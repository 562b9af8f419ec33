"""Sentinel and cluster: failover, routing, slots on the move, lost nodes."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time

import pytest
from redis.exceptions import NoScriptError

from gateway.errors import InternalError, Overloaded, StoreUnavailable
from gateway.store.embedded import find_server
from gateway.store.failures import store_error, store_errors
from tests.servers import DEBIAN_REDIS, connected, redis_cluster, redis_sentinel, valkey_server, wait_until

pytestmark = pytest.mark.real_store

SET_AND_GET = b"redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])"
SHA = hashlib.sha1(SET_AND_GET).hexdigest()

debian = pytest.mark.skipif(not DEBIAN_REDIS.exists(), reason=f"{DEBIAN_REDIS} is not installed")


async def eventually(action, seconds=10.0):
    """Call until it no longer raises that the store is unavailable; returns the seconds it took."""
    started = time.monotonic()
    while True:
        try:
            with store_errors():
                await action()
            return time.monotonic() - started
        except StoreUnavailable:
            if time.monotonic() - started > seconds:
                raise
            await asyncio.sleep(0.05)


# Sentinel


async def test_sentinel_is_asked_for_the_primary_and_a_failover_is_followed():
    with redis_sentinel(find_server()) as replicated:
        async with connected(replicated.url) as connection:
            assert await connection.server_version() >= (7, 0)
            await connection.client.set("k", "before")
            wait_until(lambda: replicated.replicas[0].command("GET", "k") == b"before", "replication")
            old = replicated.current()
            old.kill()
            took = await eventually(lambda: connection.client.set("k2", "after"))
            assert await connection.client.get("k") == b"before"
            assert replicated.current() is not old
            assert took < 8


async def test_a_demoted_primary_that_hung_is_not_written_to_again():
    with redis_sentinel(find_server()) as replicated:
        async with connected(replicated.url, command_timeout="250ms") as connection:
            await eventually(lambda: connection.client.set("k", "v"))
            old = replicated.current()
            with old.hung():
                await eventually(lambda: connection.client.set("k", "new"))
            for _ in range(20):
                await eventually(lambda: connection.client.set("k", "newer"))
            assert replicated.current() is not old


# Cluster


@pytest.fixture(scope="module", params=[find_server(), pytest.param(DEBIAN_REDIS, marks=debian)], ids=["valkey", "debian"])
def cluster(request):
    with redis_cluster(request.param) as cluster:
        yield cluster


async def test_commands_and_scripts_find_the_primary_of_their_key(cluster):
    async with connected(cluster.url) as connection:
        assert connection.is_cluster
        assert await connection.server_version() >= (7, 0)
        primaries = await connection.primaries()
        assert len(primaries) == 3
        for node in primaries:
            await node.script_load(SET_AND_GET)
        for key in range(20):
            assert await connection.client.evalsha(SHA, 1, key, f"v{key}") == b"v%d" % key
            assert await connection.client.get(key) == b"v%d" % key
        sizes = [int(node.command("DBSIZE")) for node in cluster.nodes]
        assert all(sizes)


async def test_a_pipeline_spans_the_cluster_and_keeps_the_order(cluster):
    async with connected(cluster.url) as connection:
        for node in await connection.primaries():
            await node.script_load(SET_AND_GET)
        pipeline = connection.client.pipeline(transaction=False)
        for key in range(30):
            pipeline.execute_command("EVALSHA", SHA, 1, f"p{key}", key)
        pipeline.execute_command("EVALSHA", "0" * 40, 1, "p", "x")
        *replies, unknown = await pipeline.execute(raise_on_error=False)
        assert replies == [b"%d" % key for key in range(30)]
        assert isinstance(unknown, NoScriptError)
        with pytest.raises(NoScriptError):
            await connection.client.pipeline().execute_command("EVALSHA", "0" * 40, 1, "p", "x").execute()


async def test_keys_of_two_slots_in_one_script_are_a_bug(cluster):
    async with connected(cluster.url) as connection:
        with pytest.raises(InternalError), store_errors():
            await connection.client.eval(SET_AND_GET, 2, "a", "b", "v")


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "in a pipeline"])
async def test_a_slot_on_the_move_is_followed_with_many_open_connections(cluster, piped):
    tag = f"move{piped}"
    async with connected(cluster.url) as connection:
        client = connection.client

        async def put(key: str) -> None:
            if piped:
                assert await client.pipeline().eval(SET_AND_GET, 1, key, "v").execute() == [b"v"]
            else:
                assert await client.eval(SET_AND_GET, 1, key, "v") == b"v"

        await put(f"{{{tag}}}old")
        # Several free connections to each node: ASKING must travel with its command.
        await asyncio.gather(*(put(f"{{w{number % 40}}}{number}") for number in range(120)))
        source = cluster.owner(tag)
        target = next(node for node in cluster.nodes if node is not source)
        slot = int(source.command("CLUSTER", "KEYSLOT", tag))
        cluster.begin_move(slot, source, target)
        for number in range(10):
            await put(f"{{{tag}}}new{number}")
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 10
        assert await client.get(f"{{{tag}}}old") == b"v"
        cluster.finish_move(slot, source, target)
        for number in range(10):
            await put(f"{{{tag}}}late{number}")
        assert await client.get(f"{{{tag}}}old") == b"v"
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 21


async def test_moved_slots_do_not_disturb_commands_in_flight(cluster):
    async with connected(cluster.url, command_timeout="3s") as connection:
        client = connection.client
        await client.ping()
        waiting = [asyncio.create_task(client.blpop(f"{{w{number}}}none", timeout=1)) for number in range(6)]
        await asyncio.sleep(0.2)
        for number in range(12):
            tag = f"quiet{number}"
            source = cluster.owner(tag)
            target = next(node for node in cluster.nodes if node is not source)
            cluster.move_slot(int(source.command("CLUSTER", "KEYSLOT", tag)), source, target)
            await client.set(f"{{{tag}}}", "v")
        assert await asyncio.gather(*waiting) == [None] * 6


async def test_one_hung_primary_fails_its_own_commands_only(cluster):
    async with connected(cluster.url, command_timeout="250ms") as connection:
        victim = cluster.nodes[1]
        keys = [f"h{number}" for number in range(30)]
        await eventually(lambda: connection.client.set("h0", "h0"))  # a busy machine may take longer to connect
        await asyncio.gather(*(connection.client.set(key, key) for key in keys))
        with victim.hung():
            started = time.monotonic()
            pipeline = connection.client.pipeline(transaction=False)
            for key in keys:
                pipeline.incr(f"{{{key}}}n")
            replies = await pipeline.execute(raise_on_error=False)
            assert time.monotonic() - started < 1
        lost = {key for key, reply in zip(keys, replies, strict=True) if isinstance(reply, Exception)}
        assert {type(store_error(reply)) for reply in replies if isinstance(reply, Exception)} == {StoreUnavailable}
        assert lost == {key for key in keys if cluster.owner(key) is victim}
        await eventually(lambda: connection.client.set(keys[0], "v"))
        counts = [int(await connection.client.get(f"{{{key}}}n") or 0) for key in keys]
        assert set(counts) == {1}


async def test_a_node_that_keeps_failing_does_not_make_every_failure_refresh_the_topology(cluster):
    healthy, victim = (cluster.nodes[0], cluster.nodes[2]), cluster.nodes[1]
    key = next(f"r{number}" for number in range(99) if cluster.owner(f"r{number}") is victim)
    async with connected(cluster.url, command_timeout="30ms") as connection:
        await eventually(lambda: connection.client.get(key))
        for node in healthy:
            node.command("CONFIG", "RESETSTAT")
        with victim.hung():
            for _ in range(10):
                with pytest.raises(StoreUnavailable), store_errors():
                    await connection.client.get(key)
        asked = [node.command("INFO", "commandstats").get("cmdstat_cluster|slots", {"calls": 0}) for node in healthy]
        assert 1 <= sum(counts["calls"] for counts in asked) <= 2


async def test_a_cluster_pool_without_a_free_connection_waits_and_then_is_overload(cluster):
    async with connected(cluster.url, pool_size=1, pool_wait="500ms", command_timeout="5s") as connection:
        client = connection.client
        short = asyncio.create_task(client.blpop("{q}none", timeout=0.05))
        await asyncio.sleep(0.02)
        assert await client.get("{q}k") is None
        await short
        long = asyncio.create_task(client.blpop("{q}none", timeout=2))
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded), store_errors():
            await client.get("{q}k")
        await long


async def test_a_cancelled_cluster_command_never_gives_its_reply_to_another(cluster):
    rng = random.Random(3)
    async with connected(cluster.url, pool_size=2, pool_wait="5s", command_timeout="5s") as connection:
        client = connection.client
        cancelled = 0

        async def ask(token: str) -> None:
            key = f"{{c{token}}}"
            pipeline = client.pipeline(transaction=False)
            pipeline.eval("return ARGV[1]", 1, key, token)
            pipeline.eval("return ARGV[1]", 1, "fixed", token)
            assert await pipeline.execute() == [token.encode()] * 2
            assert await client.eval("return ARGV[1]", 1, key, token) == token.encode()

        async def worker(name: int) -> None:
            nonlocal cancelled
            for number in range(100):
                task = asyncio.create_task(ask(f"{name}-{number}"))
                if rng.random() < 0.35:
                    for _ in range(rng.randrange(20)):
                        await asyncio.sleep(0)
                    task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    cancelled += 1

        await asyncio.gather(*(worker(name) for name in range(15)))
        assert cancelled > 200
        assert await client.eval("return ARGV[1]", 1, "fixed", "end") == b"end"


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "in a pipeline"])
async def test_a_failover_in_the_cluster_is_noticed(piped):
    with redis_cluster(find_server(), replicas=1) as cluster:
        async with connected(cluster.url, command_timeout="250ms") as connection:
            client = connection.client

            async def put() -> None:
                if piped:
                    await client.pipeline().set("k", "v").execute()
                else:
                    await client.set("k", "v")

            await eventually(put)
            cluster.owner("k").kill()
            with pytest.raises(StoreUnavailable), store_errors():
                await put()
            assert await eventually(put, seconds=15) < 10


@pytest.mark.parametrize("warm", [True, False], ids=["on open connections", "while connecting"])
async def test_one_dead_primary_fails_its_own_commands_only(warm):
    with redis_cluster(find_server()) as cluster:
        async with connected(cluster.url) as connection:
            keys = [f"d{number}" for number in range(30)]
            await asyncio.gather(*(connection.client.set(key, key) for key in keys))
            dead = cluster.nodes[1]
            lost = {key for key in keys if cluster.owner(key) is dead}
            dead.kill()
            if not warm:
                await asyncio.gather(*(node.disconnect() for node in connection.client.get_primaries()))
            pipeline = connection.client.pipeline(transaction=False)
            for key in keys:
                pipeline.get(key)
            replies = dict(zip(keys, await pipeline.execute(raise_on_error=False), strict=True))
            assert {key for key, reply in replies.items() if reply == key.encode()} == set(keys) - lost
            assert {type(store_error(replies[key])) for key in lost} == {StoreUnavailable}


async def test_closing_closes_every_connection_also_when_the_topology_is_stale():
    with redis_cluster(find_server()) as cluster:
        async with connected(cluster.url, command_timeout="250ms") as connection:
            await eventually(lambda: connection.client.set("c0", 1))
            await asyncio.gather(*(connection.client.set(f"c{number}", 1) for number in range(30)))
            with cluster.nodes[1].hung(), pytest.raises(StoreUnavailable), store_errors():
                await asyncio.gather(*(connection.client.get(f"c{number}") for number in range(30)))
            await asyncio.sleep(0.3)
        nodes = connection.client.get_nodes()
        assert [one.is_connected for node in nodes for one in node._connections].count(True) == 0


async def test_a_plain_server_is_not_taken_for_a_cluster():
    with valkey_server() as server:
        async with connected(server.url.replace("redis://", "redis+cluster://")) as connection:
            with pytest.raises(StoreUnavailable), store_errors():
                await connection.client.get("k")
