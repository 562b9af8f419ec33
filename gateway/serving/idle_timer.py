"""When a connection has been idle for long enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LAST_REQUEST_S = 0.05
"""How long a connection without a request lasts when the server stops: one may be on its way already."""


class IdleTimer:
    """Calls ``expired`` once a connection has been idle for so long. A request costs no timer: the time is noted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._expired = expired
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.is_idle = False

    def begin(self) -> None:
        """Idle from now on."""
        self._since = self._loop.time()
        self.is_idle = True
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def end(self) -> None:
        """A request has begun."""
        self.is_idle = False

    def cancel(self) -> None:
        """The connection has ended."""
        self.is_idle = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self.is_idle:
            return
        left = self._since + self._seconds - self._loop.time()
        if left <= 0:
            self._expired()
        else:
            self._timer = self._loop.call_later(left, self._look)
