"""Hypercorn: the default engine, all Python. The only user of hypercorn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import AppWrapper

from gateway.config import ServerSettings
from gateway.serving.acceptor import Acceptor
from gateway.serving.certificate import Pair
from gateway.serving.engine import Assignment
from gateway.serving.hypercorn_connection import ClientLost, Connection
from gateway.serving.own_fields import OwnFields

logger = logging.getLogger("gateway.server")


def create_server(assignment: Assignment) -> HypercornServer:
    """See `Engine`."""
    return HypercornServer(assignment)


def check_pair(pair: Pair) -> None:
    """OpenSSL has taken it already."""


class HypercornServer:
    """Serves one listener; see `Server`."""

    def __init__(self, assignment: Assignment) -> None:
        self.name = assignment.name
        self.address: tuple[str, int] = assignment.socket.getsockname()[:2]
        self.accepting = asyncio.Event()
        self._app = assignment.app
        self._assignment = assignment
        self._config = _configure(assignment.settings, assignment.signs)
        self._head_timeout_s = assignment.settings.first_header_timeout / 1000
        self._connections: dict[Connection, asyncio.Task[Any]] = {}
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set and every connection has ended."""
        loop = asyncio.get_running_loop()
        context = WorkerContext(None)

        async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = Connection(
                cast("AppWrapper", self._handle), loop, self._config, context, {}, reader, writer, self._head_timeout_s
            )
            self._connections[connection] = cast("asyncio.Task[Any]", asyncio.current_task())
            try:
                await connection
            finally:
                del self._connections[connection]

        def connect(ended: Callable[[], None]) -> asyncio.Protocol:
            return _StreamProtocol(asyncio.StreamReader(loop=loop), serve_connection, ended, loop)

        given = self._assignment
        acceptor = Acceptor(self.name, given.socket, given.bounds, given.certificate, connect)
        acceptor.start()
        self.accepting.set()
        try:
            await stop.wait()
            acceptor.close()
            await context.terminated.set()
            for connection in list(self._connections):
                connection.stop()
            await acceptor.settle()
            while self._connections:
                await asyncio.wait(self._connections.values())
        finally:
            acceptor.close()
            for task in self._connections.values():
                task.cancel()

    def cut(self) -> int:
        """Cancel the requests that run; returns how many."""
        for task in self._running:
            task.cancel()
        return len(self._running)

    async def _handle(self, scope: Any, receive: Any, send: Any, _sync_spawn: Any, _call_soon: Any) -> None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._running.add(task)
        try:
            await self._app(scope, receive, send)
        except ClientLost as error:
            logger.debug("%s: lost a client: %r", self.name, error)
        finally:
            self._running.discard(task)


class _StreamProtocol(asyncio.StreamReaderProtocol):
    """Tells when the connection is lost."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        serve_connection: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        ended: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(reader, serve_connection, loop=loop)
        self._ended = ended

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._ended()
        super().connection_lost(exc)


class _Config(Config):
    """Adds to each reply what the server itself has to say."""

    def __init__(self, signs: Sequence[asyncio.Event]) -> None:
        self._own_fields = OwnFields(signs)

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """See `OwnFields`."""
        del protocol
        return self._own_fields.now()


def _configure(settings: ServerSettings, signs: Sequence[asyncio.Event]) -> Config:
    """Translate the settings into Hypercorn's."""
    config = _Config(signs)
    config.accesslog = None
    config.errorlog = logger
    config.h11_max_incomplete_size = settings.max_header_bytes
    config.keep_alive_timeout = settings.keep_alive / 1000
    return config
