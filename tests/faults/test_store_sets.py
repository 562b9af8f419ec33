"""Faults of sets of servers, under load through a whole proxy: failovers, moving slots, primaries that are away."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.store import Keyspace
from gateway.store.embedded import find_server
from tests.faults.store_scene import TIGHT, Scene, a_scene
from tests.faults.table import FaultRow
from tests.servers import Cluster, SentinelSet, Server, redis_cluster, redis_sentinel, wait_until

pytestmark = pytest.mark.real_store

UNCOPIED_S = 1.0


# Sentinel


@pytest.fixture
def replicated() -> Iterator[SentinelSet]:
    with redis_sentinel(find_server(), replicas=2, sentinels=3) as servers:
        yield servers


def leads(server: Server) -> bool:
    return bool(server.command("ROLE")[0] == b"master")


@pytest.mark.usefixtures("again")
async def test_a_primary_dies_and_sentinels_choose_another(
    row: FaultRow, replicated: SentinelSet, caplog: pytest.LogCaptureFixture
):
    row.kind = "redis sentinel: the primary dies (1 + 2 replicas, 3 sentinels)"
    async with a_scene(replicated.url, replicated.replicas, caplog) as scene:
        assert await scene.ask(scene.tight) == 200  # the last unit, which must be known to whoever leads next
        killed = 0.0

        def kill() -> None:
            nonlocal killed
            with replicated.primary.admin() as client:
                client.set("copied", 1)  # WAIT counts who has the writes of this connection
                assert client.wait(2, 5_000) == 2
            replicated.primary.kill()
            killed = time.monotonic()
            wait_until(lambda: any(leads(replica) for replica in replicated.replicas), "the failover", 60)

        await scene.a_try(row, kill, lambda: None, lasting_s=0, exact=False)
        assert scene.tight.served == TIGHT
        uncopied = sum(reply.status == 200 and killed - UNCOPIED_S <= at <= killed for at, reply in scene.wide.told)
        (leader,) = [replica for replica in replicated.replicas if leads(replica)]
        await counted(leader, scene, uncopied)


async def counted(leader: Server, scene: Scene, uncopied: int) -> None:
    """All that clients were told but for what the old primary had not copied."""
    async with asyncio.timeout(20):
        while True:
            with leader.admin() as client:
                units = max(client.llen(key) for key in client.keys("*:limit:log:*"))
            if scene.wide.served - uncopied <= units <= scene.wide.served:
                return
            await asyncio.sleep(0.05)


# Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with redis_cluster(find_server()) as servers:
        for node in servers.nodes:
            node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        yield servers


@pytest.fixture
async def scene(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Scene]:
    """The two tenants are of different primaries."""
    wide = "wide"
    owner = cluster.owner(Keyspace(wide).tenant)
    tight = next(name for name in map("tight{}".format, range(30)) if cluster.owner(Keyspace(name).tenant) is not owner)
    async with a_scene(cluster.url, cluster.nodes, caplog, (wide, tight)) as made:
        yield made


async def test_a_slot_moves_to_and_fro(row: FaultRow, tries: int, scene: Scene, cluster: Cluster):
    row.kind = "redis cluster: a slot moves (MOVED, ASK)"
    name = Keyspace("wide").tenant
    source = cluster.owner(name)
    target = next(node for node in cluster.nodes if node is not source)
    slot = int(source.command("CLUSTER", "KEYSLOT", name))
    for _ in range(tries):
        there, back = source, target
        await scene.a_try(
            row,
            lambda there=there, back=back: cluster.begin_move(slot, there, back),  # type: ignore[misc]
            lambda there=there, back=back: cluster.finish_move(slot, there, back),  # type: ignore[misc]
            lasting_s=0.3,
        )
        source, target = target, source


async def test_a_primary_is_away(row: FaultRow, tries: int, scene: Scene, cluster: Cluster):
    row.kind = "redis cluster: a primary is away"
    away = cluster.owner(Keyspace("wide").tenant)
    for _ in range(tries):
        healthy = len(scene.tight.told)
        await scene.a_try(row, lambda: away.signal(signal.SIGSTOP), lambda: away.signal(signal.SIGCONT), lasting_s=1.7)
        # tenants of the others are decided on as ever
        assert {reply.status for _, reply in scene.tight.told[healthy:]} <= {200, 429}
    assert [reply for _, reply in scene.wide.told if reply.status == 503]


@pytest.mark.usefixtures("again")
async def test_a_primary_is_killed(row: FaultRow, scene: Scene, cluster: Cluster):
    """It has no replica and no file, so its tenants are gone; those of the others never notice."""
    row.kind = "redis cluster: a primary is killed"
    dead = cluster.owner(Keyspace("wide").tenant)
    with row.one_try():
        dead.kill()
        for _ in range(60):
            assert await scene.ask(scene.wide, row) == 503
            assert await scene.ask(scene.tight, row) in (200, 429)
        scene.check_answers()
        assert scene.tight.served == TIGHT
        ready = await scene.gateway.ask("GET", "/health/ready", host="localhost")
        assert ready.status == 200
