"""Notices that a client has gone while its request is being answered."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gateway.proxy.request_body import RequestBody


class LeaveWatch:
    """Cancels the task that made it when its client closes the connection. ``left`` tells that from other cancellations."""

    def __init__(self, body: RequestBody) -> None:
        self._body = body
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._watch: asyncio.Task[None] | None = None
        self.left = False

    def start(self) -> None:
        """Watch from now on; the request's body must be complete, as nothing else may receive."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._wait())

    def stop(self) -> None:
        """Watch no longer."""
        if self._watch is not None:
            self._watch.cancel()

    async def _wait(self) -> None:
        await self._body.wait_until_left()
        self.left = True
        self._task.cancel()
