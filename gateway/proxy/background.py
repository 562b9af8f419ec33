"""Work that no client waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

_LOG = logging.getLogger("gateway.proxy")


class Background:
    """Runs work in tasks of its own, shielded from whoever asked for it, and drains them at shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start it now; it is never repeated."""
        task = asyncio.ensure_future(self._logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, timeout_ms: int) -> None:
        """Wait for what runs. What is left after the timeout is cancelled."""
        if not self._tasks:
            return
        _, left = await asyncio.wait(self._tasks, timeout=timeout_ms / 1_000)
        for task in left:
            task.cancel()
        if left:
            _LOG.warning("%d pieces of work were given up at shutdown", len(left))
            await asyncio.wait(left, timeout=1)

    async def _logged(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            _LOG.exception("work in the background failed")
