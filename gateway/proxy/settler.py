"""Settles admissions off the path of their requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import GatewayError, InternalError, StoreAway
from gateway.store import Settlement, Settlements

_LOG = logging.getLogger("gateway.proxy")

MAX_BATCH = 128
MAX_WAITING = 50_000
NEVER_SENT_S = 3_600
"""As long as the store knows of an admission that nobody has settled."""
PAUSES_MS = (100, 400, 1_600, 3_000)


@dataclass(slots=True)
class _Ended:
    """``tried`` is when it may have reached the store for the first time."""

    settlement: Settlement
    added: float
    tried: float | None = None


class Settler:
    """Tells the store of admissions that have ended: in one call for all that end while the call before is under way.

    While the store does not take them there are pauses, which end when it is seen to answer.

    What the store does not take is tried again under the same id for as long as the store would recognise it: one lease from
    when it may have reached the store, and an hour if it cannot have. ``on_given_up`` is told how many were not taken by then.
    ``clock`` counts seconds and is no wall clock.
    """

    def __init__(
        self,
        settlements: Settlements,
        lease_ms: int,
        on_given_up: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settlements = settlements
        self._lease = lease_ms / 1_000
        self._on_given_up = on_given_up
        self._clock = clock
        self._waiting: deque[_Ended] = deque()
        self._task: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()

    def add(self, settlement: Settlement) -> None:
        """Settle it soon. Where very many wait for the store, an admission that may never have been made is left to its end."""
        if len(self._waiting) >= MAX_WAITING and settlement.admitted_ms is None:
            self._give_up(1)
            return
        self._waiting.append(_Ended(settlement, self._clock()))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    @property
    def is_full(self) -> bool:
        """Whether so many wait that nothing should be begun which only adds to them."""
        return len(self._waiting) >= MAX_WAITING

    def store_answers(self) -> None:
        """The store has just answered something else: no need to wait until it may be back."""
        self._answered.set()

    async def drain(self, timeout_ms: int) -> None:
        """Wait until all are settled. What is left after the timeout is given up; what it holds ends with its lease."""
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=timeout_ms / 1_000)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._give_up(len(self._waiting))
        self._waiting.clear()

    async def _run(self) -> None:
        failures = 0
        while self._waiting:
            if await self._settle_some():
                failures = 0
                continue
            pause_ms = PAUSES_MS[min(failures, len(PAUSES_MS) - 1)]
            self._answered.clear()
            await asyncio.sleep(PAUSES_MS[0] / 1_000)
            # replicas that lost the store together must not come back together, unless it is seen to answer
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_ms * random.uniform(0.5, 1) / 1_000):  # noqa: S311
                    await self._answered.wait()
            failures += 1
            self._forget_the_late()

    async def _settle_some(self) -> bool:
        """Settle those that wait longest. False if the store took none of them."""
        batch = [self._waiting[index] for index in range(min(MAX_BATCH, len(self._waiting)))]
        outcomes: list[Exception | None]
        began = self._clock()
        try:
            outcomes = await self._settlements.settle([ended.settlement for ended in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        # only now: a cancelled call leaves them waiting
        for ended, outcome in zip(batch, outcomes, strict=True):
            self._waiting.popleft()
            if ended.tried is None and outcome is not None and not isinstance(outcome, StoreAway):
                ended.tried = began
        again = [ended for ended, error in zip(batch, outcomes, strict=True) if _may_pass(error)]
        # behind the others: one part of the store that is away must not keep those of other parts waiting
        self._waiting.extend(again)
        broken = [error for error in outcomes if error is not None and not _may_pass(error)]
        if broken:
            _LOG.error("admissions cannot be settled: %r", broken[0])
            self._give_up(len(broken))
        return len(again) < len(batch)

    def _forget_the_late(self) -> None:
        now = self._clock()
        kept = deque(
            ended
            for ended in self._waiting
            if now < (ended.added + NEVER_SENT_S if ended.tried is None else ended.tried + self._lease)
        )
        self._give_up(len(self._waiting) - len(kept))
        self._waiting = kept

    def _give_up(self, count: int) -> None:
        if count:
            _LOG.error("%d admissions were not settled; what they held ends with its lease", count)
            self._on_given_up(count)


def _may_pass(error: Exception | None) -> bool:
    """True for what another try may cure."""
    return isinstance(error, GatewayError) and not isinstance(error, InternalError)
