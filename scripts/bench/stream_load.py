"""A client of many streams at once that notes when each chunk arrives."""

from __future__ import annotations

import asyncio
import http.client
import re
import time
from dataclasses import dataclass, field, replace
from typing import cast

import uvloop

from scripts.bench.load import Request, chat_body
from scripts.bench.processes import HOST
from scripts.bench.stream_upstream import MARK

_WRITTEN_AT = re.compile(MARK.encode() + rb"(\d+);")
_LONGEST_MARK = 24
RAMP_AT_ONCE = 50


@dataclass
class Streamed:
    """What arrived. Delays are from the moment the upstream wrote a chunk, in microseconds."""

    ended: int = 0
    failed: int = 0
    first_failure: str = ""
    first_us: list[int] = field(default_factory=list)
    delays_us: list[int] = field(default_factory=list)

    def fail(self, why: str, count: int = 1) -> None:
        """The first reason is kept for the notes."""
        self.failed += count
        self.first_failure = self.first_failure or why


def set_pace(port: int, chunks: int, interval_us: int) -> None:
    """Tell the upstream what later streams are like."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request("GET", f"/pace?chunks={chunks}&interval_us={interval_us}")
    connection.getresponse().read()
    connection.close()


def stream_request(request: Request) -> Request:
    """The same that asks for a stream."""
    return replace(request, body=chat_body(stream=True))


def packed(request: Request) -> bytes:
    """As it goes over the wire."""
    headers = {"Host": f"{HOST}:{request.port}", "Content-Type": "application/json", **request.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    body = request.body.encode()
    return f"POST {request.path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


class StreamClient(asyncio.Protocol):
    """One connection that asks for so many streams, one after the other."""

    def __init__(self, request: bytes, streams: int, streamed: Streamed, over: asyncio.Future[None]) -> None:
        self._request = request
        self._left = streams
        self._streamed = streamed
        self._over = over
        self._tail = b""
        self._is_first_read = True
        self.has_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._ask()

    def _ask(self) -> None:
        self._left -= 1
        self._is_first_read = True
        self._asked_us = time.perf_counter_ns() // 1000
        self.has_begun = False
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_us = time.perf_counter_ns() // 1000
        if self._is_first_read and not data.startswith(b"HTTP/1.1 200"):
            self._end(failure=f"answered {data[:200]!r}")
            return
        self._is_first_read = False
        seen = self._tail + data
        marks = list(_WRITTEN_AT.finditer(seen))
        self._streamed.delays_us.extend(now_us - int(mark[1]) for mark in marks)
        if marks and not self.has_begun:
            self.has_begun = True
            self._streamed.first_us.append(now_us - self._asked_us)
        # what a chunk boundary may have cut; not what was counted already
        kept = max(marks[-1].end() if marks else 0, len(seen) - _LONGEST_MARK)
        self._tail = seen[kept:]
        if seen.endswith(b"0\r\n\r\n"):
            self._end(failure="" if self.has_begun else f"ended without a chunk, with {seen!r}")

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._over.done():
            self._left = 0
            self._end(failure=f"connection lost after {self._tail!r}")

    def _end(self, *, failure: str = "") -> None:
        self._tail = b""
        if failure:
            self._streamed.fail(failure)
        else:
            self._streamed.ended += 1
        if not failure and self._left > 0:
            self._ask()
        elif not self._over.done():
            self._over.set_result(None)
            self._transport.close()


class OpenStreams:
    """Connections that stream, for those who look at something else meanwhile."""

    def __init__(self, request: Request, *, connections: int, streams: int = 1) -> None:
        self._request = request
        self._connections = connections
        self._streams = streams
        self.streamed = Streamed()
        self._clients: list[StreamClient] = []
        self._over: list[asyncio.Future[None]] = []

    async def open(self) -> None:
        """Connect all, not all at the same instant."""
        loop = asyncio.get_running_loop()
        data = packed(self._request)
        for number in range(self._connections):
            over = loop.create_future()
            client = StreamClient(data, self._streams, self.streamed, over)
            await loop.create_connection(lambda client=client: client, HOST, self._request.port)  # type: ignore[misc]
            self._clients.append(client)
            self._over.append(over)
            if number % RAMP_AT_ONCE == RAMP_AT_ONCE - 1:
                await asyncio.sleep(0.05)

    @property
    def begun(self) -> int:
        """How many have received a chunk of their present stream."""
        return sum(client.has_begun for client in self._clients)

    async def wait(self, timeout_s: float) -> None:
        """Until all have ended. What has not by then counts as failed."""
        _, pending = await asyncio.wait(self._over, timeout=timeout_s)
        if pending:
            self.streamed.fail(f"no end after {timeout_s:g} s", len(pending))
        self.close()

    def close(self) -> None:
        """Leave whatever still streams, without counting it."""
        for client, over in zip(self._clients, self._over, strict=True):
            if not over.done():
                over.set_result(None)
                client._transport.abort()


def run_streams(request: Request, *, connections: int, streams: int, timeout_s: float) -> Streamed:
    """So many streams on each of so many connections."""

    async def run() -> Streamed:
        load = OpenStreams(stream_request(request), connections=connections, streams=streams)
        await load.open()
        await load.wait(timeout_s)
        return load.streamed

    return uvloop.run(run())
