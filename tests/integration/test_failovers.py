"""A primary is replaced and a slot moves under load: callers see 503 at most, and what is lost was never copied."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from gateway.store import Keyspace
from gateway.store.embedded import find_server
from tests.gateways import Gateway, running_proxy
from tests.servers import Cluster, SentinelSet, Server, redis_cluster, redis_sentinel, wait_until
from tests.traffic import LEASE_MS, LIMITS, LONG_WORKERS, REDIS, WORKERS, Left, Traffic, left_in, recorded_in, traffic

pytestmark = pytest.mark.real_store

LIMIT = 250


async def settled(gateway: Gateway, servers: list[Server]) -> Left:
    """What is left when all requests have ended and were settled."""
    await gateway.idle()
    await asyncio.to_thread(wait_until, lambda: not left_in(servers).in_flight, "settled", LEASE_MS / 1_000)
    return left_in(servers)


# Sentinel


@pytest.fixture
def replicated() -> Iterator[SentinelSet]:
    with redis_sentinel(find_server()) as servers:
        yield servers


async def cut(replicated: SentinelSet, seconds: float) -> None:
    """The replica copies nothing any more, while the primary goes on."""
    (replica,) = replicated.replicas
    replica.signal(signal.SIGSTOP)
    replicated.primary.command("CLIENT", "KILL", "TYPE", "replica")
    await asyncio.sleep(seconds)


def leads(server: Server) -> bool:
    return bool(server.command("ROLE")[0] == b"master")


def fails_over(replicated: SentinelSet) -> bool:
    """Asks for it; the sentinel may not have heard of the replica for a while."""
    try:
        replicated.sentinels[0].command("SENTINEL", "FAILOVER", "gateway")
    except redis.ResponseError:
        return False
    return True


@pytest.mark.parametrize("uncopied_s", [0.0, 1.0], ids=["copied", "1 s not copied"])
async def test_a_primary_that_dies_under_load_is_503_until_another_leads_and_costs_what_was_not_copied(
    replicated: SentinelSet, uncopied_s: float
):
    (replica,) = replicated.replicas
    async with running_proxy(replicated.url, limits=LIMITS, redis=REDIS) as gateway, traffic(gateway, LIMIT) as load:
        async with load.running():
            await load.until(100, lambda told: told.status == 200)
            # a replica copies without being waited for
            lost_since = time.monotonic() - (0 if uncopied_s else 1)
            if uncopied_s:
                await cut(replicated, uncopied_s)
            replicated.primary.kill()
            killed = time.monotonic()
            if uncopied_s:
                replica.signal(signal.SIGCONT)
            await asyncio.to_thread(wait_until, lambda: leads(replica), "the failover", 30)
            back = time.monotonic()
            await load.until(20, lambda told: told.asked > back and told.status == 200)
            replicated.primary.start()  # it takes itself for the primary until the sentinel has told it
            await asyncio.to_thread(wait_until, lambda: not leads(replicated.primary), "the demotion", 30)
            await load.until(20, lambda told: told.asked > back and told.status == 429)
        await check_what_is_left(gateway, load, replica, killed, load.reached_since(lost_since, back))
        assert len(load.reached) > LIMIT or not uncopied_s


async def test_a_failover_that_was_asked_for_is_followed_before_the_old_primary_knows_of_it(replicated: SentinelSet):
    """It goes on for some ten seconds as if nothing had happened, and forgets what it is told then."""
    (replica,) = replicated.replicas
    async with running_proxy(replicated.url, limits=LIMITS, redis=REDIS) as gateway, traffic(gateway, LIMIT) as load:
        async with load.running():
            await load.until(100, lambda told: told.status == 200)
            asked = time.monotonic()
            await asyncio.to_thread(wait_until, lambda: fails_over(replicated), "a replica that may lead", 30)
            await asyncio.to_thread(wait_until, lambda: leads(replica), "the failover", 30)
            await asyncio.to_thread(wait_until, lambda: replicated.current() is replica, "the sentinel", 30)
            known = time.monotonic()
            await load.until(20, lambda told: told.asked > known and told.status == 200)
            await asyncio.to_thread(wait_until, lambda: not leads(replicated.primary), "the demotion", 30)
            await load.until(20, lambda told: told.asked > known and told.status == 429)
        # the gateway asks a sentinel every second
        await check_what_is_left(gateway, load, replica, asked, load.reached_since(asked, known + 2))


async def check_what_is_left(gateway: Gateway, load: Traffic, primary: Server, at: float, may_be_lost: int) -> None:
    """Nothing leaked, no more was lost than could be, and a quota that is lost begins again with what the ledger says."""
    load.check_answers()
    left, reached, unsure = await settled(gateway, [primary]), len(load.reached), load.lost_replies(at)
    assert (left.in_flight, left.holds, left.endless) == (0, 0, 0)
    assert LIMIT - unsure <= left.logged <= LIMIT
    assert LIMIT - unsure <= reached <= LIMIT + may_be_lost
    assert reached - may_be_lost <= left.known <= reached
    recorded = recorded_in(primary)
    # what was in flight when the copying stopped may have been settled after it
    assert reached - may_be_lost - WORKERS - LONG_WORKERS <= recorded <= reached

    (quota,) = primary.command("KEYS", "*:limit:budget:month:*")
    primary.command("DEL", quota)
    refused = await gateway.ask("GET", "/v1/short", key=load.tenant.secret)
    assert (refused.status, left_in([primary]).known) == (429, recorded)


# Cluster


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    with redis_cluster(find_server()) as servers:
        yield servers


async def test_a_slot_that_moves_under_load_is_503_for_its_tenants_only_and_nothing_is_lost(cluster: Cluster):
    moving, staying = tenants_of_one_primary(cluster)
    source, *others = (cluster.owner(Keyspace(moving).tenant), *cluster.nodes)
    target = next(node for node in others if node is not source)
    slot = int(source.command("CLUSTER", "KEYSLOT", Keyspace(moving).tenant))
    async with (
        running_proxy(cluster.url, limits=LIMITS, redis=REDIS) as gateway,
        traffic(gateway, LIMIT, subdomain=moving) as load,
        traffic(gateway, LIMIT, subdomain=staying) as other,
    ):
        async with load.running(), other.running():
            moved = 0.0
            for there, back in ((source, target), (target, source), (source, target)):
                await load.until(40, lambda told, since=moved: told.asked > since and told.status == 200)  # type: ignore[misc]
                began = time.monotonic()
                await asyncio.to_thread(cluster.begin_move, slot, there, back)
                await load.until(10, lambda told, since=began: told.asked > since)  # type: ignore[misc]
                await asyncio.to_thread(cluster.finish_move, slot, there, back)
                moved = time.monotonic()
            await load.until(20, lambda told: told.asked > moved and told.status == 429)
            await other.until(20, lambda told: told.status == 429)
        load.check_answers()
        # no reply was lost and nothing forgotten, so every count is exact
        assert {told.status for told in other.told} == {200, 429}
        left = await settled(gateway, list(cluster.nodes))
        assert (len(load.reached), len(other.reached)) == (LIMIT, LIMIT)
        assert left == Left(logged=2 * LIMIT, in_flight=0, known=2 * LIMIT, holds=0, endless=0)
        assert sum(map(recorded_in, cluster.nodes)) == 2 * LIMIT


def tenants_of_one_primary(cluster: Cluster) -> tuple[str, str]:
    """Two subdomains with different slots."""
    first, *rest = (f"company{number}" for number in range(30))
    owner = cluster.owner(Keyspace(first).tenant)
    return first, next(name for name in rest if cluster.owner(Keyspace(name).tenant) is owner)
