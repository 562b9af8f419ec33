"""A loop that is late, and one that stands still: what is measured, and who is blamed."""

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from gateway.pipeline import Chain, Entry
from gateway.plugin import Plugin, Settings
from gateway.proxy.loop_watch import MOST_FRAMES, LoopWatch
from tests.builders import an_exchange
from tests.wire import eventually


@pytest.fixture
async def watched():
    """Watches this loop; who was blamed."""
    blamed: list[str] = []
    watch = LoopWatch(200, lambda _: None, blamed.append)
    watch.start()
    yield watch, blamed
    watch.stop()


class Blocking(Plugin[Settings]):
    """Holds the only thread of all requests."""

    name = "blocking"
    seconds = 0.0
    at_once = True

    async def pre_request(self, exchange):
        if not self.at_once:
            await asyncio.sleep(0.01)
        secret_in_a_variable = "CANARY"
        time.sleep(self.seconds)  # noqa: ASYNC251 - that is its fault
        del secret_in_a_variable


def alone(plugin: Any):
    return Chain([Entry(plugin.name, plugin, 100, "deny", required=False)], 5_000, lambda name, stage: None)


def a_chain(seconds, *, at_once=True):
    plugin = Blocking(Settings())
    plugin.seconds, plugin.at_once = seconds, at_once
    return alone(plugin)


async def held_up(chain):
    await chain.pre_request(an_exchange(), None, None)


async def test_a_single_hiccup_is_not_lag_and_lasting_lateness_is(watched):
    watch, _ = watched
    told: list[float] = []
    watch._on_measure = told.append
    time.sleep(0.35)  # noqa: ASYNC251
    await eventually(lambda: len(told) >= 4, 30)
    hiccup = max(told[:4])
    while watch.lag_ms < 100 and len(told) < 100:
        time.sleep(0.25)  # noqa: ASYNC251
        await asyncio.sleep(0)
    assert hiccup < 100 < watch.lag_ms
    await eventually(lambda: watch.lag_ms < 100, 30)


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_plugin_that_holds_up_the_loop_is_named_once_with_its_place_and_no_values(watched, caplog, at_once):
    _, blamed = watched
    await asyncio.sleep(0.02)
    with caplog.at_level(logging.WARNING):
        await held_up(a_chain(0.9, at_once=at_once))
        await eventually(lambda: "goes on after" in caplog.text)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    said = record.getMessage()
    assert said.startswith("plugin blocking in pre_request of request req-1 holds up the event loop")
    assert "test_loop_watch.py:" in said
    assert "pipeline.py:" in said
    assert "CANARY" not in said
    assert said.count(" < ") < MOST_FRAMES
    assert blamed == ["blocking"]


async def test_each_stall_is_told_of_again(watched, caplog):
    _, blamed = watched
    for number in (1, 2):
        await held_up(a_chain(0.7))
        assert len(blamed) == number
        await eventually(lambda: caplog.text.count("goes on after") == number)  # noqa: B023


async def test_what_is_no_plugin_s_fault_is_blamed_on_nobody(watched, caplog):
    _, blamed = watched
    await asyncio.sleep(0.02)
    time.sleep(0.7)  # noqa: ASYNC251
    await eventually(lambda: "goes on after" in caplog.text)
    assert blamed == [""]
    assert "held up for more than 200 ms in test_loop_watch.py:" in caplog.text


async def test_a_plugin_that_waits_holds_up_nobody(watched):
    _, blamed = watched

    class Waiting(Plugin[Settings]):
        name = "waiting"

        async def pre_request(self, exchange):
            await asyncio.sleep(0.7)

    await held_up(alone(Waiting(Settings())))
    assert blamed == []


async def test_the_watch_ends_with_its_thread(watched):
    watch, _ = watched
    assert "loop watch" in [thread.name for thread in threading.enumerate()]
    watch.stop()
    assert "loop watch" not in [thread.name for thread in threading.enumerate()]
    watch.stop()
