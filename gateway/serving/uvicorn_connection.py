"""uvicorn's connection, made to do on the wire what Hypercorn's does.

uvicorn 0.54 itself takes trailers for header fields, forgets the body of a request that wished for an upgrade, does not limit
a head, answers HTTP/1.0 in chunks, and tells only the last of several pipelined requests that their client has left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.config import ServerSettings
from gateway.serving.idle_timer import LAST_REQUEST_S, IdleTimer
from gateway.serving.own_fields import OwnFields
from gateway.serving.uvicorn_exchange import Exchange, refusal

LINGER_S = 1.0
"""How long a client may go on sending what was refused; closed at once, the connection could lose the answer on its way."""

MOST_WAITING = 8
"""Pipelined requests that wait for a reply before theirs: one read may hold thousands. The last is told to close."""

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Connection(HttpToolsProtocol):
    """One connection. ``lost`` is called when it has ended."""

    cycle: Exchange  # type: ignore[assignment]  # in the place of uvicorn's own
    pipeline: deque[Exchange]  # type: ignore[assignment]
    scope: dict[str, Any]  # type: ignore[assignment]
    transport: asyncio.Transport

    def __init__(
        self, config: Config, state: ServerState, settings: ServerSettings, own_fields: OwnFields, lost: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(config, state, {}, loop)
        self._own_fields = own_fields.now
        self._lost = lost
        self._idle = IdleTimer(loop, settings.keep_alive / 1000, settings.first_header_timeout / 1000, self._end)
        self._most_bytes = settings.max_header_bytes
        self._overhead_bytes = 0
        self._running: Exchange | None = None
        self._is_in_head = False
        self._is_deaf = False
        self._is_stopping = False
        self._unread_framing: bytes | None = None
        self._status = 400
        self._is_refusing = False
        self._linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._idle.begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that runs; others wait in vain."""
        if self._running is not None:
            self._running.leave()
        self.pipeline.clear()
        self._idle.cancel()
        if self._linger is not None:
            self._linger.cancel()
        super().connection_lost(exc)
        self._lost()

    def shutdown(self) -> None:
        """The server stops: serve the request that runs or has arrived, and wait for no other."""
        self._is_stopping = True
        if self._running is not None:
            self._running.keep_alive = False
        self.loop.call_later(LAST_REQUEST_S, self._end_without_request)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, and limit what is neither a whole head nor a body."""
        if self._is_deaf:
            return
        self._overhead_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if self.parser.get_method() == b"PRI":  # the preface of HTTP/2
                self._status = 505
            self._refuse()
        else:
            if self._overhead_bytes > self._most_bytes:
                self._status = 431
                self._refuse()
            elif self._is_in_head and self._idle.is_idle:
                self._idle.begin_head()

    def on_message_begin(self) -> None:
        """See httptools, here and below."""
        if self.pipeline and not self.pipeline[-1].keep_alive:
            raise ValueError("after the last request")
        super().on_message_begin()
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer."""
        if not self._is_in_head:
            return
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"transfer-encoding" and value.lower() != b"chunked":
            raise ValueError("another transfer coding")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head has come: call the app, or let it wait for those before it."""
        self._is_in_head = False
        self._overhead_bytes = 0
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            self._status = 505
            raise ValueError("another version of HTTP")
        if version == "1.0" and any(name == b"transfer-encoding" for name, _ in self.headers):
            raise ValueError("chunks in HTTP/1.0")
        scope["http_version"] = version
        scope["method"] = parser.get_method().decode("ascii")
        scope["raw_path"], _, scope["query_string"] = self.url.partition(b"?")
        path = scope["raw_path"].decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        keep_alive = version == "1.1" and not self._is_stopping and parser.should_keep_alive()
        if parser.should_upgrade():
            keep_alive = self._decline_upgrade() and keep_alive
        self.cycle = Exchange(
            scope,
            self.transport,
            self.flow,
            self.loop,
            self._own_fields,
            expects_continue=self.expect_100_continue and version == "1.1",
            keep_alive=keep_alive,
            replied=self._replied,
        )
        if self._running is None:
            self._start(self.cycle)
        else:
            self.pipeline.append(self.cycle)
            if len(self.pipeline) == MOST_WAITING:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._overhead_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come whole."""
        if self._unread_framing is not None:
            return
        super().on_message_complete()
        if self.cycle.keep_alive and not self.parser.should_keep_alive():
            # so a trailer has said; the parser reads nothing more, and who waited for another answer would wait for ever
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self._finish(is_heard=True)

    def _start(self, exchange: Exchange) -> None:
        self._running = exchange
        self._idle.end()
        self._start_asgi_task(exchange, self.app)  # type: ignore[arg-type]

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as wish:
            rest = data[wish.args[0] :]
            framing, self._unread_framing = self._unread_framing, None
            if framing is not None:
                # it has not looked at the body; another parser does, for nothing but that
                listener = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
                self.parser = httptools.HttpRequestParser(listener)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(b"POST / HTTP/1.1\r\nconnection: close\r\n%b\r\n%b" % (framing, rest))
            elif self.scope["method"] == "CONNECT" or self.scope["type"] == "websocket":
                self._is_deaf = True
            elif rest:
                self._feed(rest)

    def _decline_upgrade(self) -> bool:
        """Whether the connection goes on."""
        if self.scope["method"] == "CONNECT":
            return False
        if self.scope["method"] == "GET" and self._get_upgrade() == b"websocket":
            self.scope.update(type="websocket", scheme="wss" if self.scheme == "https" else "ws", subprotocols=[])
            return False
        framing = [b"%b: %b\r\n" % field for field in self.headers if field[0] in _FRAMING]
        if framing:
            self._unread_framing = b"".join(framing)
        return not framing

    def _replied(self) -> None:
        exchange, self._running = self._running, None
        if self.transport.is_closing() or exchange is None:
            return
        self.flow.resume_reading()
        if not exchange.keep_alive:
            self._finish(is_heard=not exchange.more_body)
        elif self.pipeline:
            self._start(self.pipeline.popleft())
        elif self._is_refusing:
            self._answer()
        else:
            self._idle.begin()
            if self._is_in_head:
                self._idle.begin_head()

    def _refuse(self) -> None:
        """Answer what cannot be understood, after the requests before it."""
        self._is_deaf = True
        running = self._running
        if self.pipeline and self.pipeline[-1].more_body:  # whose body it is that cannot be understood
            self.pipeline.pop()
        if running is None:
            self._answer()
        elif not running.more_body:
            self._is_refusing = True
        else:
            self._running = None
            running.leave()
            if running.response_started:
                running.cut()
            else:
                self._answer()

    def _answer(self) -> None:
        self.transport.write(refusal(self._status, self._own_fields()))
        self._finish(is_heard=False)

    def _finish(self, *, is_heard: bool) -> None:
        """End the connection, but not under a client that is still sending."""
        self._is_deaf = True
        if is_heard or self._is_stopping:
            self.transport.close()
        else:
            if self.transport.can_write_eof():  # TLS has no such half
                self.transport.write_eof()
            self._linger = self.loop.call_later(LINGER_S, self._end)

    def _end(self) -> None:
        self.transport.close()

    def _end_without_request(self) -> None:
        if self._running is None:
            self.transport.close()
