"""Deadlines that cost nothing where there is nothing to wait for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class _Done:
    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


DONE: Awaitable[None] = _Done()
"""What a function returns to those who await it when there was nothing to wait for; it costs no coroutine."""


async def within(seconds: float, work: Awaitable[T]) -> T:
    """The result of ``work``, for which a deadline is set only if it is not there at once. Raises TimeoutError.

    Most messages have arrived before they are asked for, and most plugins wait for nothing; `asyncio.timeout` makes a timer
    for each of them.
    """
    steps = work.__await__()
    result: T
    try:
        waits_for = next(steps)
    except StopIteration as end:
        result = end.value
        return result
    async with asyncio.timeout(seconds):
        result = await _Rest(steps, waits_for)
        return result


async def within_at_last(seconds: float, work: Awaitable[T]) -> T:
    """`within` for work that may ignore its cancellation: what still waits after twice the time is left behind.

    Also raises TimeoutError for a result that comes too late because the cancellation was ignored.
    """
    steps = work.__await__()
    result: T
    try:
        waits_for = next(steps)
    except StopIteration as end:
        result = end.value
        return result
    rest = _Abandonable(steps, waits_for)
    async with asyncio.timeout(2 * seconds) as last:
        async with asyncio.timeout(seconds) as deadline:
            rest.ends_at = last.when() or 0.0
            result = await rest
        if deadline.expired():
            raise TimeoutError
        return result


def begin(work: Awaitable[None]) -> Awaitable[None] | None:
    """Do what can be done without waiting, outside of any task; what is left to be awaited in one, or None."""
    if work is DONE:
        return None
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration:
        return None
    return _Rest(steps, waits_for)


class _Rest:
    """An awaitable that was begun by hand and waits for something, which the event loop has not been told yet."""

    def __init__(self, steps: Generator[Any, Any, Any], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield self._waits_for
        except GeneratorExit:
            self._steps.close()
            raise
        except BaseException as error:
            try:
                waits_for = self._steps.throw(error)
            except StopIteration as end:
                return end.value
            return (yield from _Rest(self._steps, waits_for).__await__())
        return (yield from self._steps)


class _Abandonable(_Rest):
    """The same for what may not want to end: from ``ends_at`` on, by the loop's clock, nothing is asked of it."""

    ends_at = 0.0

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._waits_for
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                self._steps.close()
                raise
            except BaseException as error:
                if asyncio.get_running_loop().time() >= self.ends_at:
                    # it says RuntimeError if it ignores this as well, and is forgotten
                    with contextlib.suppress(RuntimeError):
                        self._steps.close()
                    raise
                try:
                    waits_for = self._steps.throw(error)
                except StopIteration as end:
                    return end.value
            else:
                try:
                    waits_for = self._steps.send(sent)
                except StopIteration as end:
                    return end.value
