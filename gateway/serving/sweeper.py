"""Ends connections beyond the bound for one address, for an engine that accepts them in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import sys
from pathlib import Path

from gateway.serving.bounds import Bounds, subscriber_of

EVERY_S = 0.5

_FILES = Path("/proc/self/fd")


class Sweeper:
    """Looks through the open files of this process for connections to a port. Linux only; elsewhere it does nothing."""

    def __init__(self, port: int, bounds: Bounds) -> None:
        self._port = port
        self._bounds = bounds
        # by file descriptor, oldest first: which socket that was, and whose connection it is
        self._known: dict[int, tuple[int, str | None]] = {}

    async def run(self) -> None:
        """Sweep for ever."""
        while sys.platform == "linux" and self._bounds.per_ip:
            await asyncio.sleep(EVERY_S)
            self.sweep()

    def sweep(self) -> None:
        """Shut down the youngest connections of each address that has too many; the engine sees them end."""
        fds = [int(name) for name in os.listdir(_FILES)]  # noqa: PTH208 - paths would take longer than all the rest
        if len(fds) <= self._bounds.per_ip:
            self._known.clear()
            return
        now: dict[int, int] = {}
        for fd in fds:
            with contextlib.suppress(OSError):
                found = os.fstat(fd)
                if stat.S_ISSOCK(found.st_mode):
                    now[fd] = found.st_ino
        self._known = {fd: known for fd, known in self._known.items() if now.get(fd) == known[0]}
        for fd, inode in now.items():
            if fd not in self._known:
                self._known[fd] = inode, self._client_of(fd)
        counts: dict[str, int] = {}
        for fd, (inode, subscriber) in self._known.items():
            if subscriber is not None:
                counts[subscriber] = counts.get(subscriber, 0) + 1
                if counts[subscriber] > self._bounds.per_ip:
                    self._end(fd, inode, subscriber)

    def _client_of(self, fd: int) -> str | None:
        """Who is counted for it; None if it is no connection to the port, or one without a bound."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == self._port:
                subscriber = subscriber_of(sock.getpeername()[0])  # a listening socket has no peer
                return None if self._bounds.is_exempt(subscriber) else subscriber
        return None

    def _end(self, fd: int, inode: int, subscriber: str) -> None:
        # the descriptor may be another's by now, but not the copy
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if os.fstat(sock.fileno()).st_ino == inode:
                sock.shutdown(socket.SHUT_RDWR)
                self._bounds.refuse(f"server.max_connections_per_ip, {subscriber}")
