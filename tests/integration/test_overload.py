"""A full process, over real sockets: who gets in, who is told to come back, and what goes on answering."""

import asyncio
import contextlib
import time

from gateway import virtual_key
from tests.gateways import running_proxy
from tests.traffic import recorded_in
from tests.wire import an_upstream, eventually

BOUNDS = {"max_in_flight": 8, "max_in_flight_per_tenant": 100}


@contextlib.asynccontextmanager
async def flooded(store_url, count=30, **limits):
    """A gateway in which one tenant, whose target is slow, asks for more than fits; the other one's target is quick."""
    may_answer = asyncio.Event()

    async def slow(call):
        await call.read_body()
        await may_answer.wait()
        await call.answer(200)

    async with (
        running_proxy(store_url, limits={**BOUNDS, **limits}) as gateway,
        an_upstream(slow) as slow_target,
        an_upstream() as quick_target,
    ):
        flood, modest = await gateway.new_tenant("flood"), await gateway.new_tenant("modest")
        await gateway.new_rule(flood, slow_target.url)
        await gateway.new_rule(flood, quick_target.url, "/quick")
        await gateway.new_rule(modest, quick_target.url)
        await gateway.new_rule(modest, slow_target.url, "/slow")
        for tenant, path in ((flood, "/quick"), (modest, "/v1/x")):
            assert (await gateway.ask("GET", path, key=tenant.secret, host=tenant.host)).status == 200
        await gateway.idle()
        asked = [asyncio.create_task(gateway.ask("GET", "/v1/x", key=flood.secret, host=flood.host)) for _ in range(count)]
        await eventually(lambda: sum(map(asyncio.Task.done, asked)) == count - 8)
        await eventually(lambda: len(slow_target.requests) == 8)  # whoever was admitted asks the store no more
        yield gateway, flood, modest
        may_answer.set()
        replies = await asyncio.gather(*asked)
        # what it asked for while it was alone was served up to the bound, the rest refused
        assert sorted(reply.status for reply in replies) == [200] * 8 + [503] * (count - 8)
        await gateway.idle()


async def test_a_tenant_that_floods_a_slow_target_keeps_no_other_tenant_out(store_url):
    async with flooded(store_url) as (gateway, flood, modest):
        for _ in range(20):
            assert (await gateway.ask("GET", "/v1/x", key=modest.secret, host=modest.host)).status == 200
            reply = await gateway.ask("GET", "/quick", key=flood.secret, host=flood.host)
            assert (reply.status, reply.code, reply.get("retry-after")) == (503, "overloaded", "1")
        slow = [asyncio.create_task(gateway.ask("GET", "/slow", key=modest.secret, host=modest.host)) for _ in range(4)]
        await eventually(lambda: gateway.in_flight() == 12)
        # half of the process is its share, and it has that
        reply = await gateway.ask("GET", "/v1/x", key=modest.secret, host=modest.host)
        assert (reply.status, reply.code) == (503, "overloaded")
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        counted = gateway.metrics.exposition()[0].decode()
        assert 'gateway_refusals_total{code="overloaded",tenant="flood"}' in counted


async def test_a_tenant_is_known_by_its_key_on_hosts_that_name_none(store_url):
    async with flooded(store_url) as (gateway, flood, modest):
        assert (await gateway.ask("GET", "/v1/x", key=modest.secret, host="127.0.0.1")).status == 200
        assert (await gateway.ask("GET", "/quick", key=flood.secret, host="127.0.0.1")).code == "overloaded"


async def test_a_full_process_refuses_strangers_and_does_not_ask_the_store_for_them(store_url, valkey_store_server):
    async with flooded(store_url) as (gateway, _, modest):
        await eventually(lambda: recorded_in(valkey_store_server) == 2)  # what was served is settled
        before = valkey_store_server.command("INFO", "commandstats")
        for key in (None, "sk-wrong"):
            for host in ("flood.example.com", "nobody.example.com", "127.0.0.1"):
                assert (await gateway.ask("GET", "/v1/x", key=key, host=host)).code == "overloaded"
        assert calls_of_scripts(valkey_store_server.command("INFO", "commandstats")) == calls_of_scripts(before)
        # a key that may be good has a small chance even then, or a new tenant would be kept out as long as the flood lasts
        newcomer = await gateway.new_tenant("newcomer")
        reply = await gateway.ask("GET", "/v1/x", key=newcomer.secret, host=newcomer.host)
        assert (reply.status, reply.code) == (404, "no_route")
        reply = await gateway.ask("GET", "/v1/x", key=virtual_key.new_secret(), host=modest.host)
        assert (reply.status, reply.code) == (401, "invalid_api_key")


def calls_of_scripts(stats):
    return {name: facts["calls"] for name, facts in stats.items() if "eval" in name or "fcall" in name}


async def test_a_full_process_goes_on_telling_how_it_is(store_url):
    async with flooded(store_url) as (gateway, *_):
        for page in ("/health/live", "/health/ready", "/metrics"):
            assert (await gateway.ask("GET", page, key=None, host="127.0.0.1")).status == 200


async def test_a_refused_upload_is_answered_before_its_body_comes(store_url):
    async with flooded(store_url) as (gateway, flood, _), gateway.connected() as wire:
        fields = [*gateway.fields(key=flood.secret, host=flood.host), ("content-length", str(8 << 20))]
        await wire.send(b"POST /v1/x HTTP/1.1\r\n" + b"".join(f"{n}: {v}\r\n".encode() for n, v in fields) + b"\r\n")
        message = await wire.head()
        assert message.status == 503


async def test_a_loop_that_is_late_again_and_again_sheds_load_until_it_keeps_up(store_url):
    async with running_proxy(store_url, limits={"max_in_flight": 100, "max_loop_lag": "100ms"}) as gateway, an_upstream() as up:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, up.url)

        async def burst():
            asked = (gateway.ask("GET", "/v1/x", key=tenant.secret) for _ in range(40))
            return {reply.status for reply in await asyncio.gather(*asked)}

        def lag_s():
            text = gateway.metrics.exposition()[0].decode()
            return float(text.split("\ngateway_event_loop_lag_seconds ")[1].split()[0])

        async def holds_up():
            while True:
                time.sleep(0.15)  # noqa: ASYNC251 - the loop is what is to stand still
                await asyncio.sleep(0)

        assert await burst() == {200}
        holding = asyncio.create_task(holds_up())
        async with asyncio.timeout(60):
            await eventually(lambda: lag_s() > 0.1, seconds=60)
            while await burst() != {200, 503}:
                continue
            holding.cancel()
            await eventually(lambda: lag_s() < 0.1, seconds=60)
            while await burst() != {200}:
                continue
