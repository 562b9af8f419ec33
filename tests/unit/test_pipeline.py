"""The chain: order, places of limits, failures."""

import asyncio
from typing import Any

import pytest

from gateway.errors import PluginFailed, PluginFailedOnReply
from gateway.models import LimitKind, LimitSpec, Stage
from gateway.pipeline import Chain, Entry, Stopped
from gateway.plugin import Answer, Plugin, Reject, Settings
from tests.builders import a_reply, an_exchange


class Noted(Plugin[Settings]):
    """Notes each stage."""

    name = "noted"

    def __init__(self, label, stage=None, does=None):
        self.label, self.does = label, does
        super().__init__(Settings(), stage)

    async def note(self, exchange, stage):
        exchange.notes.setdefault("ran", []).append((self.label, stage))
        if self.does is not None:
            await self.does(exchange)

    async def pre_request(self, exchange):
        await self.note(exchange, "pre_request")

    async def post_request(self, exchange):
        await self.note(exchange, "post_request")

    async def pre_response(self, exchange):
        await self.note(exchange, "pre_response")

    async def post_response(self, exchange):
        await self.note(exchange, "post_response")


class Limited(Noted):
    """Declares a limit."""

    name = "limited"

    def limits(self, scope):
        return [LimitSpec(self.label, LimitKind.LOG, 1, scope.default_per, window_ms=1_000)]


class Reading(Noted):
    """Needs both bodies."""

    name = "reading"
    needs_request_body = True
    needs_reply_body = True


def entry(plugin, priority=100, *, required=False, on_error="deny"):
    return Entry(plugin.name, plugin, priority, on_error, required)


def a_chain(*entries, failures=None, timeout_ms=1_000):
    seen = [] if failures is None else failures
    return Chain(entries, timeout_ms, lambda name, stage: seen.append((name, stage)))


async def ran(chain, refused_at=None, refusal=None):
    exchange = an_exchange()
    stopped = await chain.pre_request(exchange, refused_at, refusal)
    return [label for label, _ in exchange.notes.get("ran", [])], stopped


async def rejects(exchange):
    raise Reject(418, "no", "no")


async def answers(exchange):
    exchange.answer = Answer(200)


async def test_priority_orders_then_required_before_own_then_position():
    chain = a_chain(
        entry(Noted("own-a")),
        entry(Noted("own-b")),
        entry(Noted("required"), required=True),
        entry(Noted("late"), 200),
        entry(Noted("first"), 1),
    )
    assert await ran(chain) == (["first", "required", "own-a", "own-b", "late"], None)


async def test_an_entry_with_a_stage_runs_in_that_stage_only():
    chain = a_chain(entry(Noted("a", Stage.PRE_RESPONSE)), entry(Noted("b")))
    exchange = an_exchange(reply=a_reply())
    await chain.pre_request(exchange, None, None)
    await chain.post_request(exchange)
    await chain.pre_response(exchange)
    await chain.post_response(exchange)
    assert exchange.notes["ran"] == [
        ("b", "pre_request"),
        ("b", "post_request"),
        ("a", "pre_response"),
        ("b", "pre_response"),
        ("b", "post_response"),
    ]


async def test_a_rejection_ends_the_chain_at_its_place():
    chain = a_chain(entry(Noted("a")), entry(Noted("b", does=rejects)), entry(Noted("c")))
    labels, stopped = await ran(chain)
    assert labels == ["a", "b"]
    assert stopped.index == 1
    assert stopped.error.code == "no"


async def test_an_answer_ends_the_chain_without_an_error():
    labels, stopped = await ran(a_chain(entry(Noted("a", does=answers)), entry(Noted("b"))))
    assert (labels, stopped) == (["a"], Stopped(0, None))


@pytest.mark.parametrize(("refused_at", "expected"), [(-1, []), (0, []), (1, ["a"]), (2, ["a", "b"])])
async def test_a_refusal_by_limits_takes_effect_at_the_place_of_its_plugin(refused_at, expected):
    refusal = Reject(429, "rate_limited", "spent")
    chain = a_chain(entry(Noted("a")), entry(Noted("b")), entry(Noted("c")))
    assert await ran(chain, refused_at, refusal) == (expected, Stopped(refused_at, refusal))


async def test_a_dry_run_leaves_out_what_it_must_not_call_and_keeps_every_place():
    chain = a_chain(entry(Noted("a", does=rejects)), entry(Noted("b")), entry(Noted("c")))
    refusal = Reject(429, "rate_limited", "spent")
    for refused_at, labels in ((None, ["b", "c"]), (2, ["b"])):
        exchange = an_exchange()
        stopped = await chain.pre_request(exchange, refused_at, refusal, without={0})
        assert [label for label, _ in exchange.notes["ran"]] == labels
        assert stopped == (None if refused_at is None else Stopped(2, refusal))


async def test_an_earlier_rejection_wins_over_a_refusal_by_limits():
    chain = a_chain(entry(Noted("a", does=rejects)), entry(Limited("l")))
    _, stopped = await ran(chain, 1, Reject(429, "rate_limited", "spent"))
    assert (stopped.index, stopped.error.status) == (0, 418)


async def test_limits_stand_where_their_plugin_stands_and_required_ones_count_for_the_tenant():
    chain = a_chain(entry(Noted("a"), 1), entry(Limited("own")), entry(Limited("all"), required=True))
    assert [(index, spec.name, spec.per) for index, _, spec in chain.limits("basic")] == [
        (1, "all", ("tenant",)),
        (2, "own", ("rule",)),
    ]


def test_a_body_is_read_only_for_an_entry_that_stands_before_the_refusal():
    chain = a_chain(entry(Noted("a")), entry(Reading("r")), entry(Noted("b")))
    assert chain.needs_request_body
    assert chain.needs_reply_body
    assert [chain.reads_request_body_before(index) for index in (None, -1, 0, 1, 2)] == [True, False, False, False, True]


def test_an_entry_that_runs_in_another_stage_needs_no_body_of_this_one():
    chain = a_chain(entry(Reading("r", Stage.PRE_RESPONSE)))
    assert (chain.needs_request_body, chain.needs_reply_body) == (False, True)
    assert not chain.reads_request_body_before(None)


async def hangs(exchange):
    await asyncio.sleep(30)


async def divides(exchange):
    raise ZeroDivisionError


async def exits(exchange):
    raise SystemExit(3)


async def groups(exchange):
    raise BaseExceptionGroup("several", [GeneratorExit()])


async def cancels(exchange):
    raise asyncio.CancelledError


FAILURES = [hangs, divides, exits, groups, cancels]


@pytest.mark.parametrize("does", FAILURES)
async def test_a_plugin_that_fails_in_any_way_refuses_the_request_and_is_counted(does, caplog):
    failures: list[Any] = []
    chain = a_chain(entry(Noted("a", does=does)), entry(Noted("b")), failures=failures, timeout_ms=20)
    labels, stopped = await ran(chain)
    assert labels == ["a"]
    assert type(stopped.error) is PluginFailed
    assert failures == [("noted", "pre_request")]
    assert "plugin noted failed in pre_request of request req-1" in caplog.text


@pytest.mark.parametrize("does", FAILURES)
async def test_a_plugin_that_fails_after_the_target_answered_is_a_bad_gateway(does):
    for method in ("post_request", "pre_response"):
        chain = a_chain(entry(Noted("a", does=does)), timeout_ms=20)
        with pytest.raises(PluginFailedOnReply):
            await getattr(chain, method)(an_exchange(reply=a_reply()))


@pytest.mark.parametrize("does", FAILURES)
async def test_an_entry_that_may_fail_is_skipped_visibly(does):
    failures: list[Any] = []
    chain = a_chain(entry(Noted("a", does=does), on_error="skip"), entry(Noted("b")), failures=failures, timeout_ms=20)
    assert await ran(chain) == (["a", "b"], None)
    assert failures == [("noted", "pre_request")]


async def test_a_rejection_is_no_failure_that_skip_could_hide():
    failures: list[Any] = []
    _, stopped = await ran(a_chain(entry(Noted("a", does=rejects), on_error="skip"), failures=failures))
    assert stopped.error.status == 418
    assert failures == []


@pytest.mark.parametrize("does", [*FAILURES, rejects])
async def test_after_the_reply_every_observer_runs_whatever_the_others_do(does):
    chain = a_chain(entry(Noted("a", does=does)), entry(Noted("b")), timeout_ms=20)
    exchange = an_exchange(reply=a_reply())
    await chain.post_response(exchange)
    assert [label for label, _ in exchange.notes["ran"]] == ["a", "b"]


async def test_a_cancelled_request_is_not_taken_for_a_failing_plugin():
    failures: list[Any] = []
    started = asyncio.Event()

    async def waits(exchange):
        started.set()
        await asyncio.sleep(30)

    task = asyncio.create_task(ran(a_chain(entry(Noted("a", does=waits), on_error="skip"), failures=failures)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert failures == []
