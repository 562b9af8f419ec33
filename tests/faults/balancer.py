"""A load balancer for tests: it passes connections on, unchanged, to whichever of its members says that it is ready.

It does what balancers of this kind do and no more: it asks ``/health/ready`` at intervals, gives a member that is not ready no
new connection, tries the next one where none listens, and leaves what is connected alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from tests.wire import HOST

CHECK_EVERY_S = 0.05
CHECK_WITHIN_S = 2.0
ASK_HEALTH = b"GET /health/ready HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"


class Balancer:
    """Its address, and which of its members were ready when it asked last."""

    def __init__(self, members: Sequence[int]) -> None:
        self.port = 0
        self.ready: set[int] = set()
        self._members = list(members)
        self._turn = 0

    async def watch(self, member: int) -> None:
        """Ask a member how it is, for ever."""
        while True:
            if await _is_ready(member):
                self.ready.add(member)
            else:
                self.ready.discard(member)
            await asyncio.sleep(CHECK_EVERY_S)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join a client's connection to a new one of a member."""
        try:
            found = await self._connect()
            if found is None:
                return
            their_reader, their_writer = found
            try:
                await asyncio.gather(_pass_on(reader, their_writer), _pass_on(their_reader, writer))
            finally:
                their_writer.transport.abort()
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        self._turn += 1
        order = [*self._members[self._turn % len(self._members) :], *self._members[: self._turn % len(self._members)]]
        for member in sorted(order, key=lambda member: member not in self.ready):
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(HOST, member)
        return None


@contextlib.asynccontextmanager
async def a_balancer(members: Sequence[int]) -> AsyncIterator[Balancer]:
    """Serve on loopback in front of these ports."""
    balancer = Balancer(members)
    taken: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        taken.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await balancer.take(reader, writer)
        finally:
            taken.discard(task)

    watches = [asyncio.create_task(balancer.watch(member)) for member in members]
    server = await asyncio.start_server(serve, HOST, 0, backlog=1024)
    balancer.port = server.sockets[0].getsockname()[1]
    try:
        yield balancer
    finally:
        server.close()
        for task in (*watches, *taken):
            task.cancel()
        await asyncio.gather(*watches, *taken, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end, which is passed on too. An error of one side ends both."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _is_ready(port: int) -> bool:
    writer = None
    try:
        async with asyncio.timeout(CHECK_WITHIN_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(ASK_HEALTH)
            return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        if writer is not None:
            writer.transport.abort()
