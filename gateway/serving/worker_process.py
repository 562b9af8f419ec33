"""A worker process, and the two pipes between it and its supervisor.

A worker is a fresh interpreter: nothing of the supervisor's threads, locks and loop can get into it, as a fork would let it.
Down one pipe come its job and then what it shall do; the end of that pipe says that the supervisor is gone, however it went. Up
the other comes one byte once the worker accepts, and from then on one at each beat as long as its event loop turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LEAVE = b"l"
"""Not ready any more, but still accepting."""
STOP = b"s"
"""Stop accepting, and drain."""

BEAT_S = 1.0
"""How often a worker says that its event loop turns."""

_READY = b"r"
_TURNING = b"t"
_MANY_BEATS = 4_096
_LENGTH_BYTES = 8
# the very modules of the supervisor, wherever it has them from
_MAIN = "import sys; sys.path[:] = {path!r}; from {module} import {function} as main; main({ready_fd})"


class WorkerProcess:
    """A running worker, seen from its supervisor."""

    def __init__(self, process: Process, ready_fd: int) -> None:
        self._process = process
        self._ready_fd = ready_fd
        os.set_blocking(ready_fd, False)
        self.pid = process.pid

    @classmethod
    async def start(
        cls, main: Callable[[int], None], job: object, *, fds: Sequence[int], environment: Mapping[str, str]
    ) -> WorkerProcess:
        """Start a process that calls ``main``, a function of a module, with what `WorkerLink` takes. It inherits ``fds``."""
        ready_fd, theirs = os.pipe()
        try:
            code = _MAIN.format(path=sys.path, module=main.__module__, function=main.__qualname__, ready_fd=theirs)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, stdin=PIPE, pass_fds=(*fds, theirs), env={**os.environ, **environment}
            )
        except BaseException:
            os.close(ready_fd)
            raise
        finally:
            os.close(theirs)
        worker = cls(process, ready_fd)
        packed = pickle.dumps(job)
        worker.tell(len(packed).to_bytes(_LENGTH_BYTES, "big") + packed)
        return worker

    async def is_ready(self) -> bool:
        """Wait until it accepts; False if it ends before."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._ready_fd, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._ready_fd)
        return os.read(self._ready_fd, 1) == _READY

    def has_beaten(self) -> bool:
        """Whether its event loop has turned since this was last asked."""
        try:
            return bool(os.read(self._ready_fd, _MANY_BEATS))
        except BlockingIOError:
            return False

    def tell(self, what: bytes) -> None:
        """Send it something, if it is there to hear."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(what)

    def let_go(self) -> None:
        """Close the pipe, as the end of this process would."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def ended(self) -> int:
        """Wait for its end: the exit code, or the negative number of a signal."""
        try:
            return await self._process.wait()
        finally:
            if self._process.returncode is not None and self._ready_fd >= 0:
                os.close(self._ready_fd)
                self._ready_fd = -1

    def kill(self) -> None:
        """Now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class WorkerLink:
    """The worker's end of both pipes."""

    def __init__(self, ready_fd: int) -> None:
        self._ready_fd = ready_fd
        os.set_blocking(ready_fd, False)  # a supervisor that does not read must not stop its workers
        length = int.from_bytes(_read_exactly(_LENGTH_BYTES), "big")
        self.job: Any = pickle.loads(_read_exactly(length))  # noqa: S301 - from the process that started this one

    def ready(self) -> None:
        """Tell that this worker accepts, and from now on that its event loop turns."""
        self._say(_READY)
        self._beat()

    def _beat(self) -> None:
        self._say(_TURNING)
        asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _say(self, what: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._ready_fd, what)

    def listen(self, leave: Callable[[], None], stop: Callable[[], None]) -> None:
        """From now on do what comes; the end of the pipe means both."""
        loop = asyncio.get_running_loop()

        def hear() -> None:
            heard = os.read(0, 64)
            if not heard:
                loop.remove_reader(0)
            leave()
            if not heard or STOP in heard:
                stop()

        loop.add_reader(0, hear)


def _read_exactly(count: int) -> bytes:
    # unbuffered: what follows the job belongs to the loop
    read = b""
    while len(read) < count:
        part = os.read(0, count - len(read))
        if not part:
            raise SystemExit("the supervisor is gone")
        read += part
    return read
