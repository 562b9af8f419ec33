"""Crossings and what becomes of them, at moments that the test names; the receiver, the way to it and the store are real."""

import asyncio
import base64
import contextlib
import json
import logging

import pytest
import stamina

from gateway.config import Config
from gateway.errors import ConfigurationError
from gateway.models import LimitKind, LimitSpec
from gateway.plugin import LimitState, TenantInfo
from gateway.policy import Reached, reached_thresholds
from gateway.proxy import alerts as module
from gateway.proxy import webhook_target
from gateway.proxy.alerts import Alerts
from gateway.proxy.background import Background
from gateway.proxy.crossing import MARGIN_MS, Crossing
from gateway.proxy.webhook import Webhook, signature
from gateway.store import BoundLimit, Keyspace, place_limit
from gateway.telemetry import Metrics
from tests.forwarders import a_forwarder
from tests.gate import DAY, NOON, Gate, budget
from tests.stores import opened
from tests.wire import an_upstream, eventually

TENANT = TenantInfo("testcompany-0123456789ab", "Test Company", "testcompany", "basic")
AT = (50, 80, 100)


def a_limit(limit=10, at=AT, period="day", kind=LimitKind.BUDGET, levels=(), values=(), **more):
    spec = LimitSpec("calls", kind, limit, levels or ("rule",), period=period, alert_at=at)
    placed = place_limit(Keyspace("testcompany"), TENANT.id, "rule:r", spec, 0, levels, **more)
    return BoundLimit(placed, f"{placed.key}:{values}", values=values)


def a_state(used, *, retry=0, reset=DAY // 2, entry=0, limit=10):
    left = max(0, limit - used)
    return LimitState(
        "calls", ("rule",), "requests", limit, 86_400, used, left, retry, reset, retry != 0, False, "budget", entry
    )


def reached_by(used, at=AT, limit=10, entry=0, **more):
    found = reached_thresholds([a_limit(limit, at)], [a_state(used, limit=limit, **more)], entry)
    return found[0].thresholds if found else ()


@pytest.mark.parametrize(
    ("used", "reached"), [(0, ()), (4, ()), (5, (50,)), (7, (50,)), (8, (50, 80)), (9, (50, 80)), (10, AT), (12, AT)]
)
def test_a_threshold_is_reached_exactly_where_the_share_is_used(used, reached):
    assert reached_by(used) == reached


def test_shares_are_compared_without_fractions():
    limit = 3 * 10**14 + 1
    edge = -(-limit * 29 // 100)
    assert (reached_by(edge - 1, (29,), limit), reached_by(edge, (29,), limit)) == ((), (29,))


def test_a_limit_that_refuses_has_reached_all_unless_no_request_of_that_size_could_ever_pass():
    assert reached_by(6, retry=5_000) == AT
    assert reached_by(6, retry=-2) == AT
    assert reached_by(6, retry=-1) == (50,)
    assert reached_by(0, retry=-1, reset=0) == ()


def test_limits_that_stand_behind_where_the_request_came_to_its_end_are_not_told():
    assert reached_by(10, entry=-1) == ()
    assert reached_thresholds([a_limit(kind=LimitKind.RING)], [a_state(10)], 0) == []


def test_levels_are_told_with_their_values_and_private_ones_under_another_name():
    limit = a_limit(levels=("header:x-user", "ip", "model"), values=("ann", "192.0.2.1", "m" * 300), rule_id="r", key_id="k")
    crossing = Crossing(TENANT, Reached(limit, a_state(5), (50,)), 50, NOON)
    plain, named = (json.loads(crossing.event(key))["level"] for key in (None, b"k" * 32))
    assert plain == {"rule": "r", "api_key": "k", "header:x-user": None, "ip": None, "model": "m" * 200}
    assert named["ip"] != named["header:x-user"]
    assert "192.0.2.1" not in str(named)
    assert named == json.loads(crossing.event(b"k" * 32))["level"]
    assert crossing.event_id == Crossing(TENANT, Reached(limit, a_state(9), (50, 80)), 50, NOON).event_id


def test_the_signature_is_that_of_the_specification():
    """The vector with which its libraries are tested."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://hooks.example.com/x", "must be https"),
        ("https://10.0.0.1/x", "is not a public address"),
        ("https://169.254.169.254/x", "metadata"),
        ("https://user:pw@hooks.example.com/x", "user name or password"),
        ("https://hooks.example.com/x?sig=1", "query"),
        ("ftp://hooks.example.com", "must begin with https://"),
    ],
)
def test_a_receiver_that_may_not_be_reached_stops_the_start_and_the_key_is_named(url, words):
    with pytest.raises(ConfigurationError, match=r"^alerts\.webhook_url: ") as caught:
        webhook_target(Config.model_validate({"alerts": {"webhook_url": url}}))
    assert words in str(caught.value)
    assert webhook_target(Config()) is None


class Replica:
    """Alerts over a store of its own connection; ``lease_ms`` is short."""

    def __init__(self, stores, forwarder, url, *, lease_ms=200, **settings):
        config = Config.model_validate(
            {"upstream": {"allowed_networks": "127.0.0.0/8"}, "alerts": {"webhook_url": url, **settings}}
        )
        target = webhook_target(config)
        self.metrics, self.background = Metrics(), Background()
        webhook = None if target is None else Webhook(config, target, forwarder)
        self.alerts = Alerts(stores.alerts, self.background, self.metrics, webhook, lease_ms)

    def note(self, used, now=NOON, *, limit=None, at=AT):
        bound = limit or a_limit(at=at)
        state = a_state(used, reset=DAY - now % DAY, limit=bound.placed.spec.limit)
        return self.alerts.note(TENANT, reached_thresholds([bound], [state], 0), now)

    def die(self):
        for task in self.background._tasks:
            task.cancel()

    async def idle(self):
        await eventually(lambda: not self.busy)

    @property
    def busy(self):
        return len(self.background._tasks)

    @property
    def counted(self):
        return sum(s.value for metric in self.metrics.alerts.collect() for s in metric.samples if s.name.endswith("_total"))


@contextlib.asynccontextmanager
async def a_scene(status=204):
    events, silent = [], asyncio.Event()
    silent.set()

    async def receive(call):
        events.append(json.loads(await call.read_body()))
        await silent.wait()
        await call.answer(status)

    async with an_upstream(receive) as server, opened(None) as stores, a_forwarder() as forwarder:
        yield stores, forwarder, server.url, events, silent


async def test_a_new_period_is_told_again_and_the_same_one_is_not_by_whatever_replica():
    async with a_scene() as (stores, forwarder, url, events, _):
        one, two = Replica(stores, forwarder, url), Replica(stores, forwarder, url)
        gate, limit = await Gate(stores).prepare(), budget(2)
        for number, now in enumerate((NOON, NOON + DAY, NOON + 2 * DAY), 1):
            for replica in (one, two, one):
                decision = await gate.admit([limit], now)
                told = replica.note(decision.state.used, decision.now, limit=a_limit(2, (50,)))
                assert told == [(b"x-gateway-alert", b"calls;at=0.5")]
                await replica.idle()
            assert len(events) == number
        assert len({event["id"] for event in events}) == 3
        assert [event["period_end"] for event in events] == [f"2026-03-{day}T00:00:00.000Z" for day in (11, 12, 13)]
        assert one.counted + two.counted == 3
        keys = [await stores.connection.client.pttl(key) for key in await stores.connection.client.keys("*:alert:*")]
        assert max(keys) <= DAY // 2 + MARGIN_MS


async def test_what_is_known_to_be_told_asks_the_store_nothing():
    async with a_scene() as (stores, forwarder, url, events, _):
        replica = Replica(stores, forwarder, url)
        for _ in range(50):  # nor what is on its way
            replica.note(10)
        assert replica.busy == 3
        await eventually(lambda: len(events) == 3 and not replica.busy)
        for _ in range(50):
            replica.note(10)
        assert not replica.busy


async def test_one_that_dies_while_it_sends_is_followed_by_one_that_waited():
    async with a_scene() as (stores, forwarder, url, events, silent):
        dying, waiting = Replica(stores, forwarder, url), Replica(stores, forwarder, url)
        silent.clear()
        dying.note(5)
        await eventually(lambda: events)
        waiting.note(5)
        await asyncio.sleep(0.05)
        dying.die()
        silent.set()
        await eventually(lambda: not waiting.busy)
        assert len(events) == 2
        assert events[0] == events[1]
        assert (dying.counted, waiting.counted) == (1, 0)
        waiting.note(5)
        dying.note(5)
        await eventually(lambda: not waiting.busy and not dying.busy)
        assert len(events) == 2


async def test_a_try_goes_on_only_for_whoever_has_the_claim():
    """One that stood still for longer than its lease leaves it to who came after it."""
    async with a_scene(500) as (stores, forwarder, url, events, silent):
        slow = Replica(stores, forwarder, url)
        silent.clear()
        with stamina.set_testing(True, attempts=9):
            slow.note(5)
            await eventually(lambda: events)
            (key,) = [key for key in await stores.connection.client.keys("*:alert:*") if not key.endswith(b":counted")]
            await stores.connection.client.set(key, "sent", px=60_000)
            silent.set()
            await eventually(lambda: not slow.busy)
        assert len(events) == 1
        assert b"gateway_undelivered_alerts_total{" not in slow.metrics.exposition()[0]


async def test_a_store_that_is_away_costs_a_line_and_a_later_request_begins_again(caplog):
    async with a_scene() as (stores, forwarder, url, events, _):
        replica = Replica(stores, forwarder, url)
        server = stores.connection.client.connection_pool.connection_kwargs["server"]
        server.connected = False
        with caplog.at_level(logging.WARNING):
            replica.note(5)
            await eventually(lambda: not replica.busy)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        server.connected = True
        replica.note(5)
        assert not replica.busy  # not with each request
        replica.alerts._quiet_until.put(Crossing(TENANT, Reached(a_limit(), a_state(5), (50,)), 50, NOON).known_as, 0)
        replica.note(5)
        await eventually(lambda: events)


async def test_what_is_under_way_is_bounded_for_each_tenant():
    async with a_scene() as (stores, forwarder, url, events, silent):
        replica = Replica(stores, forwarder, url)
        silent.clear()
        for number in range(100):
            replica.note(5, limit=a_limit(levels=("ip",), values=(f"192.0.2.{number}",)), at=(50,))
        assert replica.busy == module.MOST_OF_A_TENANT
        silent.set()
        await eventually(lambda: not replica.busy)
        replica.note(5, limit=a_limit(levels=("ip",), values=("192.0.2.99",)), at=(50,))
        assert replica.busy == 1
        await eventually(lambda: not replica.busy)
        assert len(events) == module.MOST_OF_A_TENANT + 1
