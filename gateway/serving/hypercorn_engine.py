"""Hypercorn: the default engine, all Python. The only user of hypercorn."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

import hypercorn.asyncio
from hypercorn.config import Config, Sockets

from gateway.config import ServerSettings
from gateway.serving.engine import Assignment
from gateway.serving.listener import BACKLOG, Message, Receive, Send

logger = logging.getLogger("gateway.server")


def create_server(assignment: Assignment) -> HypercornServer:
    """See `Engine`."""
    return HypercornServer(assignment)


class HypercornServer:
    """Serves one listener; see `Server`."""

    def __init__(self, assignment: Assignment) -> None:
        self.name = assignment.name
        self.address: tuple[str, int] = assignment.socket.getsockname()[:2]
        self.accepting = asyncio.Event()
        self._app = assignment.app
        self._config = _configure(assignment.socket, assignment.settings, assignment.cleanup_ms)
        self._signs = assignment.signs
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
            if is_http1 and message["type"] == "http.response.start" and any(event.is_set() for event in self._signs):
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


class _BoundConfig(Config):
    """Serves a socket that is bound already. With ``fd://N`` two objects would own, and close, one descriptor."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def create_sockets(self) -> Sockets:
        """Return the one socket."""
        return Sockets([], [self.socket], [])


def _configure(sock: socket.socket, settings: ServerSettings, cleanup_ms: int) -> _BoundConfig:
    """Translate the settings into Hypercorn's."""
    config = _BoundConfig(sock)
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
