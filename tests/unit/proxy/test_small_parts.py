"""Clients that leave, and work in the background."""

import asyncio
from typing import Any, cast

from gateway.errors import InternalError
from gateway.proxy.background import Background
from gateway.proxy.leave_watch import LeaveWatch, LeaveWatches
from gateway.proxy.request_body import RequestBody


async def left_after(seconds: float, left: asyncio.Event, watches: LeaveWatches) -> tuple[LeaveWatch, list[dict[str, str]]]:
    """A request whose client leaves then, as the watch sees it; and one message for each time that it was asked."""
    messages: list[dict[str, str]] = []

    async def receive():
        messages.append({})
        await left.wait()
        return {"type": "http.disconnect"}

    body = RequestBody(receive, present=False, length=0, max_bytes=0, idle_ms=1)
    watch = LeaveWatch(watches, body)
    watch.start()
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        cast("asyncio.Task[Any]", asyncio.current_task()).uncancel()
    finally:
        watch.stop()
    return watch, messages


async def test_a_client_that_leaves_is_noticed_and_one_that_has_its_reply_soon_is_not_watched():
    watches, left = LeaveWatches(after_ms=20), asyncio.Event()
    watches.start()
    soon, asked = await left_after(0, left, watches)
    await asyncio.sleep(0.05)
    assert not soon.left
    assert not asked
    waits = asyncio.create_task(left_after(60, left, watches))
    await asyncio.sleep(0.1)
    assert not watches._waiting
    left.set()
    watch, asked = await waits
    assert watch.left
    assert asked
    await watches.stop()


async def test_each_watch_begins_in_its_turn():
    now = 0.0
    watches = LeaveWatches(after_ms=1, clock=lambda: now)
    never = asyncio.Event()
    tasks = [asyncio.create_task(left_after(60, never, watches)) for _ in range(3)]
    await asyncio.sleep(0)
    watches.start()
    await asyncio.sleep(0.02)
    assert len(watches._waiting) == 3
    now = 1.0
    await asyncio.sleep(0.02)
    assert not watches._waiting
    for task in tasks:
        task.cancel()
    assert [watch.left for watch, _ in await asyncio.gather(*tasks)] == [False] * 3
    await watches.stop()


async def test_a_bug_in_background_work_is_logged_once_and_not_repeated(caplog):
    background, called = Background(), []

    async def broken():
        called.append(1)
        raise ZeroDivisionError

    background.run(broken)
    await background.drain(1_000)
    assert called == [1]
    assert caplog.text.count("work in the background failed") == 1


async def test_draining_gives_up_after_its_time(caplog):
    background = Background()
    background.run(lambda: asyncio.sleep(30))
    await asyncio.wait_for(background.drain(10), 2)
    assert "1 pieces of work were given up" in caplog.text
    await background.drain(10)


def test_an_internal_error_says_nothing():
    assert InternalError().message == "The gateway failed to handle the request."
