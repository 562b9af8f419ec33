"""One request and its reply on a connection of the uvicorn engine."""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from gateway.awaiting import DONE
from gateway.headers import are_fields
from gateway.serving.listener import ASGIApp, Message
from gateway.serving.own_fields import CLOSE, Field

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

JOINED_BYTES = 32 << 10
"""A part of a body up to this size goes with its head in one write; copying more would cost more than a second write."""

_HEADS = frozenset({"http.response.start", "websocket.http.response.start"})
_BODIES = frozenset({"http.response.body", "websocket.http.response.body"})
_BODILESS = frozenset({204, 304})
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}

logger = logging.getLogger("gateway.server")


class Flow(Protocol):
    """What uvicorn keeps of a transport's back-pressure."""

    write_paused: bool

    async def drain(self) -> None:
        """Wait until the transport takes more."""

    def resume_reading(self) -> None:
        """Read again if that was paused."""


def head_of(status: int, fields: Sequence[Field]) -> bytes:
    """The status line and the fields. Raises ValueError for what would not arrive as what it is."""
    if not are_fields(fields):
        raise ValueError("a header field has a name that is no token in lower case, or a control character")
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"%b%b\r\n" % (line, b"".join([b"%b: %b\r\n" % field for field in fields]))


def refusal(status: int, own_fields: Sequence[Field]) -> bytes:
    """A reply without a body, after which the connection closes."""
    fields = [(b"content-length", b"0"), *own_fields]
    if CLOSE not in fields:
        fields.append(CLOSE)
    return head_of(status, fields)


class Exchange:
    """Calls the app. The attributes without an underscore are those that uvicorn's connection reads and writes."""

    __slots__ = (
        "_flow",
        "_head",
        "_is_bodiless",
        "_is_chunked",
        "_is_connected",
        "_left_bytes",
        "_loop",
        "_own_fields",
        "_replied",
        "_scope",
        "_transport",
        "body",
        "disconnected",
        "expects_continue",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
    )

    def __init__(
        self,
        scope: Any,
        transport: asyncio.Transport,
        flow: Flow,
        loop: asyncio.AbstractEventLoop,
        own_fields: Callable[[], list[Field]],
        *,
        expects_continue: bool,
        keep_alive: bool,
        replied: Callable[[], None],
    ) -> None:
        self._scope = scope
        self._transport = transport
        self._flow = flow
        self._loop = loop
        self._head = b""
        self._own_fields = own_fields
        self._replied = replied
        self._is_chunked = False
        self._is_bodiless = False
        self._is_connected = scope["type"] == "websocket"
        self._left_bytes: int | None = None
        self.expects_continue = expects_continue
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True
        self.message_event = asyncio.Event()
        self.disconnected = False
        self.response_started = False
        self.response_complete = False

    async def run_asgi(self, app: ASGIApp) -> None:
        """Call the app; a reply without its end is cut, one without a head is 500."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            logger.exception("Error in ASGI Framework")
        finally:
            if self.response_started and not self.response_complete:
                self.cut()
            elif not self.response_complete and not self.disconnected:
                self._transport.write(refusal(500, self._own_fields()))
                self.keep_alive = False
                self._complete()

    def leave(self) -> None:
        """The client has left, or what it sends cannot be understood."""
        if not self.response_complete:
            self.disconnected = True
        self.message_event.set()

    def cut(self) -> None:
        """End the connection under a reply that has begun."""
        self._write_head()
        self._transport.close()

    async def receive(self) -> Message:
        """A part of the body, or that the client has left."""
        if self._is_connected:
            self._is_connected = False
            return {"type": "websocket.connect"}
        if self.expects_continue:
            self.expects_continue = False
            if self.more_body and not self.body and not self.disconnected and not self._transport.is_closing():
                self._transport.write(CONTINUE)
        if not self.disconnected and not self.response_complete:
            self._flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "websocket.disconnect" if self._scope["type"] == "websocket" else "http.disconnect", "code": 1006}
        body, self.body = self.body, bytearray()
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    def send(self, message: Message) -> Awaitable[None]:
        """Write a part of the reply; wait while the client is slow. What a client that has left would have got is dropped."""
        if self._flow.write_paused and not self.disconnected:
            return self._send_later(message)
        self._send(message)
        return DONE

    async def _send_later(self, message: Message) -> None:
        await self._flow.drain()
        self._send(message)

    def _send(self, message: Message) -> None:
        if self.disconnected:
            return
        kind = message["type"]
        if self.response_started and not self.response_complete and kind in _BODIES:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif not self.response_started and kind in _HEADS:
            self._send_head(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"{kind} is not expected now")

    def _send_head(self, status: int, headers: Iterable[Field]) -> None:
        fields = [field for field in headers if field[0] != b"transfer-encoding"]
        fields += self._own_fields()
        if self.expects_continue and self.more_body:  # whether the body will come is anyone's guess
            self.keep_alive = False
        is_told = False
        for name, value in fields:
            if name == b"content-length":
                self._left_bytes = int(value)
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive, is_told = False, True
        self._is_bodiless = status in _BODILESS or self._scope["method"] == "HEAD"
        if self._left_bytes is None and not self._is_bodiless:
            if self._scope["http_version"] == "1.1":
                self._is_chunked = True
                fields.append((b"transfer-encoding", b"chunked"))
            else:  # its end is the connection's
                self.keep_alive = False
        if not self.keep_alive and not is_told:
            fields.append(CLOSE)
        head = head_of(status, fields)
        self.response_started = True
        self.expects_continue = False
        self._head = head
        self._loop.call_soon(self._write_head)

    def _write_head(self) -> None:
        """Unless it has gone with what followed in the same turn of the event loop."""
        head, self._head = self._head, b""
        if head:
            self._transport.write(head)

    def _write(self, data: bytes) -> None:
        if len(data) > JOINED_BYTES:
            self._write_head()
        head, self._head = self._head, b""
        self._transport.write(head + data if head else data)

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._is_bodiless:
            pass
        elif self._is_chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._write(chunk if more else chunk + b"0\r\n\r\n")
        else:
            if self._left_bytes is not None:
                self._left_bytes -= len(body)
                if self._left_bytes < 0 or (self._left_bytes and not more):
                    raise ValueError("the body is not as long as its content-length")
            self._write(body)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self._write_head()
        self.response_started = self.response_complete = True
        self.message_event.set()
        self._replied()
