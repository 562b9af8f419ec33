"""What a request costs: declared, told by a header, corrected by the reply, recorded in the ledger, and never lost."""

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest

from gateway.plugin import Cost, Limit, LimitSpec, Plugin, Settings, limit_specs
from gateway.store import Keyspace
from tests.gateways import running_proxy
from tests.wire import an_upstream, eventually, head_of


class Bills(Plugin[Settings]):
    """Declares a limit and knows only from the reply what a request has cost."""

    name = "bills"

    def limits(self, scope) -> list[LimitSpec]:
        return limit_specs([Limit(limit=20, window="1m", name="bill", cost=5)], scope.default_per)

    async def pre_response(self, exchange):
        if "x-bill" in exchange.reply.headers:
            exchange.costs["bill"] = int(exchange.reply.headers.get("x-bill"))


def limiter(**settings):
    return {"name": "rate_limiter", "settings": {"limit": 10, "window": "1m", **settings}}


def quota(daily, **settings):
    return {"name": "rate_limiter", "settings": {"quota": {"daily": daily}, **settings}}


def billed(*units):
    """An upstream that says so many units, one after another."""
    told = list(units)

    async def answer(call):
        await call.read_body()
        await call.answer(200, [("x-units", str(told.pop(0)))] if told else [], body=b"{}")

    return answer


async def ledger(gateway, tenant):
    day = datetime.now(UTC).date()
    found = await gateway.stores.connection.client.hgetall(Keyspace(tenant.subdomain).usage(tenant.id, day))
    return {name.decode(): int(value) for name, value in found.items()}


async def budget(gateway):
    (key,) = await gateway.stores.connection.client.keys("*:limit:budget:*")
    return {name.decode(): int(value) for name, value in (await gateway.stores.connection.client.hgetall(key)).items()}


async def settled(gateway):
    await gateway.idle()
    await eventually(lambda: not any("Settler._run" in repr(task.get_coro()) for task in asyncio.all_tasks()))


async def ask(gateway, tenant, **more):
    return await gateway.ask("GET", "/v1/x", key=tenant.secret, **more)


async def test_a_fixed_cost_takes_that_many_units(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(cost=4)])
        replies = [await ask(gateway, tenant) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        assert [reply.get("x-ratelimit-remaining-requests") for reply in replies] == ["6", "2", "2"]


async def test_a_header_tells_the_cost_and_must_be_a_number(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(cost={"header": "X-Cost", "default": 2})])
        assert (await ask(gateway, tenant)).get("x-ratelimit-remaining-requests") == "8"
        for bad in ("0", "-1", "1.5", "many", "", "1e3", "99999999999", "٣"):
            reply = await ask(gateway, tenant, fields=[("x-cost", bad.encode().decode("latin-1"))])
            assert (reply.status, reply.code, reply.error["param"]) == (400, "invalid_header", "x-cost"), bad
        twice = await ask(gateway, tenant, fields=[("x-cost", "1"), ("x-cost", "1")])
        assert twice.status == 400
        assert (await ask(gateway, tenant, fields=[("x-cost", "7")])).get("x-ratelimit-remaining-requests") == "1"
        too_dear = await ask(gateway, tenant, fields=[("x-cost", "11")])
        assert (too_dear.status, too_dear.get("x-should-retry")) == (429, "false")
        assert len(upstream.requests) == 2


@pytest.mark.parametrize(("told", "left"), [("1", 9), ("9", 1), ("0", 10), ("nonsense", 6)])
async def test_the_reply_corrects_the_charge(gateway, told, left):
    async with an_upstream(billed(told)) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(cost={"default": 4, "reply_header": "x-units"})])
        assert (await ask(gateway, tenant)).get("x-units") == told
        await settled(gateway)
        assert (await ask(gateway, tenant)).get("x-ratelimit-remaining-requests") == str(max(left - 4, left if left < 4 else 0))


async def test_a_plugin_corrects_the_charge_of_a_limit_that_it_declares(store_url):
    async def answer(call):
        await call.read_body()
        await call.answer(200, [("x-bill", "1")], body=b"{}")

    async with running_proxy(store_url, plugins=[Bills]) as gateway, an_upstream(answer) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[{"name": "bills"}])
        for left in (15, 14, 13):
            assert (await ask(gateway, tenant)).get("x-ratelimit-remaining-requests") == str(left)
            await settled(gateway)
    assert Cost(5).units == 5


async def test_a_quota_holds_what_a_request_may_cost_until_its_reply_says_it(gateway):
    go = asyncio.Event()

    async def slow(call):
        await call.read_body()
        await go.wait()
        await call.answer(200, [("x-units", "30")], body=b"{}")

    async with an_upstream(slow) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[quota(100, cost={"default": 60, "reply_header": "x-units"})])
        flying = asyncio.create_task(ask(gateway, tenant))
        await eventually(lambda: len(upstream.requests) == 1)
        assert (await budget(gateway)).items() >= {"spent": 0, "held": 60}.items()
        refused = await ask(gateway, tenant)
        assert (refused.status, refused.code, refused.get("retry-after")) == (429, "budget_exceeded", "1")
        assert "retry-after-ms" not in refused.names
        go.set()
        assert (await flying).status == 200
        await settled(gateway)
        found = await budget(gateway)
        assert (found["spent"], found["held"], len(found)) == (30, 0, 3)
        assert (await ask(gateway, tenant)).status == 200


async def test_a_client_that_leaves_and_a_target_that_dies_settle_the_hold_too(gateway):
    async def stalling(call):
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\nx-units: 7\r\ntransfer-encoding: chunked\r\n\r\n")
        await call.send_chunk(b"data: 1\n\n")
        if b"die" in call.path.encode():
            return  # and the connection is closed
        await call.until_gone()

    async with an_upstream(stalling) as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[quota(100, cost={"default": 60, "reply_header": "x-units"})])
        async with gateway.connected() as wire:
            await wire.send(head_of("GET", "/v1/x", gateway.fields(key=tenant.secret)))
            await anext(wire.parts(await wire.head()))
        await settled(gateway)
        assert (await budget(gateway))["spent"] == 7
        with contextlib.suppress(Exception):
            await gateway.ask("GET", "/v1/die", key=tenant.secret)
        await settled(gateway)
        assert (await budget(gateway)).items() >= {"spent": 14, "held": 0}.items()


async def test_limits_of_the_tenant_hold_over_all_rules_and_before_any_plugin(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant(limits=[{"limit": 3, "window": "1m", "name": "whole"}])
        for path in ("/v1", "/v2"):
            await gateway.new_rule(tenant, upstream.url, path=path, plugin_chain=[limiter()])
        paths = ["/v1/a", "/v2/a", "/v1/b", "/v2/b"]
        replies = [await gateway.ask("GET", path, key=tenant.secret) for path in paths]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        (refusing,) = replies[-1].error["limits"]
        assert (refusing["name"], refusing["level"], refusing["used"]) == ("whole", ["tenant"], 3)


async def test_a_request_that_a_later_plugin_refuses_leaves_no_marker_in_flight(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        refusing = {"name": "security_validator", "priority": 900, "settings": {"required_headers": ["x-never"]}}
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(), refusing])
        assert (await ask(gateway, tenant)).status == 400
        await settled(gateway)
        client = gateway.stores.connection.client
        assert [await client.get(key) for key in await client.keys("*:req:*")] == [b"S"]
        assert await ledger(gateway, tenant) == {}
        assert (await ask(gateway, tenant)).get("x-ratelimit-remaining-requests") == "8"


# The ledger


async def test_every_request_that_is_served_is_in_the_ledger_and_no_other(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        rule = await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(limit=2)])
        plain = await gateway.new_rule(tenant, upstream.url, path="/plain")
        for _ in range(4):
            await gateway.ask("POST", "/v1/x", key=tenant.secret, body=b'{"model": "gpt-4o", "messages": []}')
        for _ in range(3):
            await gateway.ask("GET", "/plain", key=tenant.secret)
        await gateway.ask("GET", "/nowhere", key=tenant.secret)
        await settled(gateway)
        expected = {f"r:{tenant.key_id}:{rule}:gpt-4o": 2, f"r:{tenant.key_id}:{plain}:": 3}
        assert await ledger(gateway, tenant) == expected
        assert len(upstream.requests) == 5


async def test_a_lost_quota_goes_on_where_the_ledger_says_it_was(gateway):
    async with an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[quota(5, per=["api_key"])])
        await gateway.new_rule(tenant, upstream.url, path="/other")
        for path in ("/v1/x", "/v1/x", "/v1/x", "/other"):
            assert (await gateway.ask("GET", path, key=tenant.secret)).status == 200
        await settled(gateway)
        client = gateway.stores.connection.client
        await client.delete(*await client.keys("*:limit:budget:*"))
        statuses = [(await ask(gateway, tenant)).status for _ in range(3)]
        assert statuses == [200, 200, 429]
