"""Whether a server is asked: one that was away or silent several times in a row is left alone until a probe finds it again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Literal

from redis.exceptions import ConnectionError as RedisConnectionError

_LOG = logging.getLogger("gateway.store")

FAILURES = 3
"""As many failures in a row open a breaker."""

PAUSE_S = (0.25, 0.5)
"""Between two probes, at least and at most: replicas that lost a server together do not come back together."""

BreakerState = Literal["closed", "open", "half_open"]
STATES: tuple[BreakerState, ...] = ("closed", "open", "half_open")


class NotSent(RedisConnectionError):
    """The call was never written, so it has not run; what kept it from that is the cause, none for an open breaker."""


class Breaker:
    """Closed while a server answers in time, whatever it says; while it is open or half open, calls are refused at once.

    Failures are in a row if each is of a call that began after the one before was known: calls that wait together fail
    together, and a server that pauses for less than two deadlines never opens it.

    ``probe`` asks the server and raises if it does not answer as it should; it alone is sent while the breaker is not closed.
    False says that nobody needs the server any more.
    """

    def __init__(self, server: str, probe: Callable[[], Awaitable[bool]]) -> None:
        self.server = server
        self.state: BreakerState = "closed"
        self.is_open = False  # read for every call
        self.failures = 0
        self._probe = probe
        self._failed_at = float("-inf")
        self._watching: asyncio.Task[None] | None = None
        self._is_stopped = False

    def failed(self, began: float, why: BaseException) -> None:
        """The server was away or silent for a call that began then, on the loop's clock."""
        if self.is_open or self._is_stopped or began < self._failed_at:
            return
        loop = asyncio.get_running_loop()
        self._failed_at = loop.time()
        self.failures += 1
        if self.failures >= FAILURES:
            self.is_open, self.state = True, "open"
            _LOG.warning("store %s does not answer and is not asked until it does: %.200s", self.server, _told(why))
            self._watching = loop.create_task(self._watch())

    def answered(self) -> None:
        """A reply came in time."""
        self.failures = 0
        if self.is_open:
            self._close(f"answers again after {asyncio.get_running_loop().time() - self._failed_at:.1f} s")

    async def stop(self) -> None:
        """Probe no more."""
        self._is_stopped = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def _close(self, why: str) -> None:
        self.is_open, self.state, self.failures = False, "closed", 0
        _LOG.warning("store %s %s", self.server, why)
        watching, self._watching = self._watching, None
        if watching is not None and watching is not asyncio.current_task():
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(random.uniform(*PAUSE_S))  # noqa: S311
            self.state = "half_open"
            try:
                is_needed = await self._probe()
            except Exception as error:
                _LOG.debug("store %s still does not answer: %.200s", self.server, _told(error))
                self.state = "open"
                continue
            if is_needed:
                self.answered()
            else:
                self._close("is not needed any more")
            return


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
