"""Keeps what long requests hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from gateway.errors import GatewayError
from gateway.store import Admission, BoundLimit, Held, Keyspace, Settlements

_LOG = logging.getLogger("gateway.proxy")

RETRY_AFTER_MS = 1_000


class Renewer:
    """Renews the leases of requests in flight: at each tick in one call for all that are older than a third of a lease.

    Most requests end before that and cost nothing. ``clock`` counts seconds and is no wall clock.
    """

    def __init__(
        self, settlements: Settlements, lease_ms: int, every_ms: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settlements = settlements
        self._old = lease_ms / 3_000
        self._every = every_ms / 1_000
        self._clock = clock
        self._held: dict[str, tuple[float, Held]] = {}  # the oldest first
        self._task: asyncio.Task[None] | None = None

    def keep(self, keyspace: Keyspace, admission_id: str, limits: Sequence[BoundLimit], admission: Admission) -> None:
        """Renew what this admission holds, if anything, until it is let go."""
        holding = tuple(
            limit
            for limit, state in zip(limits, admission.states, strict=True)
            # a shadow limit that would have refused holds nothing
            if limit.placed.spec.holds and not state.refuses
        )
        if holding:
            self._held[admission_id] = (self._clock(), Held(keyspace, admission_id, admission.now_ms, holding))

    def let_go(self, admission_id: str) -> None:
        """Renew it no more."""
        self._held.pop(admission_id, None)

    async def tick(self) -> None:
        """Renew what is due. Raises StoreUnavailable, Overloaded."""
        latest = self._clock() - self._old
        due = [held for began, held in self._held.values() if began <= latest]
        if due:
            await self._settlements.renew(due)

    def start(self) -> None:
        """Begin to tick."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Tick no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause = self._every
        while True:
            await asyncio.sleep(pause)
            pause = self._every
            try:
                await self.tick()
            except GatewayError as error:
                _LOG.warning("leases are not renewed: %s", error)
                pause = min(self._every, RETRY_AFTER_MS / 1_000)
            except Exception:
                _LOG.exception("leases are not renewed")
