"""Work that must happen but that no client waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gateway.errors import GatewayError

_LOG = logging.getLogger("gateway.proxy")

RETRY_AFTER_MS = (100, 400, 1_600, 6_400)


class Background:
    """Runs repeatable work in tasks of its own, shielded from whoever asked for it, and drains them at shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start it now; it is tried again if the store does not answer, so it must be safe to repeat."""
        self._keep(self._tried(work))

    def run_once(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start it now; it is never repeated."""
        self._keep(self._logged(work))

    async def drain(self, timeout_ms: int) -> None:
        """Wait for what runs. What is left after the timeout is cancelled; the leases in the store end it."""
        if not self._tasks:
            return
        _, left = await asyncio.wait(self._tasks, timeout=timeout_ms / 1_000)
        for task in left:
            task.cancel()
        if left:
            _LOG.warning("%d pieces of work were given up at shutdown", len(left))
            await asyncio.wait(left, timeout=1)

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tried(self, work: Callable[[], Awaitable[None]]) -> None:
        for pause_ms in (*RETRY_AFTER_MS, None):
            try:
                await work()
                return
            except GatewayError as error:
                if pause_ms is None:
                    _LOG.error("gave up: %s; what was held ends with its lease", error)
                    return
            except Exception:
                _LOG.exception("work in the background failed")
                return
            await asyncio.sleep(pause_ms / 1_000)

    async def _logged(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            _LOG.exception("work in the background failed")
