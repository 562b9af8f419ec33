"""Ends connections that are too many for one address or idle, for an engine that has them in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.serving.bounds import Bounds
from gateway.targets import subscriber

EVERY_S = 0.5

IS_ABLE = sys.platform == "linux"
"""Elsewhere nobody tells which connections there are."""

Peer = tuple[str, str]
"""Address and port, as Granian tells them."""

_FILES = Path("/proc/self/fd")


class Activity:
    """Which connections have had nothing to do for ``idle_s``, or for ``first_s`` without a request from the beginning.

    They are known by the address of their client.
    """

    def __init__(self, idle_s: float, first_s: float) -> None:
        self._idle_s = idle_s
        self._first_s = first_s
        self._running: dict[Peer, int] = {}
        self._ended: dict[Peer, float] = {}

    def begin(self, client: tuple[str, str]) -> None:
        """A request has begun."""
        self._running[client] = self._running.get(client, 0) + 1

    def end(self, client: tuple[str, str]) -> None:
        """A request has ended."""
        left = self._running[client] - 1
        if left:
            self._running[client] = left
        else:
            del self._running[client]
            self._ended[client] = time.monotonic()

    def is_idle(self, client: Peer, since: float) -> bool:
        """Whether a connection that is there ``since`` then has been idle for too long."""
        if client in self._running:
            return False
        ended = self._ended.get(client)  # may be that of a connection before this one
        if ended is None:
            return time.monotonic() - since > self._first_s
        return time.monotonic() - max(ended, since) > self._idle_s

    def keep(self, clients: Collection[Peer]) -> None:
        """Forget all others; their connections have ended."""
        self._ended = {client: at for client, at in self._ended.items() if client in clients}


@dataclass(slots=True)
class _Connection:
    """``subscriber`` is who it is counted for, if for anybody."""

    inode: int
    client: Peer
    subscriber: str | None
    since: float
    is_ended: bool = False


class Sweeper:
    """Looks through the open files of this process for connections to a port. Works where `IS_ABLE`."""

    def __init__(self, port: int, bounds: Bounds, activity: Activity) -> None:
        self._port = port
        self._bounds = bounds
        self._activity = activity
        # by file descriptor, oldest first; other open files by their inode
        self._known: dict[int, _Connection | int] = {}

    async def run(self) -> None:
        """Sweep for ever."""
        while IS_ABLE:
            await asyncio.sleep(EVERY_S)
            self.sweep()

    def sweep(self) -> None:
        """Shut down the youngest connections of each address that has too many, and idle ones; the engine sees them end."""
        fds = [int(name) for name in os.listdir(_FILES)]  # noqa: PTH208 - paths would take longer than all the rest
        now: dict[int, int] = {}
        for fd in fds:
            with contextlib.suppress(OSError):
                found = os.fstat(fd)
                if stat.S_ISSOCK(found.st_mode):
                    now[fd] = found.st_ino
        self._known = {fd: known for fd, known in self._known.items() if now.get(fd) == _inode_of(known)}
        for fd, inode in now.items():
            if fd not in self._known:
                self._known[fd] = self._connection(fd, inode) or inode
        connections = {fd: known for fd, known in self._known.items() if isinstance(known, _Connection)}
        if self._bounds.per_ip:
            self._end_excess(connections)
        self._activity.keep({connection.client for connection in connections.values()})
        for fd, connection in connections.items():
            if self._activity.is_idle(connection.client, connection.since):
                self._end(fd, connection)

    def _end_excess(self, connections: Mapping[int, _Connection]) -> None:
        counts: dict[str, int] = {}
        for fd, connection in connections.items():
            who = connection.subscriber
            if who is not None:
                counts[who] = counts.get(who, 0) + 1
                if counts[who] > self._bounds.per_ip and self._end(fd, connection):
                    self._bounds.refuse(f"server.max_connections_per_ip, {who}")

    def _connection(self, fd: int, inode: int) -> _Connection | None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == self._port:
                host, port = sock.getpeername()[:2]  # a listening socket has none
                counted = None if self._bounds.is_exempt(host) else subscriber(host)
                return _Connection(inode, (host, str(port)), counted, time.monotonic())
        return None

    def _end(self, fd: int, connection: _Connection) -> bool:
        """Whether it ended now."""
        if connection.is_ended:
            return False
        # the descriptor may be another's by now, but not the copy
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
            if os.fstat(sock.fileno()).st_ino == connection.inode:
                connection.is_ended = True
                sock.shutdown(socket.SHUT_RDWR)
        return connection.is_ended


def _inode_of(known: _Connection | int) -> int:
    return known if isinstance(known, int) else known.inode
