"""Whether a target is worth asking: what its failures in a row say, and how many retries it may cost."""

from __future__ import annotations

import math
import random

from gateway.errors import BreakerOpen

LONGEST_PAUSES = 32
"""The longest pause, in first ones."""

RETRY_SHARE = 0.2
MOST_SAVED_RETRIES = 10.0
FREE_RETRY_EVERY_S = 1.0


class Breaker:
    """Opens when so many requests in a row got no connection or no head of a reply; then it lets one through after each pause.

    Statuses are no failures, 429 and 5xx neither: who answers is there, clients know what to do about them, and one client
    could bring them about for all. What a client does (it leaves, its body breaks off) says nothing about the target.
    A pause is twice as long as the one before it, at most `LONGEST_PAUSES` first ones, and shortened at random by up to a half,
    so that replicas do not come back all at once. Moments are the loop's, in seconds.
    """

    __slots__ = ("_fails_to_connect", "_first_s", "_most", "_pause_s", "_reopens_at", "failures", "is_open", "number")

    def __init__(self, failures: int, pause_s: float) -> None:
        self._most = failures
        self._first_s = self._pause_s = pause_s
        self._reopens_at = 0.0
        self._fails_to_connect = False
        self.failures = 0
        """Requests that failed since the last one that did not; without any there is nothing to tell the breaker."""
        self.is_open = False
        self.number = 0
        """Under which a request says what became of it, if the breaker is closed when it begins."""

    def enter(self, now: float) -> int:
        """The number of a request that begins. Raises BreakerOpen."""
        if self.is_open:
            if now < self._reopens_at:
                raise BreakerOpen(headers=[("retry-after", str(max(1, math.ceil(self._reopens_at - now))))])
            # a probe; should it hang, there is another one after a further pause
            self._pause_from(now)
        return self.number

    def failed(self, number: int, now: float, *, connecting: bool) -> bool:
        """The request got no connection (``connecting``), or no head of a reply. Returns True if that opens the breaker.

        What was sent before it opened tells nothing new.
        """
        if not self._most:
            return False
        self.failures += 1
        if self.is_open:
            if number == self.number:
                self._fails_to_connect = connecting
                self._pause_s = min(self._pause_s * 2, self._first_s * LONGEST_PAUSES)
                self._pause_from(now)
            return False
        if self.failures < self._most:
            return False
        self.is_open = True
        self._fails_to_connect = connecting
        self._pause_from(now)
        return True

    def connected(self) -> bool:
        """There is a connection, which is enough where that was what failed. Returns True if that closes the breaker."""
        return self.is_open and self._fails_to_connect and self.succeeded()

    def succeeded(self) -> bool:
        """The head of a reply came. Returns True if that closes the breaker."""
        was_open, self.is_open = self.is_open, False
        self.failures = 0
        self._pause_s = self._first_s
        return was_open

    def left(self, number: int, now: float) -> None:
        """Nobody knows what would have become of the request; if it was a probe, the next one is."""
        if self.is_open and number == self.number:
            self._reopens_at = min(self._reopens_at, now)

    def _pause_from(self, now: float) -> None:
        self.number += 1
        self._reopens_at = now + self._pause_s * random.uniform(0.5, 1)  # noqa: S311 - not a secret


class RetryBudget:
    """Retries are a fifth of the requests, as others are left of them, and one a second besides.

    Without it a target that is down gets a multiple of its usual load from each replica.
    """

    __slots__ = ("_free_at", "saved")

    def __init__(self) -> None:
        self.saved = MOST_SAVED_RETRIES
        """Each request adds `RETRY_SHARE`, up to `MOST_SAVED_RETRIES`."""
        self._free_at = 0.0

    def take(self, now: float) -> bool:
        """Whether there may be a retry, which is then taken."""
        if self.saved >= 1:
            self.saved -= 1
            return True
        if now < self._free_at:
            return False
        self._free_at = now + FREE_RETRY_EVERY_S
        return True
