"""One listener: its socket, its Hypercorn, and the requests that run in it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import hypercorn.asyncio
from hypercorn.config import Config, Sockets

from gateway.config import ServerSettings
from gateway.errors import ConfigurationError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

BACKLOG = 1024
"""Connections the kernel queues for each listener."""

logger = logging.getLogger("gateway.server")


@dataclass(frozen=True, slots=True)
class Listener:
    """An ASGI app and where it is served. ``name`` is ``admin`` or ``proxy`` for the two that have configuration keys.

    Port 0 takes a free port; ``ready`` of ``serve`` tells which.
    """

    app: ASGIApp
    host: str
    port: int
    name: str


def bind(listener: Listener, write_stall_ms: int) -> socket.socket:
    """Take the listener's address. Raises ConfigurationError that names the key."""
    host = listener.host.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, write_stall_ms)
        sock.bind((host, listener.port))
        sock.listen(BACKLOG)  # only this settles who owns the port
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        is_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        key = f"{listener.name}_{'host' if is_host else 'port'}"
        where = f"server.{key}" if key in ServerSettings.model_fields else listener.name
        shown = f"[{host}]" if ":" in host else host
        raise ConfigurationError(f"{where}: cannot listen on {shown}:{listener.port}: {error.strerror}") from None
    return sock


class Server:
    """Serves one listener. ``accepting`` is set once it does; replies ask clients to close once a ``leaving`` is set."""

    def __init__(self, listener: Listener, config: BoundConfig, leaving: Sequence[asyncio.Event]) -> None:
        self.name = listener.name
        self.address: tuple[str, int] = config.socket.getsockname()[:2]
        self.accepting = asyncio.Event()
        self._app = listener.app
        self._config = config
        self._leaving = leaving
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set and every connection has ended."""

        async def shutdown_trigger() -> None:  # Hypercorn first awaits it when its socket accepts
            self.accepting.set()
            await stop.wait()

        app: Any = self._handle
        try:
            await hypercorn.asyncio.serve(app, self._config, shutdown_trigger=shutdown_trigger, mode="asgi")
        except Exception as error:
            if not stop.is_set():
                raise
            logger.warning("%s: a connection broke while draining: %r", self.name, error)
        while self._running:  # Hypercorn stops waiting for its connections when the first of them ends in an error
            await asyncio.wait(self._running)

    def cut(self) -> int:
        """Cancel the requests that run; returns how many."""
        for task in self._running:
            task.cancel()
        return len(self._running)

    async def _handle(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return  # lifespan_of runs it
        is_http1 = scope["type"] == "http" and scope["http_version"].startswith("1")
        is_lost = False

        async def send_or_lose(message: Message) -> None:
            nonlocal is_lost
            if is_http1 and message["type"] == "http.response.start" and any(event.is_set() for event in self._leaving):
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            try:
                await send(message)
            except OSError:
                is_lost = True
                raise

        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._running.add(task)
        try:
            await self._app(scope, receive, send_or_lose)
        except OSError as error:
            if not is_lost:
                raise
            logger.debug("%s: lost a client: %r", self.name, error)
        finally:
            self._running.discard(task)


class BoundConfig(Config):
    """Serves a socket that is bound already. With ``fd://N`` two objects would own, and close, one descriptor."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def create_sockets(self) -> Sockets:
        """Return the one socket."""
        return Sockets([], [self.socket], [])


def configure(sock: socket.socket, settings: ServerSettings, cleanup_ms: int) -> BoundConfig:
    """Translate the settings into Hypercorn's."""
    config = BoundConfig(sock)
    config.accesslog = None
    config.errorlog = logger
    config.alpn_protocols = ["http/1.1"]
    config.backlog = BACKLOG
    config.include_server_header = False
    config.h11_max_incomplete_size = settings.max_header_bytes
    config.keep_alive_timeout = settings.keep_alive / 1000
    # Its own timeout must come after ours: a second cancellation would interrupt what the first one set to unwind.
    config.graceful_timeout = (settings.drain_timeout + cleanup_ms) / 1000
    return config
