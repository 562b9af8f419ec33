"""When a connection has been idle, or a head has been on its way, for long enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LAST_REQUEST_S = 0.05
"""How long a connection without a request lasts when the server stops: one may be on its way already."""


class IdleTimer:
    """Calls ``expired`` when a connection has been idle for ``idle_s``, or its head is not whole ``head_s`` after it began.

    The first head begins with the connection. A request costs no timer: the time is noted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, idle_s: float, head_s: float, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._idle_s = idle_s
        self._head_s = head_s
        self._expired = expired
        self._ends = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.is_idle = False

    def begin(self) -> None:
        """Idle from now on."""
        self._ends = self._loop.time() + self._idle_s
        self.is_idle = True
        if self._timer is None:
            self._timer = self._loop.call_at(self._ends, self._look)

    def begin_head(self) -> None:
        """A part of a head has come while the connection was idle, or the connection itself, whose first head is due."""
        if not self.is_idle:
            self.begin()
        ends = self._loop.time() + self._head_s
        if ends < self._ends:
            self._ends = ends
            if self._timer is not None and self._timer.when() > ends:
                self._timer.cancel()
                self._timer = self._loop.call_at(ends, self._look)

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
        if self._ends <= self._loop.time():
            self._expired()
        else:
            self._timer = self._loop.call_at(self._ends, self._look)
