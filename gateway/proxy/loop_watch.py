"""Whether the event loop keeps up, and what holds it up where it does not."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from gateway.pipeline import Running, running_in

_LOG = logging.getLogger("gateway.proxy")

EVERY_S = 0.1
MEASURES = 3
MOST_FRAMES = 20

OnMeasure = Callable[[float], None]
OnStall = Callable[[str], None]


class LoopWatch:
    """Measures on a timer how late the loop calls, and has a thread look when it does not call at all.

    ``lag_ms`` is the smallest of the last measures: one that stands out is a hiccup, such as the compilation of a
    configuration, and not load. ``on_measure`` is told it each time, ``on_stall`` the name of the plugin that has
    held up the loop for longer than ``stall_ms``, or an empty text.
    """

    def __init__(self, stall_ms: int, on_measure: OnMeasure, on_stall: OnStall) -> None:
        self._stall_s = stall_ms / 1_000
        self._on_measure = on_measure
        self._on_stall = on_stall
        self._measures: deque[float] = deque([0.0] * MEASURES, MEASURES)
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._called = 0.0
        self._blamed = -1.0
        self.lag_ms = 0.0

    def start(self) -> None:
        """Watch the running loop, which must run in this thread."""
        self._called = time.monotonic()
        self._stopped.clear()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(EVERY_S, self._measure)
        self._thread = threading.Thread(target=self._look, args=(threading.get_ident(),), name="loop watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None

    def _measure(self) -> None:
        now = time.monotonic()
        late_s = now - self._called - EVERY_S
        if self._blamed == self._called:
            _LOG.warning("the event loop goes on after %.0f ms", late_s * 1_000)
        self._called = now
        self._measures.append(late_s * 1_000)
        self.lag_ms = min(self._measures)
        self._timer = self._loop.call_later(EVERY_S, self._measure)
        self._on_measure(self.lag_ms)

    def _look(self, loop_thread: int) -> None:
        """What the thread does."""
        pause_s = self._stall_s / 4
        looked = time.monotonic()
        while not self._stopped.wait(pause_s):
            now, called = time.monotonic(), self._called
            # if this thread was late itself, the whole process has stood still, and nobody in it is to blame
            slept, looked = now - looked > 3 * pause_s, now
            if now - called > self._stall_s + EVERY_S and called != self._blamed and not slept:
                self._blamed = called
                self._blame(sys._current_frames().get(loop_thread))

    def _blame(self, frame: FrameType | None) -> None:
        running: Running | None = running_in(frame)
        where = " < ".join(_places(frame))
        over_ms = self._stall_s * 1_000
        if running is None:
            _LOG.error("the event loop, and every request with it, is held up for more than %.0f ms in %s", over_ms, where)
        else:
            _LOG.error(
                "plugin %s in %s of request %s holds up the event loop, and every request with it, for more than %.0f ms in %s",
                running.plugin, running.stage.value, running.request_id, over_ms, where,
            )  # fmt: skip
        self._on_stall("" if running is None else running.plugin)


def _places(frame: FrameType | None) -> list[str]:
    """The innermost frames first. Neither values of variables nor lines of code, which may hold secrets."""
    found: list[str] = []
    while frame is not None and len(found) < MOST_FRAMES:
        code = frame.f_code
        found.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return found
