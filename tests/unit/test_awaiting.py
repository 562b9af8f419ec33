"""Deadlines: exact where something is waited for, and no timer where nothing is."""

import asyncio
import contextlib
from typing import Any

import pytest

from gateway.awaiting import DONE, begin, within, within_at_last


class Ready:
    """An awaitable that is no coroutine and has its result at once."""

    def __await__(self):
        return iter(())


async def at_once(result: object = "there") -> object:
    return result


async def later(turns: int, result: object = "there") -> object:
    for _ in range(turns):
        await asyncio.sleep(0)
    return result


async def refuses() -> None:
    raise ZeroDivisionError


async def test_what_is_there_needs_no_timer(monkeypatch):
    monkeypatch.setattr(asyncio, "timeout", None)
    assert await within(1, at_once()) == "there"
    assert await within(1, Ready()) is None
    with pytest.raises(ZeroDivisionError):
        await within(1, refuses())


@pytest.mark.parametrize("turns", [1, 2, 7])
async def test_what_takes_a_while_is_waited_for(turns):
    assert await within(10, later(turns)) == "there"


async def test_a_future_and_a_task_are_waited_for():
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, future.set_result, 7)
    assert await within(10, future) == 7
    assert await within(10, future) == 7
    assert await within(10, asyncio.create_task(later(3, 8))) == 8


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_what_takes_too_long_is_cut_where_it_waits(turns):
    unwound: list[str] = []

    async def work() -> None:
        await later(turns)
        try:
            await asyncio.sleep(60)
        finally:
            unwound.append("yes")

    with pytest.raises(TimeoutError):
        await within(0.02, work())
    assert unwound == ["yes"]
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_cancelling_who_waits_cancels_the_work(turns):
    unwound: list[str] = []

    async def work() -> None:
        await later(turns)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            unwound.append("yes")
            raise

    task = asyncio.create_task(within(60, work()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert unwound == ["yes"]


async def test_work_that_is_dropped_is_closed():
    closed: list[Any] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except GeneratorExit:
            closed.append("yes")
            raise

    waiting = within(60, work())
    waiting.send(None)
    waiting.close()
    assert closed == ["yes"]


async def test_what_needs_no_wait_is_done_when_it_is_begun():
    found: list[str] = []

    async def note() -> None:
        found.append("done")

    assert begin(note()) is None
    assert found == ["done"]
    assert begin(DONE) is None
    assert begin(Ready()) is None
    await DONE
    with pytest.raises(ZeroDivisionError):
        begin(refuses())


async def test_what_is_left_of_something_begun_is_awaited_in_a_task():
    found: list[str] = []

    async def note() -> None:
        found.append("begun")
        await later(3)
        await asyncio.sleep(0.01)
        found.append("done")

    rest = begin(note())
    assert found == ["begun"]
    assert rest is not None
    await asyncio.create_task(anything(rest))
    assert found == ["begun", "done"]


async def anything(awaitable: Any) -> Any:
    return await awaitable


async def ignores_its_cancellation(turns: list[str]) -> None:
    while True:
        turns.append("waits")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def test_work_that_ignores_its_cancellation_is_left_behind():
    turns: list[str] = []
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            await within_at_last(0.5, ignores_its_cancellation(turns))
    assert turns == ["waits", "waits"]
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_result_that_was_held_back_beyond_the_deadline_is_none():
    async def late():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "late"

    with pytest.raises(TimeoutError):
        await within_at_last(0.05, late())


async def test_work_has_as_long_again_to_clean_up():
    done = []

    async def tidy():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            done.append("tidied")

    with pytest.raises(TimeoutError):
        await within_at_last(1, tidy())
    assert done == ["tidied"]


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_work_in_time_has_its_result_from_either(turns):
    assert await within_at_last(20, later(turns)) == "there"
    with pytest.raises(ZeroDivisionError):
        await within_at_last(20, refuses())
