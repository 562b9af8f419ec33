"""What a request holds while it is in flight is free when it has ended, however it ended."""

import asyncio
import contextlib

import pytest

from gateway.plugin import Answer, Exchange, Plugin, Reject, Settings
from tests.gateways import running_proxy
from tests.wire import Cut, an_upstream, head_of

SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def in_flight(limit, **more):
    return {"name": "rate_limiter", "priority": 10, "settings": {"limit": limit, "unit": "concurrency", **more}}


async def prepared(gateway, upstream, *chain):
    tenant = await gateway.new_tenant()
    await gateway.new_rule(tenant, upstream.url, plugin_chain=list(chain) or [in_flight(2)])
    return tenant


async def slots(stores):
    """The members of every sorted set of slots."""
    client = stores.connection.client
    return [member for key in await client.keys("*:limit:concurrency:*") for member in await client.zrange(key, 0, -1)]


async def freed(stores):
    """Returns when nothing is held any more; settlement runs off the path."""
    async with asyncio.timeout(3):
        while await slots(stores):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Held:
    """An upstream that answers when it is told to."""

    def __init__(self):
        self.may_answer = asyncio.Event()
        self.calls = asyncio.Semaphore(0)

    async def __call__(self, call):
        await call.read_body()
        self.calls.release()
        await self.may_answer.wait()
        await call.answer(200, body=b"done")


async def test_beyond_the_limit_requests_are_refused_until_one_has_ended(gateway):
    held = Held()
    async with an_upstream(held) as upstream:
        tenant = await prepared(gateway, upstream)
        flying = [asyncio.create_task(gateway.ask("GET", "/v1/x", key=tenant.secret)) for _ in range(2)]
        for _ in flying:
            await held.calls.acquire()
        assert len(await slots(gateway.stores)) == 2
        refused = await gateway.ask("GET", "/v1/x", key=tenant.secret)
        assert (refused.status, refused.code, refused.get("retry-after")) == (429, "too_many_concurrent", "1")
        assert {"retry-after-ms", "x-should-retry"}.isdisjoint(refused.names)
        assert refused.get("x-ratelimit-remaining-concurrency") == "0"
        held.may_answer.set()
        replies = await asyncio.gather(*flying)
        assert [reply.status for reply in replies] == [200, 200]
        assert replies[0].get("ratelimit-policy") == '"concurrency";q=2'
        await freed(gateway.stores)
        assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200


async def test_a_client_that_sends_one_after_another_is_never_refused(gateway):
    async with an_upstream() as upstream, gateway.connected() as wire:
        tenant = await prepared(gateway, upstream, in_flight(1))
        for _ in range(50):
            reply = await wire.ask("GET", "/v1/x", gateway.fields(key=tenant.secret))
            assert reply.status == 200
            await freed(gateway.stores)


async def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_place(gateway):
    async def endless(call):
        await call.read_body()
        await call.send(SSE_HEAD)
        await call.send_chunk(b"data: 1\n\n")
        await call.until_gone()

    async with an_upstream(endless) as upstream:
        tenant = await prepared(gateway, upstream)
        async with gateway.connected() as wire:
            await wire.send(head_of("GET", "/v1/x", gateway.fields(key=tenant.secret)))
            await anext(wire.parts(await wire.head()))
            assert len(await slots(gateway.stores)) == 1
        await gateway.idle()
        await freed(gateway.stores)


async def test_a_target_that_cannot_be_reached_or_breaks_off_frees_the_place(gateway):
    async def dying(call):
        await call.read_body()
        await call.send(SSE_HEAD)
        await call.send_chunk(b"data: 1\n\n")
        call.reset()

    async with an_upstream(dying) as upstream:
        tenant = await prepared(gateway, upstream)
        with contextlib.suppress(Cut):
            await gateway.ask("GET", "/v1/x", key=tenant.secret)
        await freed(gateway.stores)
    assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 502
    await freed(gateway.stores)


class Ending(Settings):
    how: str


class Ends(Plugin[Ending]):
    """Ends an exchange."""

    name = "ends"

    async def pre_request(self, exchange: Exchange) -> None:
        if self.settings.how == "answer":
            exchange.answer = Answer(200, body=b"made here")
        elif self.settings.how == "reject":
            raise Reject(403, "no", "no")
        elif self.settings.how == "fail":
            raise ValueError("broken")

    async def post_request(self, exchange: Exchange) -> None:
        if self.settings.how == "reject late":
            raise Reject(403, "no", "no")


@pytest.mark.parametrize("priority", [1, 90])
@pytest.mark.parametrize("how", ["answer", "reject", "fail", "reject late"])
async def test_a_plugin_that_ends_the_exchange_frees_the_place_and_what_was_not_reached_is_not_charged(
    store_url, how, priority
):
    async with running_proxy(store_url, plugins=[Ends]) as gateway, an_upstream() as upstream:
        requests = {"name": "rate_limiter", "priority": 20, "settings": {"limit": 9, "window": "1m"}}
        ending = {"name": "ends", "priority": priority, "settings": {"how": how}}
        tenant = await prepared(gateway, upstream, in_flight(1), requests, ending)
        await gateway.ask("GET", "/v1/x", key=tenant.secret)
        await freed(gateway.stores)
        client = gateway.stores.connection.client
        counted = [await client.llen(key) for key in await client.keys("*:limit:log:*")]
        assert sum(counted) == int(priority == 90 or how == "reject late")


async def test_a_request_that_holds_nothing_keeps_its_charge_when_it_is_settled(gateway):
    async with an_upstream() as upstream:
        limit = {"name": "rate_limiter", "settings": {"limit": 9, "window": "1m", "quota": {"daily": 9}}}
        tenant = await prepared(gateway, upstream, limit)
        assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 200
        await gateway.idle()
        client = gateway.stores.connection.client
        (marker,) = await client.keys("*:req:*")
        async with asyncio.timeout(3):
            while await client.get(marker) != b"S":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        again = await gateway.ask("GET", "/v1/x", key=tenant.secret)
        assert again.get("x-ratelimit-remaining-requests") == "7"


async def test_places_of_requests_that_are_cut_at_shutdown_are_free_when_it_has_stopped(store_url):
    held = Held()
    async with an_upstream(held) as upstream:
        async with running_proxy(store_url, server={"drain_timeout": "100ms"}) as gateway:
            tenant = await prepared(gateway, upstream)
            flying = asyncio.create_task(gateway.ask("GET", "/v1/x", key=tenant.secret))
            await held.calls.acquire()
            assert len(await slots(gateway.stores)) == 1
        await asyncio.gather(flying, return_exceptions=True)
        async with running_proxy(store_url) as other:
            assert await slots(other.stores) == []


async def test_a_request_that_lasts_longer_than_the_lease_keeps_its_place(store_url):
    held = Held()
    limits = {"lease": "1500ms", "renew_every": "200ms"}
    async with running_proxy(store_url, limits=limits) as gateway, an_upstream(held) as upstream:
        tenant = await prepared(gateway, upstream, in_flight(1))
        flying = asyncio.create_task(gateway.ask("GET", "/v1/x", key=tenant.secret))
        await held.calls.acquire()
        for _ in range(20):  # two seconds: longer than a lease
            assert (await gateway.ask("GET", "/v1/x", key=tenant.secret)).code == "too_many_concurrent"
            await asyncio.sleep(0.1)
        held.may_answer.set()
        assert (await flying).status == 200
        await freed(gateway.stores)


async def test_places_of_a_replica_that_died_are_free_within_the_lease(store_url):
    held = Held()
    limits = {"lease": "300ms", "renew_every": "100ms"}
    async with running_proxy(store_url, limits=limits) as gateway, an_upstream(held) as upstream:
        tenant = await prepared(gateway, upstream, in_flight(1))
        flying = asyncio.create_task(gateway.ask("GET", "/v1/x", key=tenant.secret))
        await held.calls.acquire()
        client = gateway.stores.connection.client
        (key,) = await client.keys("*:limit:concurrency:*")
        # as another replica would have left it: nobody here knows the request, so nobody renews or settles it
        held.may_answer.set()
        assert (await flying).status == 200
        await freed(gateway.stores)
        seconds, micros = await client.time()
        await client.zadd(key, {"dead": seconds * 1_000 + micros // 1_000 + 300})
        started = asyncio.get_running_loop().time()
        while (await gateway.ask("GET", "/v1/x", key=tenant.secret)).status == 429:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        # no sooner than the lease; how much later says more about the machine than about us
        assert asyncio.get_running_loop().time() - started > 0.2
