"""A target that counts what reaches it, in the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from tests.e2e.calls import HOST

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class CountingUpstream:
    """Counts requests by path. It answers at once, or, after ``hold()``, when ``let_go()`` is called."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: Counter[str] = Counter()
        self.connections: set[asyncio.Transport] = set()
        self._is_holding = False
        self._held: list[asyncio.Transport] = []

    def hold(self) -> None:
        """From now on nothing is answered."""
        self._is_holding = True

    def let_go(self) -> None:
        """Answer what was held, and everything from now on."""
        self._is_holding = False
        for connection in self._held:
            connection.write(REPLY)
        self._held.clear()

    async def has_seen(self, count: int) -> None:
        """Wait until so many requests have arrived."""
        async with asyncio.timeout(60):
            while self.seen.total() < count:  # noqa: ASYNC110  # they come from other processes
                await asyncio.sleep(0.01)

    async def all_gone(self) -> None:
        """Wait until no connection is left."""
        while self.connections:  # noqa: ASYNC110  # one turn of the loop for each callback that is due
            await asyncio.sleep(0)

    def take(self, head: bytes, connection: asyncio.Transport) -> None:
        """A whole request head arrived."""
        self.seen[head.split(b" ", 2)[1].decode()] += 1
        if self._is_holding:
            self._held.append(connection)
        else:
            connection.write(REPLY)


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: CountingUpstream) -> None:
        self._upstream = upstream
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._upstream.connections.add(transport)

    def data_received(self, data: bytes) -> None:
        *heads, self._buffer = (self._buffer + data).split(b"\r\n\r\n")
        for head in heads:
            self._upstream.take(head, self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.connections.discard(self._transport)


@contextlib.asynccontextmanager
async def counting_upstream() -> AsyncIterator[CountingUpstream]:
    """One on a free port; it knows only requests without a body."""
    upstream = CountingUpstream()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(upstream), HOST, 0)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for connection in list(upstream.connections):
            connection.abort()
        await upstream.all_gone()
