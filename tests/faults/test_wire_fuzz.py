"""Mutated requests against a real gateway on each engine, with requests behind them that must not be taken for anything else.

What reaches the target is compared with what a parser of the tests' own makes of the same bytes. ``GATEWAY_WIRE_FUZZ`` says how
many requests are sent over all engines, ``GATEWAY_WIRE_FUZZ_SEED`` how they begin.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.amounts import amount, figure
from tests.e2e.processes import HOST, a_gateway, a_rule
from tests.engines import ENGINE
from tests.raw_requests import Maker
from tests.servers import short_directory
from tests.strict_http import TAKEN, Parsed, Request, parse

REQUESTS = amount("GATEWAY_WIRE_FUZZ", 18_000)
SEED = int(os.environ.get("GATEWAY_WIRE_FUZZ_SEED", "0")) or time.time_ns() % 1_000_000
CONNECTIONS = 48
PATIENCE_S = 20.0
SHOWN = 10
REFUSALS = frozenset({400, 404, 405, 408, 413, 414, 415, 421, 426, 431, 401, 417, 505})

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SEEN = re.compile(rb"\r\nx-seen: *(\w+)", re.IGNORECASE)
_BEGINNING = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ /")


def seal(request: Request) -> str:
    """Names a request by what must not change on the way."""
    return hashlib.sha256(b"\0".join(request.facts)).hexdigest()[:24]


@dataclass
class Target:
    """What reached the upstream whole, and what was wrong with it."""

    seen: Counter[str] = field(default_factory=Counter)
    requests: dict[str, Request] = field(default_factory=dict)
    transports: set[asyncio.Transport] = field(default_factory=set)
    wrong: list[bytes] = field(default_factory=list)


class _Upstream(asyncio.Protocol):
    def __init__(self, target: Target, authority: bytes) -> None:
        self._target, self._authority, self._buffer = target, authority, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._target.transports.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._target.transports.discard(self._transport)
        # a request may be given up, but whatever came behind an answer begins like one
        if self._buffer and not _BEGINNING.match(self._buffer):
            self._target.wrong.append(self._buffer)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        parsed = parse(self._buffer)
        # a request is answered before anything may follow it, even what could become another one
        if parsed.ending == "invalid" or len(parsed.requests) > 1 or (parsed.requests and parsed.ending != "clean"):
            self._target.wrong.append(self._buffer)
            self._buffer = b""
            self._transport.abort()
        elif parsed.requests:
            (request,), self._buffer = parsed.requests, b""
            if request.all(b"host") != [self._authority] or not request.target.startswith(b"/"):
                self._target.wrong.append(data)
            name = seal(request)
            self._target.seen[name] += 1
            self._target.requests[name] = request
            self._transport.write(b"HTTP/1.1 200 OK\r\nx-seen: %b\r\ncontent-length: 0\r\n\r\n" % name.encode())


@dataclass
class Reply:
    """What the client was told."""

    status: int
    seen: str
    closes: bool


class Client(asyncio.Protocol):
    """One connection: everything is sent at once; ``replies`` are read until enough have come or the gateway closes."""

    def __init__(self, data: bytes, parsed: Parsed) -> None:
        self.data, self._parsed = data, parsed
        self.replies: list[Reply] = []
        self.is_reset = False
        self._buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self.data)
        self._look()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._take():
            pass
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_reset = exc is not None
        if not self.done.done():
            self.done.set_result(None)

    def leave(self) -> None:
        self._transport.abort()

    def _look(self) -> None:
        """Whoever sent what is no request waits until the gateway closes; others have what they wanted."""
        is_enough = len(self.replies) >= len(self._parsed.requests) and self._parsed.ending != "invalid"
        if is_enough and not self.done.done():
            self.done.set_result(None)

    def _take(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        status, number = int(head[9:12]), len(self.replies)
        if status >= 200:
            is_head = number < len(self._parsed.requests) and self._parsed.requests[number].method == b"HEAD"
            length = _LENGTH.search(head)
            if is_head or status == 204:
                size = 0
            elif length is not None:
                size = int(length[1])
            else:
                size = rest.find(b"0\r\n\r\n") + 5
                size = size if size > 4 else len(rest) + 1
            if len(rest) < size:
                return False
            rest = rest[size:]
            seen = _SEEN.search(head)
            self.replies.append(Reply(status, seen[1].decode() if seen else "", b"\r\nconnection: close" in head.lower()))
        self._buffer = rest
        return bool(rest)


@dataclass
class Fuzz:
    """One gateway under fire."""

    port: int
    maker: Maker
    taken: frozenset[str]
    accepted: Counter[str] = field(default_factory=Counter)
    perhaps: set[str] = field(default_factory=set)
    sent_as: dict[str, tuple[bytes, list[Reply]]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, bytes, list[Reply]]] = field(default_factory=list)
    sent: int = 0

    async def run(self, count: int) -> None:
        async def caller() -> None:
            while self.sent < count and len(self.problems) < SHOWN:
                await self._one()

        await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))

    async def _one(self) -> None:
        chance, maker = self.maker.chance, self.maker
        odd = [chance.random() < 0.6 for _ in range(chance.randrange(1, 4))]
        data = b"".join(maker.odd() if is_odd else maker.good() for is_odd in odd) + maker.good()
        self.sent += len(odd) + 1
        parsed = parse(data, self.taken)
        self.endings[parsed.ending] += 1
        _, client = await asyncio.get_running_loop().create_connection(lambda: Client(data, parsed), HOST, self.port)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await client.done
        except TimeoutError:
            self._problem("not closed" if parsed.ending == "invalid" else "not answered", client)
        finally:
            client.leave()
        self._judge(client, parsed, is_good=not any(odd))

    def _problem(self, what: str, client: Client) -> None:
        self.problems.append((what, client.data[:3_000], client.replies))

    def _judge(self, client: Client, parsed: Parsed, *, is_good: bool) -> None:
        for one in parsed.requests:
            self.sent_as[seal(one)] = client.data, client.replies
        if client.is_reset:  # which may have overtaken answers
            self.perhaps.update(map(seal, parsed.requests))
        for number, reply in enumerate(client.replies):
            self.statuses[reply.status] += 1
            if reply.status == 200:
                self.accepted[reply.seen] += 1
                if number >= len(parsed.requests):
                    self._problem("accepted what is no request", client)
                elif reply.seen != seal(parsed.requests[number]):
                    self._problem("another's answer, or another request", client)
            elif reply.status not in REFUSALS:
                self._problem("a status that is no refusal", client)
        if len(client.replies) > len(parsed.requests) + (parsed.ending != "clean"):
            self._problem("more answers than requests", client)
        if is_good and [reply.status for reply in client.replies] != [200] * len(parsed.requests):
            self._problem("good requests were not served", client)


@pytest.mark.parametrize("engine", ["hypercorn", "granian", "uvicorn"])
@pytest.mark.timeout(120 + REQUESTS // 100)
def test_no_bytes_become_another_request_than_they_are(engine: str, row: Any) -> None:
    if ENGINE not in (engine, "hypercorn"):
        pytest.skip("the run of the default engine covers all")
    row.kind = f"malformed and pipelined requests ({engine})"
    target = Target()

    async def fuzz(gateway: Any) -> Fuzz:
        loop = asyncio.get_running_loop()
        authority: list[bytes] = []
        server = await loop.create_server(lambda: _Upstream(target, authority[0]), HOST, 0)
        port = server.sockets[0].getsockname()[1]
        authority.append(f"{HOST}:{port}".encode())
        made = await asyncio.to_thread(gateway.new_tenant, "a", a_rule(f"http://{HOST}:{port}"))
        fuzz = Fuzz(gateway.proxy_port, Maker(SEED, "a.example.com", made.key), TAKEN[engine])
        await fuzz.run(max(100, REQUESTS // 3))
        server.close()
        for transport in list(target.transports):
            transport.abort()
        await asyncio.sleep(0.1)
        return fuzz

    settings = {"UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8", "SERVER__ENGINE": engine, "LOG__ACCESS": "false"}
    settings["LIMITS__FAILED_AUTH_PER_MINUTE"] = "1000000000"
    with short_directory() as folder, a_gateway(folder, "--local", settings=settings) as gateway, row.one_try():
        done = asyncio.run(fuzz(gateway))
        print(f"seed {SEED}: {done.statuses}; {done.endings}")
        for what, data, replies in done.problems:
            print(what, data, replies, sep="\n", end="\n\n")
        for name in set(target.seen - done.accepted) - done.perhaps:
            print("forwarded and not answered", target.requests[name], done.sent_as.get(name), sep="\n")
        assert done.problems == []
        assert target.wrong == []
        assert done.accepted - target.seen == Counter()
        assert set(target.seen - done.accepted) <= done.perhaps
        figure(f"{engine}: {done.sent} sent, {sum(done.accepted.values())} served, none misread")
        assert gateway.is_ready()
        said = gateway.program.stdout() + gateway.program.stderr()
        assert "Traceback" not in said
        assert '"level": "error"' not in said
