"""Writes one reply to the client at ASGI level."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.awaiting import begin
from gateway.errors import GatewayError, PluginFailedOnReply
from gateway.headers import HOP_BY_HOP, RawHeaders, is_field
from gateway.proxy.request_body import ClientLeft, Incoming
from gateway.telemetry import Visit
from gateway.web import error_reply

Send = Callable[[Any], Awaitable[None]]

MAX_DISCARDED_BYTES = 32 << 20
MAX_LINGER_MS = 2_000
BODILESS = frozenset({204, 304})

_OWN = HOP_BY_HOP | {b"x-request-id"}
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class ReplyWriter:
    """Head, body, end, in this order, then `finish`. A reply that is never ended makes the server cut the connection."""

    def __init__(self, send: Send, incoming: Incoming, visit: Visit) -> None:
        self._send = send
        self._incoming = incoming
        self._visit = visit
        self._is_ended = False
        self._is_final = False
        self._has_body = visit.method != "HEAD"
        self._tail = b""
        self.extra: RawHeaders = []
        self.started = False

    @property
    def waits_for_client(self) -> bool:
        """True if the reply is complete and the server was not told so, as the client is still sending: `finish` it."""
        return self._is_ended and not self._is_final

    async def start(self, status: int, headers: RawHeaders, *, checked: bool = False) -> None:
        """Send the head, with what every answer carries. Raises PluginFailedOnReply for one that cannot be sent.

        ``checked`` fields are as `ReturnedFields` leaves them: no plugin has touched them since.
        """
        if checked:
            fields = headers + self.extra
        else:
            fields = [*(field for field in headers if field[0] not in _OWN), *self.extra]
            if not 200 <= status <= 599 or not all(map(is_field, fields)):
                raise PluginFailedOnReply("A plugin of this route made a reply that cannot be sent.")
        if status in BODILESS:
            self._has_body = False
            fields = [field for field in fields if field[0] != b"content-length" or status == 304]
        fields.append((b"x-request-id", self._visit.request_id.encode()))
        await self._head(status, fields)

    async def write(self, chunk: bytes) -> None:
        """Send a part of the body; returns when the client has room for more."""
        rest = self.pass_on(chunk)
        if rest is not None:
            await rest

    def pass_on(self, chunk: bytes) -> Awaitable[None] | None:
        """Send a part of the body; returns what has to be awaited, if anything, for there to be room. Raises ClientLeft."""
        if not chunk or not self._has_body:
            return None
        self._visit.bytes_out += len(chunk)
        self._tail = chunk[-4:] if len(chunk) >= 4 else (self._tail + chunk)[-4:]
        try:
            rest = begin(self._send({"type": "http.response.body", "body": chunk, "more_body": True}))
        except OSError as error:
            # a peer that vanished, or takes nothing for too long, surfaces as an error of the socket
            raise ClientLeft from error
        return None if rest is None else self._room(rest)

    async def _room(self, rest: Awaitable[None]) -> None:
        try:
            await rest
        except OSError as error:
            raise ClientLeft from error

    async def end(self, chunk: bytes = b"") -> None:
        """Nothing follows but ``chunk``. The server is told at once, or by `finish` if the client is still sending."""
        self._is_ended = True
        if not self._has_body:
            chunk = b""
        if self._incoming.ended:
            self._visit.bytes_out += len(chunk)
            await self._final(chunk)
        else:
            await self.write(chunk)

    async def whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send a reply that is complete."""
        fields = [field for field in headers if field[0] != b"content-length"]
        if status not in BODILESS:
            fields.append((b"content-length", b"%d" % len(body)))
        await self.start(status, fields)
        await self.end(body)

    async def error(self, error: GatewayError) -> None:
        """Send an error as the whole reply."""
        self._visit.code = error.noted_code or error.code
        status, headers, body = error_reply(error, self._visit.request_id)
        names = {name for name, _ in headers}
        await self._head(status, [*headers, *(field for field in self.extra if field[0] not in names)])
        await self.end(body)

    async def finish(self) -> None:
        """End an ended reply, after what the client still sends. Not to be called while something else receives."""
        if self.waits_for_client:
            await self._incoming.discard(MAX_DISCARDED_BYTES, MAX_LINGER_MS)
            await self._final()

    def note(self, error: GatewayError) -> None:
        """Remember for the log what went wrong after the head was sent."""
        self._visit.code = error.code

    async def broken_event(self, error: GatewayError) -> None:
        """Tell the reader of an event stream, whose head is long sent, that it ends here and is not complete."""
        event = json.dumps(error.body(self._visit.request_id), separators=(",", ":"))
        # an event that was begun must not swallow this one
        begin = "" if not self._tail or self._tail.endswith(_EVENT_ENDS) else "\n\n"
        await self.write(f"{begin}event: error\ndata: {event}\n\n".encode())

    async def _head(self, status: int, fields: RawHeaders) -> None:
        self.started = True
        self._visit.status = status
        try:
            await self._send({"type": "http.response.start", "status": status, "headers": fields})
        except OSError as error:
            raise ClientLeft from error

    async def _final(self, chunk: bytes = b"") -> None:
        self._is_final = True
        try:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": False})
        except OSError as error:
            raise ClientLeft from error
