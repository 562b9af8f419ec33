"""Thresholds of limits: a header, a count, and one webhook for each, whatever the number of replicas and of requests."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import time
from collections import Counter
from datetime import UTC, datetime

import aiohttp
import pytest
import stamina

from tests.demo import ASK, a_demo_upstream
from tests.gateways import running_proxy
from tests.wire import an_upstream, eventually

KEY = os.urandom(32)
SECRET = "whsec_" + base64.b64encode(KEY).decode()
QUOTA = 40
AT = [0.5, 0.8, 1.0]


class Receiver:
    """Takes webhooks, or answers the next ones as it is told."""

    def __init__(self):
        self.url = ""
        self.statuses = []
        self.headers = {}
        self.answers = True
        self.taken = []
        self.seen = []

    async def __call__(self, call):
        body = await call.read_body()
        self.seen.append((call.request, body))
        if not self.answers:
            await call.until_gone()
            return
        status = self.statuses.pop(0) if self.statuses else 204
        if status < 300:
            self.taken.append(json.loads(body))
        await call.answer(status, self.headers)

    @property
    def at(self):
        return Counter(event["at"] for event in self.taken)


@contextlib.asynccontextmanager
async def a_receiver():
    receiver = Receiver()
    async with an_upstream(receiver) as server:
        receiver.url = f"{server.url}/hooks/budget"
        yield receiver


def wanted(receiver, **more):
    return {"webhook_url": receiver.url, "webhook_secret": SECRET} | more


def limiter(quota=QUOTA, **more):
    return {"name": "rate_limiter", "settings": {"quota": {"daily": quota}, "alert_at": AT, **more}}


def verified(request, body, key=KEY):
    """As a receiver does it by the specification."""
    timestamp, event_id = request.get("webhook-timestamp"), request.get("webhook-id")
    assert abs(time.time() - int(timestamp)) < 60
    expected = hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    version, _, signed = request.get("webhook-signature").partition(",")
    assert version == "v1"
    return hmac.compare_digest(base64.b64decode(signed), expected) and json.loads(body)["id"] == event_id


def counted(*gateways):
    return sum(
        sample.value
        for gateway in gateways
        for metric in gateway.metrics.alerts.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


async def ask(gateway, tenant, **more):
    return await gateway.ask("GET", "/v1/models", key=tenant.secret, host=tenant.host, **more)


async def alert_keys(gateway):
    client = gateway.stores.connection.client
    return {key.decode(): await client.get(key) for key in await client.keys("*:alert:*")}


def cancel_background():
    """What a replica was doing off the path of requests is never finished."""
    for task in asyncio.all_tasks():
        if "Background._logged" in repr(task.get_coro()):
            task.cancel()


async def test_two_replicas_and_many_requests_at_once_send_one_webhook_for_each_threshold(store_url):
    async with (
        a_receiver() as receiver,
        an_upstream() as upstream,
        running_proxy(store_url, alerts=wanted(receiver)) as one,
        running_proxy(store_url, alerts=wanted(receiver)) as two,
        aiohttp.ClientSession() as session,
    ):
        tenant = await one.new_tenant()
        rule = await one.new_rule(tenant, upstream.url, plugin_chain=[limiter()])
        fields = {"host": tenant.host, "authorization": f"Bearer {tenant.secret}"}

        async def asked(gateway):
            async with session.get(f"{gateway.url}/v1/models", headers=fields) as reply:
                return reply.status, reply.headers.get("x-gateway-alert")

        replies = await asyncio.gather(*(asked(gateway) for _ in range(QUOTA) for gateway in (one, two)))
        assert Counter(status for status, _ in replies) == {200: QUOTA, 429: QUOTA}
        name = "requests-per-day"
        assert Counter(told for status, told in replies if status == 200) == {
            None: 19, f"{name};at=0.5": 12, f"{name};at=0.8": 8, f"{name};at=1.0": 1,
        }  # fmt: skip
        assert {told for status, told in replies if status == 429} == {f"{name};at=1.0"}
        await eventually(lambda: len(receiver.taken) == 3)
        for gateway in (one, two):  # what they found taken they have not forgotten
            assert (await asked(gateway))[1] == f"{name};at=1.0"
        await asyncio.sleep(0.2)
        assert receiver.at == dict.fromkeys(AT, 1)
        assert counted(one, two) == 3
        assert all(verified(request, body) for request, body in receiver.seen)
        request, _ = receiver.seen[0]
        assert (request.target, request.get("content-type")) == ("/hooks/budget", "application/json")
        event = next(event for event in receiver.taken if event["at"] == 0.5)
        assert event["used"] >= 20
        now = datetime.now(UTC)
        assert event | {"used": 20, "created_at": "", "period_end": event["period_end"][:19]} == {
            "id": event["id"],
            "type": "limit.threshold_reached",
            "created_at": "",
            "tenant_id": tenant.id,
            "subdomain": tenant.subdomain,
            "limit": name,
            "level": {"rule": rule},
            "unit": "requests",
            "at": 0.5,
            "amount": QUOTA,
            "used": 20,
            "period": "day",
            "period_end": datetime.fromtimestamp((now.timestamp() // 86400 + 1) * 86400, UTC).isoformat()[:19],
        }
        keys = await alert_keys(one)
        assert Counter(keys.values()) == {b"sent": 3, b"1": 3}
        assert {key.partition("}")[0] for key in keys} == {f"gw:{{{tenant.subdomain}}}"[:-1]}
        left = {await one.stores.connection.client.pttl(key) for key in keys}
        until_midnight = (1 - time.time() % 86400 / 86400) * 86_400_000
        assert all(until_midnight < ttl < until_midnight + 3_600_000 + 1_000 for ttl in left)


async def test_a_limit_without_thresholds_asks_the_store_nothing(store_url):
    async with a_receiver() as receiver, an_upstream() as upstream, running_proxy(store_url, alerts=wanted(receiver)) as one:
        tenant = await one.new_tenant()
        settings = {"quota": {"daily": 1}}
        await one.new_rule(tenant, upstream.url, plugin_chain=[{"name": "rate_limiter", "settings": settings}])
        for status in (200, 429):
            reply = await ask(one, tenant)
            assert (reply.status, reply.get("x-gateway-alert")) == (status, None)
        assert await alert_keys(one) == {}
        assert receiver.seen == []


async def test_a_webhook_that_is_not_taken_is_sent_again_under_the_same_id(store_url):
    async with a_receiver() as receiver, an_upstream() as upstream, running_proxy(store_url, alerts=wanted(receiver)) as one:
        tenant = await one.new_tenant()
        await one.new_rule(tenant, upstream.url, plugin_chain=[limiter(1, alert_at=[1])])
        receiver.statuses = [500, 429]
        with stamina.set_testing(True, attempts=5):
            await ask(one, tenant)
            await eventually(lambda: receiver.taken)
        assert len(receiver.seen) == 3
        assert len({request.get("webhook-id") for request, _ in receiver.seen}) == 1
        assert all(verified(request, body) for request, body in receiver.seen)
        assert "gateway_undelivered_alerts_total{" not in str(one.series())


async def test_a_receiver_that_asks_for_a_pause_gets_it(store_url):
    async with a_receiver() as receiver, an_upstream() as upstream, running_proxy(store_url, alerts=wanted(receiver)) as one:
        tenant = await one.new_tenant()
        await one.new_rule(tenant, upstream.url, plugin_chain=[limiter(1, alert_at=[1])])
        receiver.statuses, receiver.headers = [503], {"retry-after": "1"}
        await ask(one, tenant)
        began = time.monotonic()
        await eventually(lambda: receiver.taken)
        assert 0.9 < time.monotonic() - began < 3


@pytest.mark.parametrize(("answer", "tries"), [(400, 1), (302, 1), (500, 3), (None, 3)])
async def test_what_nobody_takes_is_given_up_with_one_line_and_tried_again_much_later(store_url, caplog, answer, tries):
    async with a_receiver() as receiver, an_upstream() as upstream:
        receiver.statuses = [] if answer is None else [answer] * 3
        receiver.headers = {"location": "http://127.0.0.1:1/"} if answer == 302 else {}
        url = receiver.url if answer is not None else "http://127.0.0.1:1/"
        async with running_proxy(store_url, alerts=wanted(receiver, webhook_url=url)) as one:
            tenant = await one.new_tenant()
            await one.new_rule(tenant, upstream.url, plugin_chain=[limiter(1, alert_at=[1])])
            with caplog.at_level(logging.ERROR), stamina.set_testing(True, attempts=3):
                assert (await ask(one, tenant)).status == 200
                await eventually(lambda: "gateway_undelivered_alerts_total" in str(one.series()))
                for _ in range(3):
                    assert (await ask(one, tenant)).get("x-gateway-alert") == "requests-per-day;at=1.0"
                await asyncio.sleep(0.1)
            (line,) = [record.getMessage() for record in caplog.records if "alert" in record.getMessage()]
            assert f"1.0 of limit requests-per-day of tenant {tenant.id} was not delivered" in line
            assert ("upstream_unreachable" if answer is None else f"it answered {answer}") in line
            assert "/hooks" not in line
            assert len(receiver.seen) == (0 if answer is None else tries)
            assert counted(one) == 1
            (key,) = [key for key, value in (await alert_keys(one)).items() if value == b"given_up"]
            assert 3_590_000 < await one.stores.connection.client.pttl(key) <= 3_600_000


async def test_a_replica_that_dies_before_it_has_sent_leaves_it_to_another_after_its_lease(store_url):
    """No further request is needed: who found it taken asks again when the lease ends."""
    async with a_receiver() as receiver, an_upstream() as upstream, running_proxy(store_url, alerts=wanted(receiver)) as one:
        tenant = await one.new_tenant()
        await one.new_rule(tenant, upstream.url, plugin_chain=[limiter(2, alert_at=[0.5])])
        async with running_proxy(store_url, alerts=wanted(receiver, timeout="60s")) as dying:
            receiver.answers = False
            await ask(dying, tenant)
            await eventually(lambda: receiver.seen)
            cancel_background()
        receiver.answers = True
        (claimed,) = [key for key, value in (await alert_keys(one)).items() if value not in (b"1", b"sent")]
        client = one.stores.connection.client
        assert 60_000 < await client.pttl(claimed) <= 60_000 + 35_000
        await client.pexpire(claimed, 400)  # as if the rest of it had passed
        began = time.monotonic()
        assert (await ask(one, tenant)).get("x-gateway-alert") == "requests-per-day;at=0.5"
        await asyncio.sleep(0.1)
        assert receiver.taken == []
        await eventually(lambda: receiver.taken)
        assert time.monotonic() - began > 0.3
        assert receiver.at == {0.5: 1}
        assert len({request.get("webhook-id") for request, _ in receiver.seen}) == 1
        assert counted(one) == 0  # the other one had


async def test_one_that_waits_for_another_s_lease_does_not_hold_up_the_shutdown(store_url):
    async with a_receiver() as receiver, an_upstream() as upstream:
        receiver.answers = False
        async with running_proxy(store_url, alerts=wanted(receiver)) as dying:
            tenant = await dying.new_tenant()
            await dying.new_rule(tenant, upstream.url, plugin_chain=[limiter(2, alert_at=[0.5])])
            await ask(dying, tenant)
            await eventually(lambda: receiver.seen)
            cancel_background()
        async with running_proxy(store_url, alerts=wanted(receiver)) as waiting:
            await ask(waiting, tenant)
            await asyncio.sleep(0.1)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        assert len(receiver.seen) == 1


@pytest.mark.parametrize("shadow", [False, True])
async def test_tokens_and_dollars_count_what_is_held_and_shadow_limits_tell_it_too(store_url, shadow):
    prices = {"*": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}
    async with a_receiver() as receiver, a_demo_upstream() as demo, running_proxy(store_url, alerts=wanted(receiver)) as one:
        tenant = await one.new_tenant(
            limits=[{"quota": {"monthly": 100}, "unit": "tokens", "alert_at": [0.5], "shadow": shadow}]
        )
        limits = [{"unit": "usd", "quota": {"daily": 0.001}, "alert_at": [0.2], "shadow": shadow, "per": ["model", "ip"]}]
        await one.new_rule(tenant, demo, plugin_chain=[{"name": "rate_limiter", "settings": {"limits": limits}}], prices=prices)
        body = json.dumps(ASK | {"max_tokens": 100}).encode()

        async def asked():
            return await one.ask(
                "POST", "/v1/chat/completions", key=tenant.secret, fields={"content-type": "application/json"}, body=body
            )

        first = await asked()  # 109 tokens at most are more than there are: never, whatever was used
        assert (first.status, first.get("x-gateway-alert")) == (
            200 if shadow else 429,
            "usd-per-day;at=0.2" if shadow else None,
        )
        if not shadow:
            await asyncio.sleep(0.1)
            assert receiver.seen == []
            return
        await eventually(lambda: receiver.taken)
        (event,) = receiver.taken
        assert event["amount"] == 0.001
        assert 0.0002 <= event["used"] < 0.00035  # held: 100 tokens of output, and some of input
        assert (event["unit"], event["level"]["model"]) == ("usd", "demo-small")
        digest = hmac.new(KEY, f"{tenant.id}\0ip\x00127.0.0.1".encode(), hashlib.sha256).hexdigest()
        assert event["level"]["ip"] == f"hmac:{digest[:32]}"
        assert "127.0.0.1" not in json.dumps(event)


async def test_every_level_has_alerts_and_a_header_lists_them(store_url):
    quota = {"quota": {"daily": 2}}
    async with an_upstream() as upstream, running_proxy(store_url) as one:
        tenant = await one.new_tenant(
            limits=[quota | {"alert_at": [1], "name": "of-tenant"}],
            key={"limits": [quota | {"alert_at": [0.5, 1], "name": "of-key"}]},
        )
        chain = [limiter(2, name="of-rule", alert_at=[0.5])]
        await one.new_rule(tenant, upstream.url, plugin_chain=chain)
        assert (await ask(one, tenant)).get("x-gateway-alert") == "of-key-per-day;at=0.5, of-rule-per-day;at=0.5"
        assert (await ask(one, tenant)).get("x-gateway-alert") == (
            "of-key-per-day;at=1.0, of-tenant-per-day;at=1.0, of-rule-per-day;at=0.5"
        )
        await eventually(lambda: counted(one) == 4)
        series = 'gateway_limit_alerts_total{at="0.5",limit="of-key-per-day",tenant="testcompany"}'
        await eventually(lambda: series in one.series())
        assert set((await alert_keys(one)).values()) == {b"1"}  # counted; without a webhook nobody claims anything


async def test_a_quota_that_was_changed_is_told_anew(store_url):
    async with a_receiver() as receiver, an_upstream() as upstream, running_proxy(store_url, alerts=wanted(receiver)) as one:
        tenant = await one.new_tenant()
        rule = await one.new_rule(tenant, upstream.url, plugin_chain=[limiter(2, alert_at=[0.5])])
        await ask(one, tenant)
        await eventually(lambda: len(receiver.taken) == 1)
        await one.change_rule(tenant, rule, plugin_chain=[limiter(4, alert_at=[0.5])])
        await ask(one, tenant)
        await eventually(lambda: len(receiver.taken) == 2)
        assert [event["amount"] for event in receiver.taken] == [2, 4]


async def test_unsigned_webhooks_withhold_addresses_and_header_values(store_url):
    async with (
        a_receiver() as receiver,
        an_upstream() as upstream,
        running_proxy(store_url, alerts={"webhook_url": receiver.url + "/"}) as one,
    ):
        tenant = await one.new_tenant()
        chain = [limiter(1, alert_at=[1], per=["ip", "header:x-user", "method"])]
        await one.new_rule(tenant, upstream.url, plugin_chain=chain)
        await ask(one, tenant, fields={"x-user": "ann"})
        await eventually(lambda: receiver.taken)
        (request, _), (event,) = receiver.seen[0], receiver.taken
        assert request.get("webhook-signature") is None
        assert request.target == "/hooks/budget/"
        level = event["level"]
        assert {name: level[name] for name in ("ip", "header:x-user", "method")} == {
            "ip": None, "header:x-user": None, "method": "GET",
        }  # fmt: skip


async def test_answers_do_not_wait_for_the_receiver(store_url):
    async with (
        a_receiver() as receiver,
        an_upstream() as upstream,
        running_proxy(store_url, alerts=wanted(receiver, timeout="200ms")) as one,
    ):
        receiver.answers = False
        tenant = await one.new_tenant()
        await one.new_rule(tenant, upstream.url, plugin_chain=[limiter(1, alert_at=[1])])
        with stamina.set_testing(True, attempts=1):
            began = time.monotonic()
            assert (await ask(one, tenant)).status == 200
            assert time.monotonic() - began < 0.2
            await eventually(lambda: "gateway_undelivered_alerts_total" in str(one.series()))
