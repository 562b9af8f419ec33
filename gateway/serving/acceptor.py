"""Takes connections off a bound socket, for the engines that run in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable

from gateway.serving.bounds import Bounds
from gateway.serving.certificate import HANDSHAKE_S, Certificate

Ended = Callable[[], None]

AT_ONCE = 16
"""Connections that are taken before anything else has its turn."""

PAUSE_S = 0.5
"""How long nothing is accepted when there is no file descriptor or memory left."""

LAST_HANDSHAKE_S = 1.0
"""How long handshakes may go on when the server stops."""

TLS_BUFFER_BYTES = 64 << 10
"""What is kept for a client that does not read, as without TLS; asyncio's and uvloop's own is eight times as much."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"

logger = logging.getLogger("gateway.server")


class Acceptor:
    """Gives each connection to a protocol of its own, after its TLS handshake if there is one.

    ``connect`` makes the protocol; it is given what the protocol has to call when the connection is lost.
    """

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        bounds: Bounds,
        certificate: Certificate | None,
        connect: Callable[[Ended], asyncio.Protocol],
    ) -> None:
        self._name = name
        self._socket = sock
        self._bounds = bounds
        self._certificate = certificate
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    async def settle(self) -> None:
        """Let those that were accepted begin; whose handshake takes longer is cut."""
        if self._beginning:
            await asyncio.wait(self._beginning, timeout=LAST_HANDSHAKE_S)
        for task in self._beginning:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._bounds.refuse(f"not accepted yet: {error.strerror}")
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(PAUSE_S, self.start)
                return
            ended = self._bounds.enter(address[0])
            if ended is None:
                self._refuse(sock)
                continue
            sock.setblocking(False)
            task = self._loop.create_task(self._begin(sock, ended))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    def _refuse(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            if self._certificate is None:
                sock.send(_FULL, socket.MSG_DONTWAIT)

    async def _begin(self, sock: socket.socket, ended: Ended) -> None:
        is_begun = False
        try:
            if self._certificate is None:
                await self._loop.connect_accepted_socket(lambda: self._connect(ended), sock)
            else:
                transport, _ = await self._loop.connect_accepted_socket(
                    lambda: self._connect(ended), sock, ssl=self._certificate.context, ssl_handshake_timeout=HANDSHAKE_S
                )
                transport.set_write_buffer_limits(TLS_BUFFER_BYTES)
            is_begun = True
        except OSError as error:  # what is no TLS, a handshake that takes too long, a client that has left
            logger.debug("%s: no connection: %r", self._name, error)
        finally:
            if not is_begun:
                ended()
                sock.close()
