"""Replicas that are killed under load: no request is counted twice or for nothing, and nothing is held longer than a lease.

How much: ``GATEWAY_KILLS`` kills, at least ``GATEWAY_CONSERVED_REQUESTS`` requests, leases of ``GATEWAY_KILL_LEASE_MS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.amounts import amount, figure
from tests.e2e.processes import Gateway, a_gateway, a_rule
from tests.faults.ends import Clients, Target, a_target
from tests.faults.table import FaultRow
from tests.servers import Server, short_directory, valkey_server, wait_until
from tests.traffic import recorded_in

pytestmark = pytest.mark.real_store

KILLS = amount("GATEWAY_KILLS", 3)
REQUESTS = amount("GATEWAY_CONSERVED_REQUESTS", 4_000)
LEASE_MS = amount("GATEWAY_KILL_LEASE_MS", 3_000)
SHORT, STREAMING, GREEDY = 16, 8, 2
COST, LOG_LIMIT = 3, 500
SETTINGS = {
    "LIMITS__LEASE": f"{LEASE_MS}ms",
    "LIMITS__RENEW_EVERY": f"{LEASE_MS // 3}ms",
    "REDIS__COMMAND_TIMEOUT": "20s",
    "REDIS__CONNECT_TIMEOUT": "20s",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
    "LOG__ACCESS": "false",
}
LIMITS: list[dict[str, Any]] = [
    {"name": "counted", "quota": {"monthly": 10**9}},
    {"name": "windowed", "limit": 10**9, "window": "24h"},
    {"name": "places", "limit": 1_000, "unit": "concurrency"},
    {"name": "charged", "quota": {"monthly": 10**9}, "on_lost": "charge", "cost": COST},
    {"name": "released", "quota": {"monthly": 10**9}, "on_lost": "release", "cost": COST},
]
FEW = [{"name": "few", "limit": LOG_LIMIT, "window": "24h"}]
SHORTEST_LIFE_S, LIFE_S = 0.5, 36_000.0
STOPPED_STREAM_S = 5.0
"""Long enough for all streams to begin, and for the replica to be stopped, before the first of them ends."""


@dataclass
class Scene:
    """Replicas on one store, and a tenant with two rules: one that counts everything, one that lets few through."""

    store: Server
    replicas: list[Gateway]
    leave: list[contextlib.ExitStack]
    target: Target
    tenant_id: str = ""
    key: str = ""
    rule_id: str = ""

    @property
    def ports(self) -> list[int]:
        return [replica.proxy_port for replica in self.replicas]

    def start(self, ports: tuple[int, int] | None = None, number: int = -1) -> None:
        """One more replica, or another process in the place of one."""
        settings = {**SETTINGS, "REDIS__URL": self.store.url}
        if ports is not None:
            settings |= {"SERVER__ADMIN_PORT": str(ports[0]), "SERVER__PROXY_PORT": str(ports[1])}
        folder = self.leave[number].enter_context(short_directory())
        made = a_gateway(folder, settings=settings, wait=False, seconds=LIFE_S)
        self.replicas[number] = self.leave[number].enter_context(made)

    async def is_ready(self, number: int) -> None:
        replica = self.replicas[number]
        await asyncio.to_thread(replica.program.wait_until, replica.is_ready, "ready")

    async def kill(self, number: int, row: FaultRow) -> None:
        """SIGKILL, and another one on the same ports."""
        dead = self.replicas[number]
        dead.program.kill()
        with row.recovery():
            self.leave[number].close()
            self.start((dead.admin_port, dead.proxy_port), number)
            await self.is_ready(number)

    def used(self, replica: int = 0) -> dict[str, int]:
        """What each limit says is used, asked of that replica."""
        report = self.replicas[replica].admin("GET", f"/tenants/{self.tenant_id}/usage", key=self.key).json
        return {limit["name"].removesuffix("-per-month"): limit["used"] for limit in report["limits"]}

    def never_settled(self) -> int:
        """Admissions whose end nobody has told the store."""
        with self.store.admin() as client:
            keys = list(client.scan_iter("gw:{*}:req:*", 1_000))
            states = [client.get(key) for key in keys]
            assert all(client.pttl(key) <= 3_600_000 + LEASE_MS for key in keys)
        return sum(state is not None and state != b"S" for state in states)

    def endless_keys(self) -> list[bytes]:
        """Keys of limits and markers that would never leave."""
        with self.store.admin() as client:
            keys = [*client.scan_iter("gw:{*}:limit:*", 1_000), *client.scan_iter("gw:{*}:req:*", 1_000)]
            return [key for key in keys if client.pttl(key) == -1]


@contextlib.asynccontextmanager
async def a_scene() -> AsyncIterator[Scene]:
    async with contextlib.AsyncExitStack() as stack:
        store = stack.enter_context(valkey_server())
        target = await stack.enter_async_context(a_target())
        leave = [stack.enter_context(contextlib.ExitStack()) for _ in range(2)]
        unborn: Any = None
        scene = Scene(store, [unborn, unborn], leave, target)
        for number in range(2):
            scene.start(number=number)
        for number in range(2):
            await scene.is_ready(number)
        url = f"http://127.0.0.1:{target.port}"
        rules = a_rule(url, LIMITS), a_rule(url, FEW, path="/few")
        made = await asyncio.to_thread(scene.replicas[0].new_tenant, "kills", *rules)
        scene.tenant_id, scene.key, (scene.rule_id, _) = made
        yield scene


def check_conservation(scene: Scene, clients: Clients, greedy: Clients) -> str:
    """Of every request: what its client, the store and the target know of it. Returns the sums."""
    used, unsettled, recorded = scene.used(), scene.never_settled(), recorded_in(scene.store)
    reached, served = set(scene.target.seen), clients.served
    numbers = {number for number in reached if number < GREEDY_FROM}
    sums = (
        f"{clients.asked} asked, {len(served)} served, {len(clients.lost)} lost, {len(numbers)} at the target,"
        f" {used['counted']} counted, {recorded} recorded, {unsettled} never settled; {used}"
    )
    assert max(scene.target.seen.values()) == 1, "a request was sent twice"
    assert served <= numbers, "served without the target"
    assert numbers <= served | clients.lost, "the target saw a request that was refused"
    # admitted, and dead before it was forwarded
    assert len(numbers) <= used["counted"] <= len(numbers) + len(clients.lost - numbers), sums
    few = {number for number in reached if number >= GREEDY_FROM}
    assert used["few"] == LOG_LIMIT, sums
    assert len(few) <= LOG_LIMIT <= len(few) + len(greedy.lost), sums
    # what each kind of limit makes of what died with a replica
    assert used["windowed"] == used["counted"], sums
    assert used["charged"] == COST * used["counted"], sums
    assert used["counted"] + LOG_LIMIT == recorded + unsettled, sums
    assert used["released"] == COST * recorded_in(scene.store, scene.rule_id), sums
    assert used["places"] == 0, sums
    assert scene.endless_keys() == []
    return sums


GREEDY_FROM = 1 << 40
"""Requests to the rule that lets few through have numbers from here."""


@pytest.mark.timeout(120 + 60 * KILLS + REQUESTS // 50)
async def test_kills_under_load_lose_nothing_that_was_counted_and_leak_nothing_past_a_lease(row: FaultRow):
    row.kind, row.tried = "kill -9 of a replica under load", KILLS
    async with a_scene() as scene:
        clients = Clients(scene.ports, "kills.example.com", scene.key)
        greedy = Clients(scene.ports, "kills.example.com", scene.key, asked=GREEDY_FROM)
        async with clients.at_work(SHORT, STREAMING), greedy.at_work(GREEDY, 0, "/few", 0.01):
            for number in range(KILLS):
                due = REQUESTS * (number + 1) // (KILLS + 1)
                await clients.until(lambda due=due: clients.asked >= due, 3_600)  # type: ignore[misc]
                await asyncio.sleep(SHORTEST_LIFE_S)
                await scene.kill(number % 2, row)
            await clients.until(lambda: clients.asked >= REQUESTS and greedy.refused[429] > 0, 3_600)
        with contextlib.suppress(TimeoutError):  # then the sums will say what is wrong
            await asyncio.to_thread(wait_until, lambda: scene.never_settled() <= len(clients.lost), "settled")
        await asyncio.sleep(LEASE_MS / 1_000)
        figure(await asyncio.to_thread(check_conservation, scene, clients, greedy))
        assert set(clients.refused) == set()
        assert set(greedy.refused) == {429}
        assert clients.asked >= REQUESTS
        # each kill ends no more than what was asked at that moment
        assert len(clients.lost) <= KILLS * (SHORT + STREAMING)
        assert len(greedy.lost) <= KILLS * GREEDY
        row.answered(clients.longest_s * 1_000)
        row.survived = row.tried


async def test_a_replica_that_was_stopped_past_its_lease_settles_late_and_nothing_twice(row: FaultRow):
    row.kind = "replica stopped past its lease, then continued"
    async with a_scene() as scene:
        scene.target.stream_s = STOPPED_STREAM_S
        stopped = scene.replicas[0]
        for number in range(1, 1 + amount("GATEWAY_STOPS", 1)):
            with row.one_try():
                await _stop_and_continue(scene, stopped, number, row)


async def _stop_and_continue(scene: Scene, stopped: Gateway, number: int, row: FaultRow) -> None:
    asked = STREAMING * (number - 1)
    streams = Clients([stopped.proxy_port], "kills.example.com", scene.key, asked=asked)
    async with streams.at_work(0, STREAMING):
        await streams.until(lambda: len(scene.target.seen) == asked + STREAMING, 30)
        streams.stop.set()
        stopped.program.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(LEASE_MS / 1_000 + 0.5)
            used = await asyncio.to_thread(scene.used, 1)
        finally:
            stopped.program.signal(signal.SIGCONT)
        # what it held is free, lost or charged, as if it had died
        spent = COST * asked
        assert (used["places"], used["released"], used["charged"]) == (0, spent, spent + COST * STREAMING)
    # its clients had their streams whole, only later
    assert len(streams.served) == STREAMING
    asked += STREAMING
    with row.recovery():
        await asyncio.to_thread(wait_until, lambda: recorded_in(scene.store) >= asked, "recorded", 30)
    used = await asyncio.to_thread(scene.used)
    assert (used["counted"], used["charged"], used["released"], used["places"]) == (asked, COST * asked, COST * asked, 0)
    assert recorded_in(scene.store) == asked
    assert scene.never_settled() == 0
