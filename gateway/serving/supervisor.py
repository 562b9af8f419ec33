"""Keeps a number of worker processes running: one that is dead or hangs is replaced, and none of the others notices."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from gateway.errors import ConfigurationError
from gateway.serving.worker_process import BEAT_S, LEAVE, STOP, WorkerProcess

FIRST_TRIES = 3
"""How often a worker may die before all have been ready once. Then something is wrong that no restart mends."""

HEALTHY_AFTER_S = 10.0
"""Who dies younger is replaced after a pause, which doubles each time."""

BACKOFF_S = (0.25, 30.0)

SILENT_BEATS = 30
"""A worker whose event loop has not turned for so many beats hangs, and so does every request that it has."""

logger = logging.getLogger("gateway.server")


class Supervisor:
    """Starts ``count`` workers and replaces them until ``leaving`` is set; they drain once ``stopping`` is set as well."""

    def __init__(
        self,
        count: int,
        start: Callable[[], Awaitable[WorkerProcess]],
        *,
        leaving: asyncio.Event,
        stopping: asyncio.Event,
        died: Callable[[int], None],
        silent_beats: int = SILENT_BEATS,
    ) -> None:
        self._count = count
        self._start = start
        self._leaving = leaving
        self._stopping = stopping
        self._died = died
        self._silent_beats = silent_beats
        self._workers: dict[int, WorkerProcess] = {}
        self._ready: set[int] = set()
        self._all_ready = asyncio.Event()

    async def run(self, ready: Callable[[], None], patience_s: float) -> None:
        """Keep them until they have drained; what has not ended ``patience_s`` after ``stopping`` is killed.

        ``ready`` is called once, when all accept. Raises ConfigurationError if they never do.
        """
        keepers = [asyncio.create_task(self._keep(number), name=f"worker {number}") for number in range(1, self._count + 1)]
        teller = asyncio.create_task(self._tell())
        caller = asyncio.create_task(self._call(ready))
        try:
            running = set(keepers)
            while running:
                timeout = patience_s if self._stopping.is_set() else None
                waker = asyncio.create_task(self._stopping.wait())
                waiting = running if timeout is not None else running | {waker}
                done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                waker.cancel()
                for keeper in done & running:
                    keeper.result()
                running -= done
                if timeout is not None and not done:
                    logger.error("%d workers have not ended in time and are killed", len(running))
                    break
        finally:
            for task in (teller, caller, *keepers):
                task.cancel()
            await asyncio.wait([teller, caller, *keepers])
            for worker in self._workers.values():
                worker.kill()
                await worker.ended()

    async def _keep(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        pause, deaths = BACKOFF_S[0], 0
        while not self._leaving.is_set():
            born = loop.time()
            code = await self._live(number)
            if self._leaving.is_set():
                return
            deaths += 1
            if not self._all_ready.is_set() and deaths >= FIRST_TRIES:
                raise ConfigurationError(f"worker {number} does not start (exit code {code}); what it says stands above")
            if loop.time() - born > HEALTHY_AFTER_S:
                pause = BACKOFF_S[0]
            logger.error("worker %d ended unasked (exit code %d); another one starts in %g s", number, code, pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._leaving.wait()
            pause = min(2 * pause, BACKOFF_S[1])

    async def _live(self, number: int) -> int:
        """One life of a worker: its exit code."""
        worker = self._workers[number] = await self._start()
        if self._leaving.is_set():
            worker.tell(LEAVE)
        if self._stopping.is_set():
            worker.tell(STOP)
        watch = None
        try:
            if await worker.is_ready():
                logger.info("worker %d is ready (pid %d)", number, worker.pid)
                self._ready.add(number)
                if len(self._ready) == self._count:
                    self._all_ready.set()
                watch = asyncio.create_task(self._watch(number, worker))
            code = await worker.ended()
        finally:
            self._ready.discard(number)
            if watch is not None:
                watch.cancel()
        del self._workers[number]
        self._died(worker.pid)
        return code

    async def _watch(self, number: int, worker: WorkerProcess) -> None:
        """Kill it once it hangs. Beats are counted, not timed: a stop of all processes is the fault of none."""
        silent = 0
        while silent < self._silent_beats:
            await asyncio.sleep(BEAT_S)
            silent = 0 if worker.has_beaten() else silent + 1
        logger.error("worker %d (pid %d) hangs: silent for %g s; it is killed", number, worker.pid, silent * BEAT_S)
        worker.kill()

    async def _tell(self) -> None:
        for event, what in ((self._leaving, LEAVE), (self._stopping, STOP)):
            await event.wait()
            for worker in self._workers.values():
                worker.tell(what)

    async def _call(self, ready: Callable[[], None]) -> None:
        await self._all_ready.wait()
        ready()
