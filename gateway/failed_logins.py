"""Makes guessing slow."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.errors import RateLimited
from gateway.targets import subscriber

MAX_ADDRESSES = 10_000
WINDOW_S = 60.0


class FailedLogins:
    """Counts wrong credentials by address, IPv6 by subscriber. Each process counts for itself, and for so many addresses."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._counts: dict[str, tuple[float, int]] = {}

    def check(self, address: str) -> None:
        """Raises RateLimited while the address has spent its tries of a minute; right credentials are refused as well then."""
        began, count = self._counts.get(subscriber(address), (0.0, 0))
        left = began + WINDOW_S - self._clock()
        if count >= self._limit and left > 0:
            raise RateLimited(
                "Too many wrong credentials from this address; try again later.",
                headers=[("retry-after", str(int(left) + 1))],
            )

    def note(self, address: str) -> None:
        """Count a wrong credential."""
        address, now = subscriber(address), self._clock()
        began, count = self._counts.pop(address, (now, 0))
        if now >= began + WINDOW_S:
            began, count = now, 0
        if len(self._counts) >= MAX_ADDRESSES:
            del self._counts[next(iter(self._counts))]
        self._counts[address] = (began, count + 1)
