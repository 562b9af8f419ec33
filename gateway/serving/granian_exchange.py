"""One request on the granian engine, and its reply: what Granian leaves out, or does unlike the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from gateway.serving.listener import Message

Field = tuple[bytes, bytes]

_UNNAMED: Field = (b"server", b"")
"""Granian names itself where a reply has no such field."""

_NO_HOST: Field = (b"host", b"")
BODY_S = 1.0
"""How long a request over HTTP/2 waits for the first of its body, to learn whether it has one."""

_HEADS = frozenset({"http.response.start", "websocket.http.response.start"})
_OWN_REPLY: Message = {
    "type": "http.response.start",
    "headers": [(b"content-length", b"0"), (b"connection", b"close"), _UNNAMED],
}


class Exchange:
    """One request and its reply: what Granian's own ``receive`` and ``send`` lack."""

    __slots__ = ("_first", "_is_asked", "_is_broken", "_is_last", "_left_bytes", "_proto", "_scope", "_signs", "is_ended")

    def __init__(self, scope: Any, proto: Any, signs: Sequence[asyncio.Event]) -> None:
        self._scope = scope
        self._proto = proto
        self._signs = signs
        self._first: asyncio.Task[Message] | None = None
        self._left_bytes = 0
        self._is_asked = False
        self._is_broken = False
        self._is_last = False
        self.is_ended = False

    def is_framed(self) -> bool:
        """Whether it is clear how long the body is; if not, the request has been refused."""
        length = _body_bytes(self._scope["headers"])
        if length is None:
            self._reply(400)
            self.is_ended = True
            return False
        self._left_bytes = length
        # where chunks and trailers end, hyper sees otherwise than others might: nothing may come behind them
        self._is_last = length < 0 and self._scope["http_version"] != "2"
        return True

    async def translate(self) -> None:
        """Tell a request over HTTP/2 in the words of HTTP/1.1, in which everything else decides.

        HTTP/2 tells a body by what follows the head. Usually that is here already; whose body has neither come nor been
        announced within a second has one of unknown length.
        """
        headers = self._scope["headers"]
        cookies = [value for name, value in headers if name == b"cookie"]
        if len(cookies) > 1:  # RFC 9113 §8.2.3
            headers[:] = [field for field in headers if field[0] != b"cookie"]
            headers.append((b"cookie", b"; ".join(cookies)))
        if any(name == b"content-length" for name, _ in headers):
            return
        self._first = asyncio.ensure_future(self._proto.receive())
        await asyncio.wait([self._first], timeout=BODY_S)
        if self._first.done():
            message = self._first.result()
            if message["type"] == "http.request" and not message["body"] and not message["more_body"]:
                self._first = None
                return
        headers.append((b"transfer-encoding", b"chunked"))

    def forget(self) -> None:
        """The request has ended; nobody waits for its body."""
        if self._first is not None:
            self._first.cancel()

    async def receive(self) -> Message:
        """A part of the body, or that the client has left."""
        if not self._left_bytes:
            if self._is_asked:
                return await self._leaving()
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        self._is_asked = True
        if self._first is None:
            message: Message = await self._proto.receive()
        else:
            message = await asyncio.shield(self._first)  # who asks may be cancelled, and ask again
            self._first = None
        if message["type"] == "http.disconnect":
            self._is_broken = True
        elif message["type"] == "http.request":
            self._left_bytes -= len(message["body"])
            if not self._left_bytes:  # nothing can follow; asking Granian once more would cost three thread switches
                message["more_body"] = False
            elif not message["more_body"]:
                self._left_bytes = 0
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a part of the reply on. No coroutine: this is called for every chunk of a stream."""
        if message["type"] in _HEADS:
            is_last = self._is_last or any(sign.is_set() for sign in self._signs)
            fields = _fields(message.get("headers", ()), is_early=self._left_bytes != 0, is_last=is_last)
            message = {**message, "headers": fields}
        elif not message.get("more_body", False):
            self.is_ended = True
        sent: Awaitable[None] = self._proto.send(message)
        return sent

    @property
    def misses_body(self) -> bool:
        """True if the request has not come to its end."""
        return self._is_asked and self._left_bytes != 0

    def break_off(self) -> None:
        """Answer if no reply has begun. Otherwise send what there is: without its end, Granian cuts the connection.

        A body that broke off may be one that hyper cannot understand, from a client that is still there.
        """
        try:
            self._reply(400 if self._is_broken else 500)
        except RuntimeError:  # there is a head
            with contextlib.suppress(RuntimeError):
                self._proto.send({"type": "http.response.body", "body": b"", "more_body": True})

    def _reply(self, status: int) -> None:
        self._proto.send({**_OWN_REPLY, "status": status})
        with contextlib.suppress(RuntimeError):
            self._proto.send({"type": "http.response.body", "body": b""})

    async def _leaving(self) -> Message:
        while True:
            message: Message = await self._proto.receive()
            if message["type"] == "http.disconnect":
                return message


def mend(scope: Any) -> None:
    """Make a scope as the specification and Hypercorn have it."""
    if scope["http_version"] == "1":
        scope["http_version"] = "1.0"
    headers = scope["headers"]
    # made up where the client sent none; its own empty one may stand before another
    if headers[0] == _NO_HOST and not any(name == b"host" for name, _ in headers[1:]):
        del headers[0]


def _body_bytes(headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    """How long a body is; -1 if only its end will tell, None if hyper takes more than chunks for chunks."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            if length or value.lower() != b"chunked":
                return None
            length = -1
        if name == b"content-length":
            length = int(value)  # hyper has checked it
    return length


def _fields(headers: Iterable[Field], *, is_early: bool, is_last: bool) -> list[Field]:
    """The header fields of a reply, with ``connection: close`` if it is the last one of its connection.

    A reply that begins before its request has ended goes without a length: once it has sent so much, hyper would close the
    connection on a client that is still sending, and the reply may be lost on its way. Chunks end when the app says so.
    """
    fields = [field for field in headers if field[0] != b"content-length"] if is_early else list(headers)
    if is_last:
        fields.append((b"connection", b"close"))
    for name, _ in fields:
        if name == b"server":
            break
    else:
        fields.append(_UNNAMED)
    return fields
