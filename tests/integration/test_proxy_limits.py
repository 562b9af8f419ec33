"""Limits through the served proxy: exact, at their place, and never counted for what was not let through."""

import asyncio

import pytest

from gateway.errors import StoreUnavailable
from gateway.plugin import Limit as DeclaredLimit
from gateway.plugin import LimitSpec, Plugin, Reject, Settings, limit_specs
from tests.gateways import running_proxy
from tests.stores import dump
from tests.wire import an_upstream, eventually


class Refuses(Plugin[Settings]):
    """Rejects every request with the header x-refuse."""

    name = "refuses"

    async def pre_request(self, exchange):
        if "x-refuse" in exchange.request.headers:
            raise Reject(418, "refused", "refused")


class Declares(Plugin[Settings]):
    """Declares a limit, and rejects like the other."""

    name = "declares"

    async def pre_request(self, exchange):
        if "x-refuse" in exchange.request.headers:
            raise Reject(418, "refused", "refused")

    def limits(self, scope) -> list[LimitSpec]:
        return limit_specs([DeclaredLimit(limit=2, window="1m", name="declared")], scope.default_per)


def limiter(limit=2, priority=100, **settings):
    return {"name": "rate_limiter", "priority": priority, "settings": {"limit": limit, "window": "1m", **settings}}


@pytest.fixture
async def served(store_url):
    async with running_proxy(store_url, plugins=[Refuses, Declares]) as gateway, an_upstream() as upstream:
        yield gateway, await gateway.new_tenant(), upstream


async def statuses(gateway, tenant, count, path="/v1/x", **given):
    given = {"key": tenant.secret, "host": tenant.host} | given
    return [(await gateway.ask("GET", path, **given)).status for _ in range(count)]


async def settled(gateway):
    """What is given back in the background has been given back."""
    await gateway.idle()
    await eventually(lambda: not any("Settler._run" in repr(task.get_coro()) for task in asyncio.all_tasks()))


async def remaining(gateway, tenant, path="/v1/x", **given):
    return (await gateway.ask("GET", path, key=tenant.secret, **given)).get("x-ratelimit-remaining-requests")


async def test_exactly_the_limit_passes_and_the_rest_is_told_when_to_come_back(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(3)])
    replies = await asyncio.gather(*(gateway.ask("GET", "/v1/x", key=tenant.secret) for _ in range(20)))
    passed = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    assert (len(passed), len(refused), len(upstream.requests)) == (3, 17, 3)
    assert sorted(reply.get("x-ratelimit-remaining-requests") for reply in passed) == ["0", "1", "2"]
    assert {reply.get("x-ratelimit-limit-requests") for reply in replies} == {"3"}
    for reply in refused:
        wait_ms = int(reply.get("retry-after-ms"))
        assert 0 < wait_ms <= 60_000
        assert int(reply.get("retry-after")) == -(-wait_ms // 1_000)
        assert reply.get("x-should-retry") is None
        assert reply.get("ratelimit-policy") == '"requests-per-1m";q=3;w=60'
        assert reply.get("ratelimit").startswith('"requests-per-1m";r=0;t=')
        (limit,) = reply.error["limits"]
        assert (reply.code, reply.error["type"]) == ("rate_limited", "rate_limit_error")
        assert limit == {
            "name": "requests-per-1m",
            "level": ["rule"],
            "unit": "requests",
            "limit": 3,
            "used": 3,
            "remaining": 0,
            "retry_after_ms": wait_ms,
        }


TOLD = {
    "draft-10": {"ratelimit-policy": '"requests-per-1m";q=2;w=60', "ratelimit": '"requests-per-1m";r={left};t={wait}'},
    "draft-7": {"ratelimit-policy": "2;w=60", "ratelimit": "limit=2, remaining={left}, reset={wait}"},
    "draft-6": {
        "ratelimit-policy": "2;w=60",
        "ratelimit-limit": "2",
        "ratelimit-remaining": "{left}",
        "ratelimit-reset": "{wait}",
    },
    "off": {},
}


@pytest.mark.parametrize("dialect", TOLD)
async def test_limits_are_told_in_the_dialect_of_the_configuration_on_success_and_refusal(store_url, dialect):
    async with running_proxy(store_url, limits={"ratelimit_headers": dialect}) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(2)])
        replies = [await gateway.ask("GET", "/v1/x", key=tenant.secret) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        for reply, left in zip(replies, (1, 0, 0), strict=True):
            assert (reply.get("x-ratelimit-limit-requests"), reply.get("x-ratelimit-remaining-requests")) == ("2", str(left))
            told = {name: value for name, value in reply.fields if name.startswith("ratelimit")}
            wait = reply.get("retry-after") or "60"
            assert told == {name: shape.format(left=left, wait=wait) for name, shape in TOLD[dialect].items()}


async def test_a_refused_request_changes_no_key(served):
    gateway, tenant, upstream = served
    chain = [limiter(1), {"name": "rate_limiter", "settings": {"quota": {"daily": 10}, "limit": 9, "window": "1h", "burst": 9}}]
    await gateway.new_rule(tenant, upstream.url, plugin_chain=chain)
    assert await statuses(gateway, tenant, 1) == [200]
    before = await dump(gateway.stores.connection)
    assert await statuses(gateway, tenant, 5) == [429] * 5
    await settled(gateway)
    assert await dump(gateway.stores.connection) == before


async def test_what_an_earlier_plugin_rejects_consumes_nothing(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[{"name": "refuses", "priority": 1}, limiter(2, 2)])
    assert await statuses(gateway, tenant, 5, fields={"x-refuse": "1"}) == [418] * 5
    await settled(gateway)
    assert await statuses(gateway, tenant, 3) == [200, 200, 429]
    # its place comes before that of the limit, also when that is spent
    reply = await gateway.ask("GET", "/v1/x", key=tenant.secret, fields={"x-refuse": "1"})
    assert reply.status == 418
    assert reply.get("x-ratelimit-limit-requests") is None


async def test_what_a_later_plugin_rejects_counts(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(2, 1), {"name": "refuses", "priority": 2}])
    assert await statuses(gateway, tenant, 3, fields={"x-refuse": "1"}) == [418, 418, 429]
    assert upstream.connections == 0


async def test_what_a_plugin_with_limits_rejects_itself_counts_for_them(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[{"name": "declares"}])
    assert await statuses(gateway, tenant, 2, fields={"x-refuse": "1"}) == [418, 418]
    await settled(gateway)
    assert await statuses(gateway, tenant, 1) == [429]


async def test_only_limits_that_stand_behind_the_rejection_are_given_back(served):
    gateway, tenant, upstream = served
    chain = [limiter(10, 1, name="before"), {"name": "refuses", "priority": 2}, limiter(10, 3, name="behind", window="1h")]
    await gateway.new_rule(tenant, upstream.url, plugin_chain=chain)
    for _ in range(4):
        reply = await gateway.ask("GET", "/v1/x", key=tenant.secret, fields={"x-refuse": "1"})
        assert reply.get("ratelimit-policy") == '"before";q=10;w=60'
    await settled(gateway)
    reply = await gateway.ask("GET", "/v1/x", key=tenant.secret)
    assert reply.get("ratelimit").startswith('"before";r=5;')


async def test_what_the_upstream_answers_or_fails_to_counts_all_the_same(served):
    gateway, tenant, _ = served
    await gateway.new_rule(tenant, "http://127.0.0.1:1", plugin_chain=[limiter(2)])
    assert await statuses(gateway, tenant, 3) == [502, 502, 429]


async def test_what_finds_no_rule_or_method_or_permission_consumes_nothing(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, methods=["GET"], plugin_chain=[limiter(1)])
    await gateway.change_tenant(tenant, required_plugins={"rate_limiter": {"settings": {"limit": 1, "window": "1m"}}})
    assert await statuses(gateway, tenant, 3, "/nowhere") == [404] * 3
    assert (await gateway.ask("POST", "/v1/x", key=tenant.secret)).status == 405
    key = await gateway.new_key(tenant, allowed_networks=["10.0.0.0/8"])
    assert (await gateway.ask("GET", "/v1/x", key=key)).status == 403
    assert await statuses(gateway, tenant, 2) == [200, 429]


async def test_a_required_limit_counts_for_all_rules_and_a_rule_s_own_for_itself(served):
    gateway, tenant, upstream = served
    for path in ("/a", "/b"):
        await gateway.new_rule(tenant, upstream.url, path, plugin_chain=[limiter(2)])
    await gateway.change_tenant(tenant, required_plugins={"rate_limiter": {"settings": {"limit": 3, "window": "1h"}}})
    assert await statuses(gateway, tenant, 3, "/a") == [200, 200, 429]
    assert await statuses(gateway, tenant, 2, "/b") == [200, 429]
    other = await gateway.new_tenant("other")
    await gateway.new_rule(other, upstream.url, "/a", plugin_chain=[limiter(2)])
    assert await statuses(gateway, other, 3, "/a") == [200, 200, 429]


async def test_a_key_s_own_limits_count_for_the_key_alone_and_before_every_plugin(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[{"name": "refuses"}])
    limited = await gateway.new_key(tenant, limits=[{"limit": 1, "window": "1m", "name": "mine"}])
    assert await statuses(gateway, tenant, 2, key=limited) == [200, 429]
    assert await statuses(gateway, tenant, 1, key=limited, fields={"x-refuse": "1"}) == [429]
    assert await statuses(gateway, tenant, 3) == [200] * 3


async def test_two_equal_limits_in_a_chain_are_two_and_any_plugin_may_declare_one(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(5), limiter(5), {"name": "declares"}])
    assert await statuses(gateway, tenant, 3) == [200, 200, 429]
    limits = [name for name in await dump(gateway.stores.connection) if b":limit:" in name]
    assert len(limits) == 3


@pytest.mark.parametrize(
    ("per", "same", "different"),
    [
        (["header:x-user"], {"fields": {"x-user": "a"}}, {"fields": {"x-user": "b"}}),
        (["method"], {"method": "GET"}, {"method": "PUT"}),
        (["model"], {"body": b'{"model": "a"}', "method": "POST"}, {"body": b'{"model": "b"}', "method": "POST"}),
        (["ip"], {"fields": {"x-forwarded-for": "1.2.3.4"}}, {"fields": {"x-forwarded-for": "1.2.3.5"}}),
        (["ip"], {"fields": {"x-forwarded-for": "2001:db8::1"}}, {"fields": {"x-forwarded-for": "2001:db8:0:1::1"}}),
    ],
)
async def test_a_limit_counts_per_what_it_says(store_url, per, same, different):
    async with running_proxy(store_url, server={"trusted_proxies": "127.0.0.1"}) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(1, per=per)])

        async def ask(given):
            given = dict(given)
            return (await gateway.ask(given.pop("method", "GET"), "/v1/x", key=tenant.secret, **given)).status

        assert [await ask(same), await ask(same), await ask(different), await ask(different)] == [200, 429, 200, 429]
        # what a client chooses is in no name of a key
        names = b" ".join(await dump(gateway.stores.connection))
        assert b"1.2.3.4" not in names
        assert b"2001:db8" not in names


async def test_addresses_of_one_subscriber_count_together(store_url):
    async with running_proxy(store_url, server={"trusted_proxies": "127.0.0.1"}) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(1, per=["ip"])])
        for address, status in (("2001:db8::1", 200), ("2001:db8::ffff", 429), ("::ffff:1.2.3.4", 200), ("1.2.3.4", 429)):
            assert (await gateway.ask("GET", "/v1/x", key=tenant.secret, fields={"x-forwarded-for": address})).status == status


async def test_a_shadow_limit_reports_to_nobody_and_refuses_nobody(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(1, shadow=True)])
    reply = [await gateway.ask("GET", "/v1/x", key=tenant.secret) for _ in range(3)][-1]
    assert reply.status == 200
    assert reply.get("x-ratelimit-limit-requests") is None


async def test_a_spent_quota_says_so(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[{"name": "rate_limiter", "settings": {"quota": {"monthly": 1}}}])
    assert await statuses(gateway, tenant, 1) == [200]
    reply = await gateway.ask("GET", "/v1/x", key=tenant.secret)
    assert (reply.status, reply.code) == (429, "budget_exceeded")
    assert int(reply.get("retry-after-ms")) > 0


async def test_an_admission_whose_reply_is_lost_is_cancelled_under_the_same_id(served):
    gateway, tenant, upstream = served
    await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(5)])
    assert await remaining(gateway, tenant) == "4"
    runner = gateway.stores.runner
    real, each, calls = runner.call, runner.call_each, []

    async def losing(name, keys, arguments):
        reply = await real(name, keys, arguments)
        calls.append((name, keys))
        if name == "admit":
            raise StoreUnavailable
        return reply

    async def noting(name, many):
        calls.extend((name, keys) for keys, _ in many)
        return await each(name, many)

    runner.call, runner.call_each = losing, noting
    try:
        reply = await gateway.ask("GET", "/v1/x", key=tenant.secret)
        assert (reply.status, reply.code, reply.get("retry-after")) == (503, "store_unavailable", "1")
        await settled(gateway)
    finally:
        runner.call, runner.call_each = real, each
    (admit, admit_keys), (settle, settle_keys) = calls
    assert (admit, settle) == ("admit", "settle")
    assert admit_keys[3] == settle_keys[1]
    assert await remaining(gateway, tenant) == "3"
    assert len(upstream.requests) == 2


async def test_a_store_that_does_not_answer_is_503_and_nothing_is_forwarded(valkey_store_server, store_url):
    redis = {"command_timeout": 200, "connect_timeout": 200, "pool_wait": 100}
    async with running_proxy(store_url, redis=redis) as gateway, an_upstream() as upstream:
        tenant = await gateway.new_tenant()
        await gateway.new_rule(tenant, upstream.url)
        assert await statuses(gateway, tenant, 1) == [200]
        with valkey_store_server.hung():
            reply = await gateway.ask("GET", "/v1/x", key=tenant.secret)
            assert (reply.status, reply.code, reply.get("retry-after")) == (503, "store_unavailable", "1")
            reply = await gateway.ask("GET", "/v1/x", key=None)
            assert reply.status == 503
        assert len(upstream.requests) == 1
        replies = [status for _ in range(40) for status in await statuses(gateway, tenant, 1)]
        assert replies[-1] == 200


# How much a replica takes on


async def test_a_tenant_at_its_bound_is_refused_at_once_and_others_are_not(store_url):
    may_answer = asyncio.Event()

    async def slow(call):
        if call.request.target == "/v1/slow":
            await may_answer.wait()
        await call.answer(200)

    bounds = {"max_in_flight": 4, "max_in_flight_per_tenant": 2}
    async with running_proxy(store_url, limits=bounds) as gateway, an_upstream(slow) as upstream:
        one, two = await gateway.new_tenant("one"), await gateway.new_tenant("two")
        for tenant in (one, two):
            await gateway.new_rule(tenant, upstream.url, plugin_chain=[limiter(10)])
        running = [asyncio.create_task(gateway.ask("GET", "/v1/slow", key=one.secret, host=one.host)) for _ in range(2)]
        await eventually(lambda: len(upstream.requests) == 2)
        reply = await gateway.ask("GET", "/v1/x", key=one.secret, host=one.host)
        assert (reply.status, reply.code, reply.get("retry-after")) == (503, "overloaded", "1")
        assert await statuses(gateway, two, 2) == [200, 200]
        # on a host that names nobody the key's tenant is the same tenant
        assert (await gateway.ask("GET", "/v1/x", key=one.secret, host="127.0.0.1")).code == "overloaded"
        more = [asyncio.create_task(gateway.ask("GET", "/v1/slow", key=two.secret, host=two.host)) for _ in range(2)]
        await eventually(lambda: gateway.in_flight() == 4)
        reply = await gateway.ask("GET", "/v1/x", key=None, host="three.example.com")
        assert (reply.status, reply.code) == (503, "overloaded")
        may_answer.set()
        assert [reply.status for reply in await asyncio.gather(*running, *more)] == [200] * 4
        await gateway.idle()
        # what was refused for want of room was not counted
        reply = await gateway.ask("GET", "/v1/x", key=one.secret, host=one.host)
        assert (reply.status, reply.get("x-ratelimit-remaining-requests")) == (200, "7")
