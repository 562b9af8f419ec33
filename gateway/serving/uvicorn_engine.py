"""uvicorn: httptools, a parser in C, calls our apps from the event loop. With `uvicorn_connection` the only user of uvicorn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.serving.acceptor import Acceptor
from gateway.serving.certificate import Pair
from gateway.serving.engine import Assignment
from gateway.serving.own_fields import OwnFields
from gateway.serving.uvicorn_connection import Connection


def create_server(assignment: Assignment) -> UvicornServer:
    """See `Engine`."""
    return UvicornServer(assignment)


def check_pair(pair: Pair) -> None:
    """OpenSSL has taken it already."""


class UvicornServer:
    """Serves one listener; see `Server`. uvicorn's own wants signals, the lifespan and the sockets for itself."""

    def __init__(self, assignment: Assignment) -> None:
        self.name = assignment.name
        self.address: tuple[str, int] = assignment.socket.getsockname()[:2]
        self.accepting = asyncio.Event()
        self._assignment = assignment
        self._settings = assignment.settings
        self._own_fields = OwnFields(assignment.signs)
        self._config = _configure(assignment.app)
        self._state = ServerState()
        self._is_stopping = False
        self._lost = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set and every connection has ended."""
        given = self._assignment
        acceptor = Acceptor(self.name, given.socket, given.bounds, given.certificate, self._connect)
        acceptor.start()
        self.accepting.set()
        connections = cast("set[Connection]", self._state.connections)
        try:
            await stop.wait()
            acceptor.close()
            self._is_stopping = True
            for connection in list(connections):
                connection.shutdown()
            await acceptor.settle()
            while connections:
                self._lost.clear()
                await self._lost.wait()
            if self._state.tasks:
                await asyncio.wait(self._state.tasks)
        finally:
            acceptor.close()
            for connection in list(connections):
                connection.transport.abort()

    def cut(self) -> int:
        """Cancel the requests that run; returns how many."""
        for task in self._state.tasks:
            task.cancel()
        return len(self._state.tasks)

    def _connect(self, ended: Callable[[], None]) -> Connection:
        def lost() -> None:
            ended()
            self._lost.set()

        connection = Connection(self._config, self._state, self._settings, self._own_fields, lost)
        if self._is_stopping:  # accepted while the server stopped
            connection.shutdown()
        return connection


def _configure(app: Any) -> Config:
    """Nothing of what uvicorn could do besides."""
    return Config(
        app,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
