"""A client that keeps a gateway busy and writes down what it sent and what it was told, before and after each request.

A program: ``python -m tests.e2e.load_client <file>`` with a `Load` as JSON in the file. It ends in order on SIGTERM: it waits
for the answers that are due. Whatever else ends it, its receipts hold every request that it may have sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
ANSWER_WITHIN_S = 30.0


@dataclass(frozen=True)
class Load:
    """What to send. ``callers`` are host, key and path; a share of ``leaves`` hangs up before the answer is here."""

    name: str
    receipts: str
    ports: list[int]
    callers: list[tuple[str, str, str]]
    coroutines: int
    pause_ms: int
    leaves: float
    seed: int

    def write(self, path: Path) -> None:
        """For the program."""
        path.write_text(json.dumps(asdict(self)))


@dataclass
class Receipt:
    """What became of one request: ``sent`` and no more if the client was killed, ``answered``, ``left`` if the client hung up,
    ``broken`` if the gateway did. Times are on the machine's monotonic clock; ``connecting_s`` is that of its connection.
    """

    port: int
    path: str
    connecting_s: float
    sent_s: float
    outcome: str = "sent"
    status: int = 0
    code: str = ""
    ended_s: float = 0.0


def receipts(files: Iterable[Path]) -> dict[str, Receipt]:
    """By request id. A line that is not complete is of a client that was killed while it wrote it, before it sent anything."""
    found: dict[str, Receipt] = {}
    for file in files:
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                what, request_id, at_s, *facts = json.loads(line)
                if what == "sent":
                    assert request_id not in found
                    port, path, connecting_s = facts
                    found[request_id] = Receipt(port, path, connecting_s, at_s)
                else:
                    receipt = found[request_id]
                    receipt.outcome, receipt.ended_s = what, at_s
                    receipt.status, receipt.code = facts or (0, "")
    return found


class _Client:
    def __init__(self, load: Load, leaving: asyncio.Event) -> None:
        self._load = load
        self._leaving = leaving
        self._receipts = os.open(load.receipts, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _note(self, what: str, request_id: str, *facts: Any) -> None:
        os.write(self._receipts, json.dumps([what, request_id, time.monotonic(), *facts]).encode() + b"\n")

    async def work(self, number: int) -> None:
        """One request after the other, on connections that last as long as they can."""
        load, chance = self._load, random.Random(f"{self._load.seed} {number}")
        host, key, path = load.callers[number % len(load.callers)]
        ids = (f"{load.name}-{number}-{count}" for count in itertools.count())
        while not self._leaving.is_set():
            port, connecting_s = chance.choice(load.ports), time.monotonic()
            try:
                reader, writer = await asyncio.open_connection(HOST, port)
            except OSError:  # the replica is down
                await self._pause(100)
                continue
            while not self._leaving.is_set() and not reader.at_eof():
                request_id = next(ids)
                self._note("sent", request_id, port, path, connecting_s)
                head = f"Host: {host}\r\nAuthorization: Bearer {key}\r\nX-Request-Id: {request_id}\r\nContent-Length: 2"
                writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n\r\n{{}}".encode())
                if chance.random() < load.leaves:
                    await self._pause(chance.randint(0, 30))
                    self._note("left", request_id)
                    break
                try:
                    status, code = await asyncio.wait_for(_answer(reader), ANSWER_WITHIN_S)
                except (OSError, EOFError, ValueError):  # ended, or no answer at all
                    self._note("broken", request_id)
                    break
                self._note("answered", request_id, status, code)
                await self._pause(chance.randint(0, 2 * load.pause_ms))
            writer.transport.abort()

    async def _pause(self, milliseconds: int) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), milliseconds / 1_000)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    if "\r\ntransfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(head.partition("\r\ncontent-length:")[2].partition("\r\n")[0]))
    status = int(head.split(" ", 2)[1])
    return status, json.loads(body)["error"]["code"] if status >= 400 else ""


async def _run(load: Load) -> None:
    leaving = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leaving.set)
    client = _Client(load, leaving)
    async with asyncio.TaskGroup() as tasks:
        for number in range(load.coroutines):
            tasks.create_task(client.work(number))


if __name__ == "__main__":
    asyncio.run(_run(Load(**json.loads(Path(sys.argv[1]).read_text()))))
