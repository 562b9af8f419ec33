"""Both ends of gateways in one place: every request has a number, and each end writes down what it saw of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from tests.wire import HOST

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT, LAST = b"9\r\ndata: 1\n\n\r\n", b"0\r\n\r\n"
EVENT_EVERY_S = 0.1
ANSWER_WITHIN_S = 60.0
LOST = (OSError, asyncio.IncompleteReadError, TimeoutError)


@dataclass
class Target:
    """What has reached it, by number. A path with ``stream`` is answered by events for ``stream_s``, others at once."""

    port: int = 0
    stream_s: float = 0.8
    seen: Counter[int] = field(default_factory=Counter)


class _TargetConnection(asyncio.Protocol):
    def __init__(self, target: Target) -> None:
        self._target = target
        self._buffer = b""
        self._stream: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            self._target.seen[int(path.rpartition(b"/")[2])] += 1
            if b"stream" in path:
                self._stream = asyncio.get_running_loop().create_task(self._play())
            else:
                self._transport.write(REPLY)

    async def _play(self) -> None:
        self._transport.write(STREAM_HEAD)
        for _ in range(int(self._target.stream_s / EVENT_EVERY_S)):
            self._transport.write(EVENT)
            await asyncio.sleep(EVENT_EVERY_S)
        self._transport.write(LAST)


@contextlib.asynccontextmanager
async def a_target() -> AsyncIterator[Target]:
    """Serve on loopback."""
    target = Target()
    server = await asyncio.get_running_loop().create_server(lambda: _TargetConnection(target), HOST, 0, backlog=1024)
    target.port = server.sockets[0].getsockname()[1]
    try:
        yield target
    finally:
        server.close()


@dataclass
class Clients:
    """Who ask numbered requests, on connections that they keep, of whichever port takes them.

    ``served`` and ``lost`` are numbers, ``refused`` counts the other statuses. What was lost may have been served as well: its
    connection ended before the whole answer had come.
    """

    ports: Sequence[int]
    host: str
    key: str
    served: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    refused: Counter[int] = field(default_factory=Counter)
    asked: int = 0
    longest_s: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def at_work(self, short: int, streaming: int, path: str = "/short", pause_s: float = 0.0) -> AsyncIterator[None]:
        """So many of each until the context ends; then they wait for their answers."""
        async with asyncio.TaskGroup() as group:
            for number in range(short + streaming):
                chosen = path if number < short else "/stream"
                group.create_task(self._ask_on(chosen, random.Random(number), pause_s))
            try:
                yield
            finally:
                self.stop.set()

    async def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Returns once the condition holds. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # other tasks make it true
                await asyncio.sleep(0.02)

    async def _ask_on(self, path: str, chance: random.Random, pause_s: float) -> None:
        while not self.stop.is_set():
            try:
                reader, writer = await asyncio.open_connection(HOST, chance.choice(self.ports))
            except OSError:  # a replica is down
                await asyncio.sleep(0.02)
                continue
            try:
                while not self.stop.is_set() and not reader.at_eof():
                    await self._ask(reader, writer, path)
                    if pause_s:
                        await asyncio.sleep(chance.uniform(0, 2 * pause_s))
            except LOST:
                pass
            finally:
                writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        number = self.asked
        self.asked += 1
        began = time.monotonic()
        head = f"GET {path}/{number} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.key}\r\n\r\n"
        self.lost.add(number)  # until an answer is here
        writer.write(head.encode())
        async with asyncio.timeout(ANSWER_WITHIN_S):
            status = await _answer(reader)
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        self.lost.discard(number)
        if status == 200:
            self.served.add(number)
        else:
            self.refused[status] += 1


async def _answer(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"\r\ntransfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        await reader.readexactly(int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1])
