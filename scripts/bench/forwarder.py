"""What the way to a target costs: microseconds of CPU for each request and for each chunk of a stream.

    python -m scripts.bench.forwarder [--requests N] [--rounds N] [--loops uvloop,asyncio]

The upstream is a process of its own that answers without parsing; what is measured is the CPU time of this process, which does
nothing but forward. Times are those of the quickest round: whatever else runs on the machine only adds to them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import cast

import uvloop

from gateway.config import UpstreamSettings
from gateway.forwarder import Forwarder, UpstreamReply
from gateway.targets import Target

REPLY = b'{"id":"chatcmpl-1","object":"chat.completion","text":"' + b"x" * 944 + b'"}'
WHOLE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: bench\r\nx-request-id: 0123456789abcdef\r\n"
    b"openai-processing-ms: 12\r\ncontent-length: %d\r\n\r\n" % len(REPLY)
) + REPLY
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
PACE_SECONDS = 0.004
SETTINGS = {"allowed_networks": "127.0.0.0/8", "pool_size": 10_000}
BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"' + b"y" * 400 + b'"}]}'
FIELDS = [
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"OpenAI/Python 1.99.1"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-package-version", b"1.99.1"),
    (b"x-stainless-os", b"Linux"),
    (b"x-stainless-arch", b"x64"),
    (b"x-forwarded-for", b"203.0.113.7"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"acme.gateway.example"),
    (b"x-request-id", b"req_0123456789abcdef0123456789abcdef"),
    (b"authorization", b"Bearer sk-0123456789abcdef0123456789abcdef"),
]


class _Canned(asyncio.Protocol):
    """Answers each write of a client: a request comes in one piece here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST /stream"):
            self.left = int(data.split(b" ", 2)[1].rpartition(b"=")[2])
            self.transport.write(STREAM)
            asyncio.get_running_loop().call_later(PACE_SECONDS, self.chunk)
        elif data.startswith(b"POST /idle"):
            self.transport.write(STREAM + CHUNK)
        elif data.startswith(b"POST "):
            self.transport.write(WHOLE)

    def chunk(self) -> None:
        self.left -= 1
        if self.transport.is_closing():
            return
        if self.left < 0:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(CHUNK)
        asyncio.get_running_loop().call_later(PACE_SECONDS, self.chunk)


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Canned, "127.0.0.1", 0, backlog=10_000)
        pipe.send(server.sockets[0].getsockname()[1])
        # ends with the process that asked for it
        await asyncio.get_running_loop().run_in_executor(None, pipe.poll, None)

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        uvloop.run(serve())


async def _one(forwarder: Forwarder, target: Target) -> None:
    reply = await forwarder.open(target, "POST", target.url("/v1/chat/completions", ""), FIELDS, BODY, None)
    try:
        assert await reply.read(1 << 20) == REPLY
    finally:
        reply.close()


async def _stream(forwarder: Forwarder, target: Target, chunks: int) -> None:
    reply = await forwarder.open(target, "POST", target.url("/stream", f"n={chunks}"), FIELDS, BODY, None)
    size = 0
    try:
        async for chunk in reply.chunks():
            size += len(chunk)
    finally:
        reply.close()
    assert size == chunks * len(EVENT)


async def _cpu_micros(work: Callable[[], Awaitable[object]], count: int) -> float:
    started = time.process_time()
    await work()
    return (time.process_time() - started) * 1e6 / count


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


async def _measure(port: int, requests: int, rounds: int) -> dict[str, float]:
    forwarder = Forwarder(UpstreamSettings.model_validate(SETTINGS))
    await forwarder.start()
    target = Target("http", "127.0.0.1", port, "", inner=True)

    async def some(at_once: int) -> None:
        async def several() -> None:
            for _ in range(requests // at_once):
                await _one(forwarder, target)

        await asyncio.gather(*(several() for _ in range(at_once)))

    async def streams(at_once: int, chunks: int) -> None:
        await asyncio.gather(*(_stream(forwarder, target, chunks) for _ in range(at_once)))

    found: dict[str, float] = {}

    def note(row: str, micros: float) -> None:
        found[row] = min(micros, found.get(row, micros))

    await some(32)
    for _ in range(rounds):
        note("request, 1 at once", await _cpu_micros(lambda: some(1), requests))
        note("request, 32 at once", await _cpu_micros(lambda: some(32), requests // 32 * 32))
        note("chunk, 1 stream", await _cpu_micros(lambda: streams(1, 250), 250))
        note("chunk, 32 streams", await _cpu_micros(lambda: streams(32, 100), 3_200))
    await forwarder.stop()
    return found


async def _measure_memory(port: int) -> dict[str, float]:
    forwarder = Forwarder(UpstreamSettings.model_validate(SETTINGS))
    await forwarder.start()
    target = Target("http", "127.0.0.1", port, "", inner=True)

    async def opened(count: int) -> list[UpstreamReply]:
        return [await forwarder.open(target, "POST", target.url("/idle", ""), FIELDS, BODY, None) for _ in range(count)]

    replies = await opened(200)
    before = _resident_bytes()
    replies += await opened(1_000)
    found = (_resident_bytes() - before) / 1_000
    for reply in replies:
        reply.close()
    await forwarder.stop()
    return {"bytes of memory, each open stream": found}


def _run(loop: str, port: int, requests: int, rounds: int) -> dict[str, float]:
    run = uvloop.run if loop == "uvloop" else asyncio.run
    # no rounds: memory is counted in a process that has not used any yet
    return run(_measure(port, requests, rounds) if rounds else _measure_memory(port))


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3_200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loops", default="uvloop,asyncio")
    given = parser.parse_args()
    near, far = multiprocessing.Pipe()
    upstream = multiprocessing.get_context("spawn").Process(target=_serve, args=(far,), daemon=True)
    upstream.start()
    try:
        port = near.recv()
        rows: dict[str, dict[str, float]] = {}
        for name in given.loops.split(","):
            rows[name] = {}
            for rounds in (given.rounds, 0):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
                    rows[name] |= executor.submit(_run, name, port, given.requests, rounds).result()
        print("| CPU µs of the client | " + " | ".join(rows) + " |")
        print("|---" * (len(rows) + 1) + "|")
        for row in next(iter(rows.values())):
            print(f"| {row} | " + " | ".join(f"{found[row]:,.0f}" for found in rows.values()) + " |")
    finally:
        near.close()
        upstream.join(5)
        upstream.kill()


if __name__ == "__main__":
    _main()
