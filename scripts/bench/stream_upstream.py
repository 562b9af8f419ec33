"""An upstream that streams: chat completion chunks at a steady pace, each with the moment when it was written.

    python stream_upstream.py PORT

Knows just enough HTTP/1.1 for the proxies here. ``GET /pace?chunks=N&interval_us=N`` sets what later requests get; a request
whose body does not ask for a stream gets the same small JSON at once.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

MARK = "at="
_CHUNK = (
    'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1750000000,"model":"demo-small",'
    '"choices":[{"index":0,"delta":{%s"content":"at=%d;"},"finish_reason":null}]}\n\n'
)
_END = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1750000000,"model":"demo-small",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_JSON = (
    b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1750000000,"model":"demo-small","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}'
)
_JSON_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_JSON), _JSON)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_PACE = re.compile(rb"GET /pace\?chunks=(\d+)&interval_us=(\d+) ")
_ASKS_STREAM = re.compile(rb'"stream": *true')


class Pace:
    """How many chunks a stream has, and the seconds between two."""

    chunks = 20
    interval_s = 0.02


class Connection(asyncio.Protocol):
    """One client; requests come one after the other."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._received = b""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def connection_lost(self, _error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = _LENGTH.search(head)
        if length is not None and len(rest) < int(length[1]):
            return
        if _CHUNKED.search(head) and not rest.endswith(b"0\r\n\r\n"):
            return
        self._received = b""
        self._answer(head, rest)

    def _answer(self, head: bytes, body: bytes) -> None:
        pace = _PACE.match(head)
        if pace is not None:
            self._pace.chunks, self._pace.interval_s = int(pace[1]), int(pace[2]) / 1e6
        if pace is not None or not _ASKS_STREAM.search(body):
            self._transport.write(_JSON_REPLY)
            return
        self._transport.write(_STREAM_HEAD)
        self._left = self._pace.chunks
        self._interval_s = self._pace.interval_s
        self._next = self._loop.time()
        self._write_chunk('"role":"assistant",')

    def _write_chunk(self, role: str = "") -> None:
        self._left -= 1
        self._write((_CHUNK % (role, time.perf_counter_ns() // 1000)).encode())
        self._next += self._interval_s
        self._timer = self._loop.call_at(self._next, self._write_chunk if self._left > 0 else self._finish)

    def _finish(self) -> None:
        self._write(_END)
        self._transport.write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


async def serve(port: int) -> None:
    """Until killed."""
    pace = Pace()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(pace), "127.0.0.1", port, backlog=8192)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
