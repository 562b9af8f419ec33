"""Script calls to a cluster and behind Sentinel: one connection to each primary, slots on the move, lost nodes, failovers."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Iterator

import pytest

from gateway.errors import InternalError, StoreUnavailable
from gateway.store.connect import Connection
from gateway.store.embedded import find_server
from gateway.store.failures import store_errors
from tests.servers import Cluster, connected, redis_cluster, redis_sentinel, wait_until

pytestmark = pytest.mark.real_store

ECHO = "return {ARGV[1]}"
SET = "redis.call('SET', KEYS[1], ARGV[1]) return {redis.call('GET', KEYS[1])}"
COUNT = "return {redis.call('INCR', KEYS[1])}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with redis_cluster(find_server()) as cluster:
        yield cluster


async def ask(connection: Connection, script: str, key: str, *arguments: str) -> bytes | int:
    with store_errors():
        (reply,) = await connection.scripts.call("EVAL", script, 1, key, *arguments)
    assert isinstance(reply, (bytes, int))
    return reply


async def works_again(connection: Connection, script: str, key: str, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                await ask(connection, script, key, "v")
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def test_calls_of_one_tick_are_one_write_to_each_primary(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    writes: list[int] = []

    def send(sending: socket.socket, data: bytes, *flags: int) -> int:
        writes.append(bytes(data).count(b"EVAL"))
        return super(socket.socket, sending).send(data, *flags)

    async with connected(cluster.url) as connection:
        await asyncio.gather(*(ask(connection, ECHO, f"w{number}", "v") for number in range(60)))
        monkeypatch.setattr(socket.socket, "send", send)
        replies = await asyncio.gather(*(ask(connection, ECHO, f"w{number}", f"{number}") for number in range(60)))
        assert replies == [b"%d" % number for number in range(60)]
        assert (len(writes), sum(writes)) == (3, 60)
        for node in cluster.nodes:
            with node.admin() as client:
                assert len([one for one in client.client_list() if one["cmd"].startswith("eval")]) == 1


async def test_a_script_without_keys_runs_and_one_with_keys_of_two_slots_is_a_bug(cluster: Cluster):
    async with connected(cluster.url) as connection:
        assert await connection.scripts.call("EVAL", "return {1}", 0) == [1]
        with pytest.raises(InternalError), store_errors():
            await connection.scripts.call("EVAL", SET, 2, "a", "b", "v")


async def test_a_slot_on_the_move_is_followed_while_others_call_in_the_same_tick(cluster: Cluster):
    async with connected(cluster.url) as connection:
        await ask(connection, SET, "{move}old", "v")
        source = cluster.owner("move")
        target = next(node for node in cluster.nodes if node is not source)
        slot = int(source.command("CLUSTER", "KEYSLOT", "move"))
        stray = next(f"{{s{number}}}" for number in range(999) if cluster.owner(f"s{number}") is target)

        async def put(name: str) -> None:
            # ASKING counts for the next command on its connection only
            keys = [f"{{move}}{name}{number}" for number in range(10)]
            work = [part for key in keys for part in (ask(connection, SET, key, "v"), ask(connection, SET, stray, "v"))]
            assert await asyncio.gather(*work) == [b"v"] * 20

        cluster.begin_move(slot, source, target)
        await put("new")
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 10
        assert await ask(connection, SET, "{move}old", "w") == b"w"
        cluster.finish_move(slot, source, target)
        await put("late")
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 21
        moved = source.command("INFO", "errorstats")["errorstat_MOVED"]
        await put("known")
        assert source.command("INFO", "errorstats")["errorstat_MOVED"] == moved
        cluster.move_slot(slot, target, source)


async def test_one_hung_primary_fails_its_own_calls_only_also_while_the_topology_is_asked_for(cluster: Cluster):
    async with connected(cluster.url, command_timeout="250ms") as connection:
        keys = [f"h{number}" for number in range(30)]
        await works_again(connection, ECHO, "h0", 10)  # a busy machine may take longer to connect
        await asyncio.gather(*(ask(connection, SET, key, key) for key in keys))
        victim = cluster.nodes[1]
        lost = {key for key in keys if cluster.owner(key) is victim}
        # of all nodes the one that hangs is asked
        asked = connection.client.nodes_manager.startup_nodes
        for name in [name for name, node in asked.items() if int(node.port) != victim.port]:
            await asked.pop(name).disconnect()
        with victim.hung():
            for _ in range(2):
                started = time.monotonic()
                replies = await asyncio.gather(*(ask(connection, COUNT, f"{{{key}}}n") for key in keys), return_exceptions=True)
                assert time.monotonic() - started < 1
                failed = {key for key, reply in zip(keys, replies, strict=True) if isinstance(reply, StoreUnavailable)}
                assert failed == lost
                # nobody waits for the topology
                await asyncio.gather(*(ask(connection, ECHO, key, "v") for key in keys if key not in lost))
        await works_again(connection, ECHO, next(iter(lost)), 10)
        for key in lost:
            assert await ask(connection, COUNT, f"{{{key}}}n") in {1, 2, 3}


async def test_no_reply_ever_reaches_another_caller(cluster: Cluster):
    rng = random.Random(5)
    async with connected(cluster.url) as connection:
        cancelled = 0

        async def worker(name: int) -> None:
            nonlocal cancelled
            for number in range(300):
                token = f"{name}-{number}"
                task = asyncio.create_task(ask(connection, ECHO, token, token))
                if rng.random() < 0.5:
                    for _ in range(rng.randrange(8)):
                        await asyncio.sleep(0)
                    await asyncio.sleep(rng.choice([0, 0, 0.0003, 0.001]))
                    task.cancel()
                try:
                    assert await task == token.encode()
                except asyncio.CancelledError:
                    cancelled += 1

        await asyncio.gather(*(worker(name) for name in range(20)))
        assert cancelled > 500


async def test_a_failover_in_the_cluster_is_followed():
    with redis_cluster(find_server(), replicas=1) as cluster:
        async with connected(cluster.url, command_timeout="250ms") as connection:
            await works_again(connection, SET, "k", 10)
            cluster.owner("k").kill()
            with pytest.raises(StoreUnavailable):
                await ask(connection, SET, "k", "v")
            await works_again(connection, SET, "k", 15)


async def test_calls_when_no_node_answers_fail_and_those_after_it_do_not():
    with redis_cluster(find_server()) as cluster:
        for node in cluster.nodes:
            node.kill()
        async with connected(cluster.url) as connection:
            for _ in range(2):
                replies = await asyncio.gather(*(ask(connection, ECHO, "k", "v") for _ in range(5)), return_exceptions=True)
                assert {type(reply) for reply in replies} == {StoreUnavailable}


async def test_a_primary_that_sentinel_replaced_gets_no_calls_any_more():
    with redis_sentinel(find_server()) as replicated:
        async with connected(replicated.url, command_timeout="250ms") as connection:
            await works_again(connection, SET, "k", 5)
            old = replicated.current()
            with old.hung():
                wait_until(lambda: replicated.current() is not old, "the failover", 30)
                await works_again(connection, SET, "k", 10)
            for number in range(20):
                assert await ask(connection, SET, "k", f"{number}") == b"%d" % number
            assert replicated.current().command("GET", "k") == b"19"
