"""What a hostile target may answer: one script for each way. Whatever must reach nobody contains `POISON`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.wire import Call

POISON = b"poison"
LATER_S = 0.05
"""After so long what was sent before has been taken."""

BOMB_BYTES = 256 << 20
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
LATER = OK + b"content-length: 6\r\n\r\n" + POISON
GATEWAYS_OWN = (
    b"set-cookie: a=poison\r\nalt-svc: h3=poison\r\nserver: poison\r\nx-request-id: x\r\n"
    b"x-ratelimit-limit-requests: poison\r\nx-gateway-cost-usd: poison\r\n"
)
EVENTS = b"content-type: text/event-stream\r\n"
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "word "}}]}\n\n'


def _bomb() -> bytes:
    """Zeros, compressed without ever being here together."""
    packer = zlib.compressobj(1, wbits=31)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(BOMB_BYTES // len(piece))) + packer.flush()


BOMB = _bomb()

Script = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True)
class Hostile:
    """``status`` as the client sees it; ``cut`` if what follows the head must not look whole; ``body`` if it is known.

    ``reused`` if the connection carries another request of the same tenant.
    """

    name: str
    script: Script
    status: int
    cut: bool = False
    body: bytes | None = None
    reused: bool = False
    method: str = "POST"
    sent_bytes: int = 2


def says(data: bytes, *, closes: bool = False, stays: bool = False, pieces: int = 1, pause: float = 0.0) -> Script:
    """Send this, and then nothing, if it ``stays`` to the next request."""

    async def script(call: Call) -> None:
        size = max(1, -(-len(data) // pieces))
        for start in range(0, len(data), size):
            await call.send(data[start : start + size])
            await asyncio.sleep(pause)
        if closes:
            call.writer.close()
        elif stays:
            await call.read_body()
        else:
            await call.until_gone()

    return script


def floods(first: bytes, again: bytes) -> Script:
    """Send as much as is taken."""

    async def script(call: Call) -> None:
        await call.send(first)
        while True:
            await call.send(again)

    return script


def drips(first: bytes, again: bytes, pause: float) -> Script:
    """Send a little now and then, for ever."""

    async def script(call: Call) -> None:
        await call.send(first)
        while True:
            await call.send(again)
            await asyncio.sleep(pause)

    return script


async def resets(call: Call) -> None:
    """Break the connection once the request is read."""
    call.reset()


async def half_closes(call: Call) -> None:
    """Send half a reply and the end of the sending side, and keep the rest of the connection."""
    await call.send(OK + b"content-length: 10\r\n\r\nhalf")
    await asyncio.sleep(LATER_S)
    call.writer.write_eof()
    await call.until_gone()


async def answers_early(call: Call) -> None:
    """Answer before the body of the request is read, and never read it."""
    await call.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
    await asyncio.sleep(1)


async def answers_twice(call: Call) -> None:
    """A good reply, and a moment later one that nobody asked for."""
    await call.send(OK + b"content-length: 4\r\n\r\nfine")
    await asyncio.sleep(0.02)
    await call.send(LATER)
    await call.until_gone()


async def answers_and_leaves(call: Call) -> None:
    """A good reply on a connection that is kept alive in words only."""
    await call.send(OK + b"content-length: 4\r\nconnection: keep-alive\r\n\r\nfine")
    call.writer.close()


HEADS = [
    ("nothing, closed", says(b"", closes=True), 502),
    ("nothing", says(b""), 504),
    ("reset", resets, 502),
    ("no HTTP", says(b"\x16\x03\x01 garbage \xff\xfe\r\n\r\n" + POISON), 502),
    ("another protocol", says(b"220 mail.example ESMTP\r\n"), 502),
    ("HTTP/2", says(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18), 502),
    ("HTTP/0.9", says(b"<html>" + POISON + b"</html>", closes=True), 502),
    ("a version that does not exist", says(b"HTTP/7.7 200 OK\r\ncontent-length: 6\r\n\r\n" + POISON), 502),
    ("no number as a status", says(b"HTTP/1.1 2x0 OK\r\ncontent-length: 6\r\n\r\n" + POISON), 502),
    ("a status of one digit", says(b"HTTP/1.1 2 OK\r\ncontent-length: 6\r\n\r\n" + POISON), 502),
    ("a status of four digits", says(b"HTTP/1.1 2000 OK\r\ncontent-length: 6\r\n\r\n" + POISON), 502),
    ("half a head, closed", says(OK + b"content-type: text/pl", closes=True), 502),
    ("half a head", says(OK + b"content-type: text/pl"), 504),
    ("a head that goes on and on", drips(OK, b"x: y\r\n", 0.1), 504),
    ("a head that comes too slowly", drips(OK + b"x: ", b"y", 0.1), 504),
    ("a flood of fields", floods(OK, b"x: y\r\n" * 1_000), 502),
    ("a line without end", floods(OK + b"x: ", b"y" * 65_536), 502),
    ("a status line without end", floods(b"HTTP/1.1 200 ", b"y" * 65_536), 502),
    ("a name without end", floods(OK, b"y" * 65_536), 502),
    ("interim replies without end", floods(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 100), 502),
    ("interim replies now and then", drips(b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0.1), 504),
    ("interim replies with large heads", floods(b"", b"HTTP/1.1 103 Hints\r\n" + b"link: <x>\r\n" * 100 + b"\r\n"), 502),
    ("a switch of protocols", says(b"HTTP/1.1 101 x\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + POISON), 502),
    ("a field without a name", says(OK + b": y\r\ncontent-length: 6\r\n\r\n" + POISON), 502),
    ("a zero byte in a field", says(OK + b"x: a\x00b\r\ncontent-length: 6\r\n\r\n" + POISON), 502),
    ("a return in a field", says(OK + b"x: a\rset-cookie: b\r\ncontent-length: 6\r\n\r\n" + POISON), 502),
    ("length and chunks", says(OK + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + POISON), 502),
    ("chunks and length", says(OK + b"transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n" + POISON), 502),
    ("two lengths", says(OK + b"content-length: 6\r\ncontent-length: 5\r\n\r\n" + POISON), 502),
    ("a list of lengths", says(OK + b"content-length: 6, 5\r\n\r\n" + POISON), 502),
    ("a negative length", says(OK + b"content-length: -1\r\n\r\n" + POISON), 502),
    ("a length with a sign", says(OK + b"content-length: +6\r\n\r\n" + POISON), 502),
    ("a length in hexadecimal", says(OK + b"content-length: 0x6\r\n\r\n" + POISON), 502),
    ("a length beyond all numbers", says(OK + b"content-length: 99999999999999999999999\r\n\r\n" + POISON), 502),
]  # fmt: skip

BROKEN_LATER = [
    Hostile(
        "shorter than its length, closed",
        says(OK + b"content-length: 10\r\n\r\nhalf", closes=True, pause=LATER_S),
        200,
        cut=True,
    ),
    Hostile("shorter than its length", says(OK + b"content-length: 10\r\n\r\nhalf"), 200, cut=True),
    Hostile("closed by halves", half_closes, 200, cut=True),
    Hostile("a second reply later", answers_twice, 200, body=b"fine"),
    Hostile("chunks without the last one", says(CHUNKED + b"4\r\nfine\r\n", closes=True, pause=LATER_S), 200, cut=True),
    Hostile("a last chunk without its end", says(CHUNKED + b"4\r\nfine\r\n0\r\n", closes=True, pause=LATER_S), 200, cut=True),
    Hostile("a body that falls silent", says(CHUNKED + b"4\r\nfine\r\n"), 200, cut=True),
    Hostile("a body without end", drips(CHUNKED, b"1\r\nx\r\n", 0.05), 200, cut=True),
    Hostile(
        "events without end",
        drips(OK + EVENTS + b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (len(EVENT), EVENT), 0.05),
        200,
        cut=True,
    ),
]

BROKEN_WITH_ITS_HEAD = [
    Hostile(
        "shorter than its length, closed at once", says(OK + b"content-length: 10\r\n\r\nhalf", closes=True), 200, cut=True
    ),
    Hostile("longer than its length", says(OK + b"content-length: 4\r\n\r\nfine" + POISON), 200, body=b"fine"),
    Hostile("a second reply at once", says(OK + b"content-length: 4\r\n\r\nfine" + LATER), 200, body=b"fine"),
    Hostile("a second reply after chunks", says(CHUNKED + b"4\r\nfine\r\n0\r\n\r\n" + LATER), 200, body=b"fine"),
    Hostile("a body where there is none", says(b"HTTP/1.1 204 No Content\r\n\r\n" + POISON), 204, body=b""),
    Hostile("a body after a reply to HEAD", says(OK + b"content-length: 6\r\n\r\n" + LATER), 200, body=b"", method="HEAD"),
    Hostile("no number as a size of a chunk", says(CHUNKED + b"4\r\nfine\r\nxyz\r\n" + POISON), 200, cut=True),
    Hostile("a negative size of a chunk", says(CHUNKED + b"4\r\nfine\r\n-1\r\n" + POISON), 200, cut=True),
    Hostile("a chunk beyond all numbers", says(CHUNKED + b"4\r\nfine\r\nfffffffffffffffff\r\n" + POISON), 200, cut=True),
    Hostile("a chunk longer than its size", says(CHUNKED + b"4\r\nfine" + POISON + b"\r\n0\r\n\r\n"), 200, cut=True),
    Hostile("an extension of a chunk without end", floods(CHUNKED + b"4;", b"x" * 65_536), 200, cut=True),
    Hostile("trailers without end", floods(CHUNKED + b"4\r\nfine\r\n0\r\n", b"x: y\r\n" * 1_000), 200, cut=True),
]
"""What is wrong comes together with the head, and so the client may get nothing but 502."""

WHOLE = [
    Hostile("an answer before the request is read", answers_early, 413, body=b"large", sent_bytes=12 << 20),
    Hostile(
        "one byte at a time", says(OK + b"content-length: 4\r\n\r\nfine", pieces=50, stays=True), 200, body=b"fine", reused=True
    ),
    Hostile("closed after its reply", answers_and_leaves, 200, body=b"fine"),
    Hostile(
        "a redirect",
        says(b"HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", stays=True),
        307,
        body=b"",
        reused=True,
    ),
    Hostile(
        "a refusal of our credentials",
        says(b"HTTP/1.1 401 x\r\ncontent-length: 6\r\n\r\n" + POISON, stays=True),
        502,
        reused=True,
    ),
    Hostile(
        "another refusal of our credentials",
        says(b"HTTP/1.1 403 x\r\ncontent-length: 6\r\n\r\n" + POISON, stays=True),
        502,
        reused=True,
    ),
    Hostile(
        "fields that speak for the gateway",
        says(OK + GATEWAYS_OWN + b"content-length: 4\r\n\r\nfine", stays=True),
        200,
        body=b"fine",
        reused=True,
    ),
    Hostile(
        "compressed beyond all measure",
        says(OK + b"content-encoding: gzip\r\nconnection: close\r\n\r\n" + BOMB, closes=True),
        200,
        body=BOMB,
    ),
]

LENIENT = [
    Hostile(
        "lines ended by a line feed",
        says(b"HTTP/1.1 200 OK\ncontent-length: 4\n\nfine", stays=True),
        200,
        body=b"fine",
        reused=True,
    ),
    Hostile(
        "a field that goes on in the next line",
        says(OK + b"x: y\r\n  set-cookie: a=b\r\ncontent-length: 4\r\n\r\nfine", stays=True),
        200,
        body=b"fine",
        reused=True,
    ),
    Hostile(
        "a field whose name ends with a space",
        says(OK + b"content-length : 4\r\n\r\nfine", stays=True),
        200,
        body=b"fine",
        reused=True,
    ),
    Hostile(
        "a coding that nobody knows", says(OK + b"transfer-encoding: chunked, x\r\n\r\nfine", closes=True), 200, body=b"fine"
    ),
]
"""Read in the only way they can be meant, and written anew for the client."""

WAYS = {
    "target: no head of a reply": [Hostile(name, script, status) for name, script, status in HEADS],
    "target: broken body": BROKEN_LATER + BROKEN_WITH_ITS_HEAD,
    "target: whole reply with a trap": WHOLE + LENIENT,
}
