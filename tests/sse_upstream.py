"""A target that streams exactly what a test says, and knows what of it went out.

    stream = Stream([b"data: 1\\n\\n", 0.05, b"data: 2\\n\\n"], end="reset")
    async with an_sse_upstream(stream) as upstream:
        ...  # ask upstream.url
        await upstream.over(1)
        [play] = upstream.plays
        play.request.body, bytes(play.written), play.texts, play.outcome

The script is a `Stream`, or a function that makes one for each request. Each of its chunks is written by itself and the next
one only when the operating system has taken all of it, so ``written`` is exact: what a client can have received is at most
that. A chunk may hold a part of an event or several. A reset throws away what the operating system still holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.sse_events import texts_in
from tests.wire import HOST, Message, body_parts, eventually, read_head

Step = bytes | float | int
End = Literal["clean", "close", "reset", "hang"]
Outcome = Literal["playing", "clean", "close", "reset", "left"]

_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Stream:
    """What to answer: chunks of the body, and pauses in seconds between them.

    Then it ends: ``clean``, ``close`` (the connection, without the end of the body), ``reset`` (the same as an error), or
    ``hang`` (nothing more, until the client leaves).
    """

    steps: Sequence[Step]
    end: End = "clean"
    status: int = 200
    content_type: str = "text/event-stream; charset=utf-8"

    def cut(self, at: int, end: End = "reset") -> Stream:
        """The same up to that byte of the body, then another end."""
        steps: list[Step] = []
        for step in self.steps:
            if isinstance(step, bytes):
                steps += [step[:at]] if at else []
                at -= min(at, len(step))
            elif at:
                steps.append(step)
        return Stream(steps, end, self.status, self.content_type)

    @property
    def body(self) -> bytes:
        """All of its bytes."""
        return b"".join(step for step in self.steps if isinstance(step, bytes))


@dataclass
class Play:
    """A request and what became of its reply. The request's ``body`` has the exact bytes, ``raw_head`` those of its head."""

    request: Message
    stream: Stream
    written: bytearray = field(default_factory=bytearray)
    outcome: Outcome = "playing"

    @property
    def texts(self) -> list[str]:
        """The texts of the events that were written whole."""
        return texts_in(bytes(self.written))


Script = Stream | Callable[[Message], Stream]


@dataclass
class SseUpstream:
    """Its address, and every request in the order in which their bodies were complete."""

    port: int
    plays: list[Play] = field(default_factory=list, repr=False)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def over(self, count: int, seconds: float = 10.0) -> None:
        """Returns once so many requests came and all of them are over."""
        await eventually(
            lambda: len(self.plays) >= count and not any(play.outcome == "playing" for play in self.plays), seconds
        )


class _Left(Exception):
    """The client closed or reset its connection."""


class _Connection:
    """Requests one after the other, as long as streams end cleanly."""

    def __init__(self, sock: socket.socket, upstream: SseUpstream, script: Script) -> None:
        self._sock, self._upstream, self._script = sock, upstream, script
        self._reader = asyncio.StreamReader(limit=1 << 20)
        self._gone = asyncio.Event()

    async def serve(self) -> None:
        pump = asyncio.create_task(self._pump())
        try:
            # an idle connection is kept: whoever pools it may use it at any time
            while await self._answer(await read_head(self._reader, patience=None)):
                continue
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            self._sock.close()

    async def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(self._sock, 1 << 16):
                self._reader.feed_data(data)
        self._reader.feed_eof()
        self._gone.set()

    async def _answer(self, request: Message) -> bool:
        async for part in body_parts(self._reader, request, until_close=False):
            request.body += part
        stream = self._script if isinstance(self._script, Stream) else self._script(request)
        play = Play(request, stream)
        self._upstream.plays.append(play)
        try:
            await self._play(play)
        except (_Left, ConnectionError):
            play.outcome = "left"
            return False
        if stream.end == "reset":
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        # only "hang" never comes here
        play.outcome = stream.end if stream.end != "hang" else "left"
        return stream.end == "clean"

    async def _play(self, play: Play) -> None:
        stream = play.stream
        head = f"HTTP/1.1 {stream.status} Whatever\r\ncontent-type: {stream.content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
        await self._write(head.encode())
        for step in stream.steps:
            if not isinstance(step, bytes):
                await self._pause(step)
            elif step:
                before = b"%x\r\n" % len(step)
                await self._write(before + step + b"\r\n", body=(play.written, len(before), step))
        if stream.end == "clean":
            await self._write(b"0\r\n\r\n")
        elif stream.end == "hang":
            await self._pause(None)

    async def _pause(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), seconds)
            raise _Left

    async def _write(self, data: bytes, body: tuple[bytearray, int, bytes] | None = None) -> None:
        """Write all; ``body`` is where to note which of its bytes went out, how many bytes stand before them, and they."""
        sent = 0
        while sent < len(data):
            if self._gone.is_set():
                raise _Left
            try:
                count = self._sock.send(data[sent:])
            except BlockingIOError:
                await self._has_room()
                continue
            if body is not None:
                record, start, chunk = body
                record += chunk[max(sent - start, 0) : max(sent + count - start, 0)]
            sent += count
        # a turn of the loop for everyone else
        await asyncio.sleep(0)

    async def _has_room(self) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        loop.add_writer(self._sock, room.set)
        try:
            await room.wait()
        finally:
            loop.remove_writer(self._sock)


@contextlib.asynccontextmanager
async def an_sse_upstream(script: Script, *, port: int = 0) -> AsyncIterator[SseUpstream]:
    """Serve on loopback."""
    loop, connections = asyncio.get_running_loop(), set[asyncio.Task[Any]]()
    with socket.create_server((HOST, port), backlog=1024) as listener:
        listener.setblocking(False)
        upstream = SseUpstream(listener.getsockname()[1])

        async def accept() -> None:
            while True:
                sock, _ = await loop.sock_accept(listener)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                upstream.connections += 1
                task = asyncio.create_task(_Connection(sock, upstream, script).serve())
                connections.add(task)
                task.add_done_callback(connections.discard)

        accepting = asyncio.create_task(accept())
        try:
            yield upstream
        finally:
            accepting.cancel()
            tasks = [accepting, *connections]
            for task in connections:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [each for each in outcomes if isinstance(each, Exception)]
    if broken:
        raise broken[0]
