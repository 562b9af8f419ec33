"""A target that writes down every request it gets, before it does anything else, and how many of them are in its hands.

A program: ``python -m tests.e2e.recording_upstream <file> <seed>``; it prints its port. The first segment of a path names a
group. It takes its time, and a few requests it does not answer but ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BODY = b"{}"
WORK_MS = (1, 60)
LONG_WORK_MS = (600, 1_500)
LONG, BREAKS = 0.02, 0.01
# A connection may have ended just before a request came on another one, and be noticed in the same turn of the loop or, if
# it was reset, in the next: the new request is counted after that.
TURNS = 3

_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([^\r]*)", re.IGNORECASE)


def received(file: Path) -> Counter[str]:
    """How often each request came."""
    return Counter(line[0] for line in _lines(file) if len(line) == 1)


def most_at_once(file: Path) -> Counter[str]:
    """The most requests of each group that it ever had in its hands."""
    most: Counter[str] = Counter()
    for line in _lines(file):
        if len(line) == 2:
            most[line[0]] = max(most[line[0]], line[1])
    return most


def _lines(file: Path) -> list[list[Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class _Upstream:
    def __init__(self, record: Path, seed: int) -> None:
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.chance = random.Random(seed)
        self.in_hand: Counter[str] = Counter()

    def note(self, *facts: str | int) -> None:
        os.write(self._record, json.dumps(facts).encode() + b"\n")


class _Connection(asyncio.Protocol):
    """One request at a time, as HTTP/1.1 has it without pipelining."""

    def __init__(self, upstream: _Upstream) -> None:
        self._upstream = upstream
        self._buffer = b""
        self._group = ""
        self._is_counted = False
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < len(BODY):
            return
        assert body == BODY
        self._buffer = b""
        found = _REQUEST_ID.search(head)
        assert found is not None
        self._upstream.note(found[1].decode())
        self._group = head.split(b" ", 2)[1].decode().split("/")[1]
        self._work = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        upstream, chance = self._upstream, self._upstream.chance
        breaks, work_ms = chance.random() < BREAKS, chance.randint(*(LONG_WORK_MS if chance.random() < LONG else WORK_MS))
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self._is_counted = True
        upstream.in_hand[self._group] += 1
        upstream.note(self._group, upstream.in_hand[self._group])
        await asyncio.sleep(work_ms / 1_000)
        self._done()
        if breaks:
            self._transport.abort()
        else:
            self._transport.write(REPLY)

    def _done(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._upstream.in_hand[self._group] -= 1

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._work is not None:
            self._work.cancel()
        self._done()


async def _run(record: Path, seed: int) -> None:
    upstream = _Upstream(record, seed)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(upstream), HOST, 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(Path(sys.argv[1]), int(sys.argv[2])))
