"""Notices that clients have gone while their requests are being answered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, cast

from gateway.proxy.request_body import RequestBody

WATCH_AFTER_MS = 50
"""A watch costs a task, and on Granian three thread switches; most requests have ended before."""


class LeaveWatch:
    """Cancels the task that made it when its client closes the connection. ``left`` tells that from other cancellations."""

    __slots__ = ("_body", "_task", "_watch", "_watches", "left", "since")

    def __init__(self, watches: LeaveWatches, body: RequestBody) -> None:
        self._watches = watches
        self._body = body
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._watch: asyncio.Task[None] | None = None
        self.since = 0.0
        self.left = False

    def start(self) -> None:
        """Watch, in a moment; the request's body must be complete, as nothing else may receive."""
        self._watches.add(self)

    def stop(self) -> None:
        """Watch no longer."""
        self._watches.drop(self)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def begin(self) -> None:
        """Watch now."""
        self._watch = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        await self._body.wait_until_left()
        self.left = True
        self._task.cancel()


class LeaveWatches:
    """Begins to watch those clients that have waited for a moment: most have their reply by then, and a watch costs a task.

    ``clock`` counts seconds and is no wall clock.
    """

    def __init__(self, after_ms: int = WATCH_AFTER_MS, clock: Callable[[], float] = time.monotonic) -> None:
        self._after = after_ms / 1_000
        self._clock = clock
        self._waiting: dict[LeaveWatch, None] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, watch: LeaveWatch) -> None:
        """Begin it in a moment, unless it is dropped."""
        watch.since = self._clock()
        self._waiting[watch] = None

    def drop(self, watch: LeaveWatch) -> None:
        """Forget it."""
        self._waiting.pop(watch, None)

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._after)
            latest = self._clock() - self._after
            while self._waiting:
                watch = next(iter(self._waiting))  # the oldest stands first
                if watch.since > latest:
                    break
                del self._waiting[watch]
                watch.begin()
