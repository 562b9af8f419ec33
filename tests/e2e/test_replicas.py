"""Two replicas on one real Redis: limits are exact, and what an admin API has answered holds at once on both."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest

from tests.amounts import amount, figure
from tests.e2e.calls import Answer
from tests.e2e.counting import CountingUpstream, counting_upstream
from tests.e2e.processes import HOST, Gateway, a_demo_upstream, a_gateway
from tests.servers import Server, short_directory, valkey_server, wait_until

pytestmark = pytest.mark.real_store

LIMIT, REQUESTS, ROUNDS = 100, 500, amount("GATEWAY_EXACT_ROUNDS", 20)
LIFE_S = 170.0 + 15 * ROUNDS
PATIENT = {
    "LIMITS__MAX_IN_FLIGHT_PER_TENANT": "1000",
    "REDIS__COMMAND_TIMEOUT": "20s",
    "REDIS__CONNECT_TIMEOUT": "20s",
    "REDIS__POOL_WAIT": "20s",
    "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
}
_NUMBERS = itertools.count(1)


@pytest.fixture
async def upstream() -> AsyncIterator[CountingUpstream]:
    async with counting_upstream() as counting:
        yield counting


@dataclass
class Pair:
    """Two replicas, their store, and a demo upstream."""

    replicas: tuple[Gateway, Gateway]
    store: Server
    demo_port: int
    settings: dict[str, str]

    def with_another(self, other: Gateway) -> Pair:
        """The first replica with another second one."""
        return replace(self, replicas=(self.replicas[0], other))

    def tenant(self, target_port: int | None = None, **rule: Any) -> Tenant:
        """A new tenant with one rule for everything, by default to the demo upstream."""
        subdomain = f"t{next(_NUMBERS)}"
        made = self.replicas[0].admin("POST", "/tenants", {"name": subdomain, "subdomain": subdomain}).json
        tenant = Tenant(self, subdomain, made["id"], made["api_key"])
        body = {"path": "/", "target": f"http://{HOST}:{target_port or self.demo_port}"} | rule
        answer = tenant.admin(0, "POST", "/rules", body)
        assert answer.status == 201, answer
        tenant.rule_id = answer.json["id"]
        return tenant

    def limit_keys(self, tenant: Tenant) -> list[bytes]:
        """Where the store keeps the tenant's counts."""
        return [key for key in self.dump() if b":limit:" in key and b"{%s}" % tenant.subdomain.encode() in key]

    def dump(self) -> dict[bytes, tuple[bytes, int]]:
        """Every key of the store, byte for byte, and when it expires."""
        with self.store.admin() as client:
            return {key: (client.dump(key), client.pexpiretime(key)) for key in client.keys("*")}


@dataclass
class Tenant:
    """A tenant of both replicas."""

    pair: Pair
    subdomain: str
    id: str
    key: str
    rule_id: str = ""

    def admin(self, replica: int, method: str, path: str, body: Any = None) -> Answer:
        """A call of a replica's admin API about this tenant."""
        return self.pair.replicas[replica].admin(method, f"/tenants/{self.id}{path}", body, key=self.key)

    def get(self, replica: int, path: str = "/v1/models", **how: Any) -> Answer:
        """A request to a replica's proxy."""
        return self.pair.replicas[replica].proxy("GET", path, tenant=self.subdomain, **({"key": self.key} | how))

    def statuses(self, **how: Any) -> list[int]:
        """What each replica answers now."""
        return [self.get(replica, **how).status for replica in range(len(self.pair.replicas))]

    async def flood(self, requests: int, path: str, replicas: Sequence[Gateway] = ()) -> Counter[int]:
        """So many requests at once, spread over the replicas; how often which status came, 0 for a broken connection."""
        headers = {"Host": f"{self.subdomain}.example.com", "Authorization": f"Bearer {self.key}"}
        urls = [f"http://{HOST}:{replica.proxy_port}{path}" for replica in replicas or self.pair.replicas]
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=90)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:

            async def one(url: str) -> int:
                try:
                    async with session.get(url) as reply:
                        await reply.read()
                        return reply.status
                except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                    return 0

            return Counter(await asyncio.gather(*(one(urls[number % len(urls)]) for number in range(requests))))


def limiter(limit: int, window: str = "1m", **entry: Any) -> dict[str, Any]:
    return {"name": "rate_limiter", "settings": {"limit": limit, "window": window}} | entry


@pytest.fixture(scope="module")
def store() -> Iterator[Server]:
    with valkey_server() as server:
        yield server


@pytest.fixture(scope="module")
def pair(store: Server) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        one, other, third = (stack.enter_context(short_directory()) for _ in range(3))
        settings = {**PATIENT, "REDIS__URL": store.url}
        replicas = (
            stack.enter_context(a_gateway(one, settings=settings, seconds=LIFE_S)),
            stack.enter_context(a_gateway(other, settings=settings, seconds=LIFE_S)),
        )
        yield Pair(replicas, store, stack.enter_context(a_demo_upstream(third, seconds=LIFE_S)), settings)


@pytest.mark.timeout(180 + 15 * ROUNDS)
async def test_a_limit_of_100_lets_exactly_100_of_500_parallel_requests_through_every_time(
    pair: Pair, upstream: CountingUpstream
):
    for number in range(ROUNDS):
        tenant = pair.tenant(upstream.port, plugin_chain=[limiter(LIMIT)])
        answers = await tenant.flood(REQUESTS, f"/{number}")
        assert answers == {200: LIMIT, 429: REQUESTS - LIMIT}
        assert upstream.seen[f"/{number}"] == LIMIT
    assert upstream.seen.total() == ROUNDS * LIMIT
    figure(f"{ROUNDS} times {LIMIT} of {REQUESTS}")


async def test_a_killed_replica_takes_no_more_than_it_was_given_and_the_other_goes_on(pair: Pair, upstream: CountingUpstream):
    with short_directory() as folder, a_gateway(folder, settings=pair.settings) as victim:
        tenant = pair.with_another(victim).tenant(upstream.port, plugin_chain=[limiter(LIMIT, "1h")])
        upstream.hold()
        doomed = asyncio.create_task(tenant.flood(30, "/", [victim]))
        await upstream.has_seen(30)
        flood = asyncio.create_task(tenant.flood(REQUESTS, "/"))
        await upstream.has_seen(60)
        victim.program.kill()
        upstream.let_go()
        assert await doomed == {0: 30}
        answers = await flood
    # everything the survivor was asked has its answer
    assert set(answers) <= {0, 200, 429}
    assert answers[200] + answers[429] >= REQUESTS // 2
    # the limit is spent by now, to the last request; what the dead replica had in hand counts as well
    assert tenant.get(0).status == 429
    (limit_key,) = pair.limit_keys(tenant)
    assert pair.store.command("LLEN", limit_key) == LIMIT
    assert answers[200] + 30 <= upstream.seen["/"] <= LIMIT


def test_a_revoked_key_is_refused_by_the_next_request_on_both_replicas(pair: Pair):
    tenant = pair.tenant()
    for _ in range(5):
        for replica in range(2):
            issued = tenant.admin(replica, "POST", "/api-keys", {"name": "short-lived"}).json
            assert tenant.statuses(key=issued["api_key"]) == [200, 200]
            assert tenant.admin(replica, "DELETE", f"/api-keys/{issued['id']}").status == 204
            assert tenant.statuses(key=issued["api_key"]) == [401, 401]


def test_a_changed_rule_holds_for_the_next_request_on_both_replicas(pair: Pair):
    tenant = pair.tenant()
    for number in range(5):
        for replica in range(2):
            path = f"/v{number}{replica}"
            moved = {"path": path, "target": f"http://{HOST}:{pair.demo_port}/echo", "strip_path": True}
            assert tenant.admin(replica, "PATCH", f"/rules/{tenant.rule_id}", moved).status == 200
            assert tenant.statuses(path=f"{path}/x") == [200, 200]
            assert tenant.get(1 - replica, f"{path}/x").json["path"] == "/echo/x"
            assert tenant.admin(replica, "PATCH", f"/rules/{tenant.rule_id}", {"methods": ["POST"]}).status == 200
            assert tenant.statuses(path=f"{path}/x") == [405, 405]
            assert tenant.admin(replica, "PATCH", f"/rules/{tenant.rule_id}", {"methods": []}).status == 200
    assert tenant.admin(1, "DELETE", f"/rules/{tenant.rule_id}").status == 204
    assert tenant.statuses() == [404, 404]


def test_a_suspended_tenant_is_refused_by_the_next_request_on_both_replicas(pair: Pair):
    tenant = pair.tenant()
    for _ in range(5):
        for replica in range(2):
            assert tenant.statuses() == [200, 200]
            assert tenant.admin(replica, "PATCH", "", {"status": "suspended"}).status == 200
            assert tenant.statuses() == [403, 403]
            assert tenant.admin(replica, "PATCH", "", {"status": "active"}).status == 200
    assert tenant.admin(0, "DELETE", "").status == 204
    assert tenant.statuses() == [404, 404]


def test_a_refused_request_changes_no_key_in_the_store(pair: Pair):
    tenant = pair.tenant(plugin_chain=[limiter(1, "1h")], methods=["GET"])
    assert tenant.get(0).status == 200
    ledger = b"{%s}:usage:" % tenant.subdomain.encode()
    wait_until(lambda: any(ledger in key for key in pair.dump()), "settled")
    before = pair.dump()
    assert any(b":limit:" in key for key in before)
    assert tenant.statuses() == [429, 429]
    assert tenant.statuses(key="gw_unknown") == [401, 401]
    assert tenant.statuses(path="/v1/../v2") == [400, 400]
    after = pair.dump()
    # a marker of an earlier test may have come to its end, and nothing else may differ
    gone = {key for key, (_, end) in before.items() if end > 0} - after.keys()
    assert after == {key: value for key, value in before.items() if key not in gone}
    assert not any(b"{%s}" % tenant.subdomain.encode() in key for key in gone)


async def test_a_request_that_an_earlier_plugin_rejects_uses_nothing_of_a_limit(pair: Pair, upstream: CountingUpstream):
    guard = {"name": "security_validator", "priority": 1, "settings": {"required_headers": ["x-pass"]}}
    tenant = pair.tenant(upstream.port, plugin_chain=[limiter(3, "1h", priority=2), guard])
    first = await asyncio.to_thread(tenant.get, 0, headers=[("x-pass", "1")])
    assert (first.status, first.headers["x-ratelimit-remaining-requests"]) == (200, "2")
    (limit_key,) = pair.limit_keys(tenant)
    used = pair.dump()[limit_key][0]
    rejected = await tenant.flood(40, "/rejected")
    assert (set(rejected), upstream.seen["/rejected"]) == ({400}, 0)
    # what was reserved for them goes back off the path of the request
    await asyncio.to_thread(wait_until, lambda: pair.dump()[limit_key][0] == used, "given back")
    last = [await asyncio.to_thread(tenant.get, replica, headers=[("x-pass", "1")]) for replica in (1, 0, 1)]
    assert [answer.status for answer in last] == [200, 200, 429]


def test_a_replica_that_leaves_lets_the_other_serve(pair: Pair):
    with short_directory() as folder, a_gateway(folder, settings=pair.settings) as leaving:
        tenant = pair.with_another(leaving).tenant(plugin_chain=[limiter(4, "1h")])
        assert tenant.statuses() == [200, 200]
        leaving.program.signal(signal.SIGTERM)
        assert leaving.program.wait() == 0
        assert [tenant.get(0).status for _ in range(3)] == [200, 200, 429]
