"""Hypercorn's connection, less what costs most on the way of a request: tasks for the idle time, and a lock for each write."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import h11
from h11._headers import Headers
from h11._writers import ChunkedWriter
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Request, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import AppWrapper, ASGISendEvent, ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr, suppress_body

from gateway.awaiting import DONE
from gateway.headers import are_fields
from gateway.serving.idle_timer import LAST_REQUEST_S, IdleTimer
from gateway.serving.strict_h11 import READ_BYTES, StrictH11, Turn

JOINED_BYTES = 32 << 10
"""A part of a body up to this size goes with its head in one write; copying more would cost more than a second write."""

DRAIN_ABOVE_BYTES = 32 << 10
"""What a transport may keep without anybody asking whether it wants a pause; asyncio's own mark is twice as high."""


LINGER_S = 1.0
"""How long a client may go on sending what was refused."""


class ClientLost(OSError):
    """The client cannot be written to."""


class Stream(HTTPStream):
    """One request and its reply. Parts of a body go the short way, which most of a stream's time is spent on."""

    pass_on: Callable[[bytes], Awaitable[None] | None]

    def app_send(self, message: ASGISendEvent | None) -> Awaitable[None]:  # type: ignore[override]  # awaited, and no more
        """See Hypercorn's."""
        if (
            message is not None
            and message["type"] == "http.response.body"
            and message.get("more_body", False)
            and self.state is ASGIHTTPState.RESPONSE
            and not suppress_body(self.scope["method"], self.response["status"])
        ):
            sent = self.pass_on(message.get("body", b""))
            if sent is not None:
                return sent
        return super().app_send(message)


class Http1(H11Protocol):
    """HTTP/1.1 and nothing else: a wish for HTTP/2 without TLS is no other protocol here."""

    hold: Callable[[bytes], None]
    write: Callable[[bytes], Awaitable[None]]

    async def _check_protocol(self, event: h11.Request) -> None:
        pass  # would change to HTTP/2

    async def _create_stream(self, request: h11.Request) -> None:
        if request.http_version not in (b"1.1", b"1.0"):
            await self._send_error_response(505)
            await self.send(Closed())
            return
        fields = list(request.headers)
        if request.method == b"GET" and any(name == b"upgrade" for name, _ in fields):
            await super()._create_stream(request)
            return
        around = (self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server)
        self.stream = stream = Stream(*around, self.stream_send, STREAM_ID)
        stream.pass_on = self._pass_on
        version, method = request.http_version.decode(), request.method.decode("ascii")
        await stream.handle(Request(STREAM_ID, fields, version, method, request.target, self.connection_state))
        self.keep_alive_requests += 1
        await self.context.mark_request()

    async def stream_send(self, event: StreamEvent) -> None:
        """As Hypercorn's, but that the header fields of a reply are checked all at once, and h11 only frames its chunks."""
        sent = self._pass_on(event.data) if isinstance(event, Body) else None
        if sent is not None:
            await sent
        elif isinstance(event, Response) and event.status_code >= 200:
            fields = [*event.headers, *self.config.response_headers("h11")]
            headers = _checked(fields)
            self._send_head(h11.Response(status_code=event.status_code, headers=fields if headers is None else headers))
        else:
            await super().stream_send(event)

    async def _send_error_response(self, status_code: int) -> None:
        await super()._send_error_response(400 if status_code == 501 else status_code)  # other codings are no better

    def _pass_on(self, body: bytes) -> Awaitable[None] | None:
        """What is to be awaited; None where h11 has another opinion on whether there is a body now."""
        if self.connection.our_state is not h11.SEND_BODY:
            return None
        writer: Any = self.connection._writer
        if type(writer) is ChunkedWriter:
            return self.write(b"%x\r\n%b\r\n" % (len(body), body) if body else b"")
        parts: list[bytes] = []
        writer.send_data(body, parts.append)
        return self.write(b"".join(parts))

    def _send_head(self, response: h11.Response) -> None:
        try:
            head = self.connection.send(response)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
        else:
            self.hold(head)


def _checked(fields: list[tuple[bytes, bytes]]) -> Headers | None:
    """The fields as h11 0.16 keeps them; None where it must look for itself."""
    names = [name for name, _ in fields]
    if not are_fields(fields) or b"transfer-encoding" in names or names.count(b"content-length") > 1:
        return None
    return Headers([(name, name, value) for name, value in fields])


class Connection(TCPServer):
    """One connection. The head of a reply leaves together with what follows in the same turn of the event loop.

    Where Hypercorn 0.18 makes and cancels a task each time a request begins or ends, here the time is noted.
    """

    def __init__(
        self,
        app: AppWrapper,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        context: WorkerContext,
        state: LifespanState,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head_timeout_s: float,
    ) -> None:
        super().__init__(app, loop, config, context, state, reader, writer)
        self.idle_task: Any = _IdleTimer(loop, config.keep_alive_timeout, head_timeout_s, self._end_idle)
        self._h11 = StrictH11(config.h11_max_incomplete_size)
        self._held = b""

    async def run(self) -> None:
        """Serve the connection to its end."""
        sock = self.writer.get_extra_info("socket")
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup(self.loop) as task_group:
                self._task_group = task_group
                state = ConnectionState(self.state)
                is_tls = self.writer.get_extra_info("ssl_object") is not None
                protocol = Http1(
                    self.app, self.config, self.context, task_group, state, is_tls, client, server, self.protocol_send
                )
                protocol.hold = self._hold
                protocol.write = self._write
                protocol.connection = self._h11
                protocol.can_read = Turn(self.reader, self._h11)  # type: ignore[assignment]
                self.protocol = protocol  # type: ignore[assignment]  # its wrapper is there to change to HTTP/2
                self.idle_task.begin_head()
                if self.context.terminated.is_set():  # accepted while the server stopped
                    self.stop()
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

    async def _read_data(self) -> None:
        try:
            while data := await self.reader.read(READ_BYTES):
                await self.protocol.handle(RawData(data))
                if self.idle_task.is_idle and self._h11.unread_bytes:
                    self.idle_task.begin_head()
        except OSError:
            pass
        await self.protocol.handle(Closed())

    async def protocol_send(self, event: Event) -> None:
        """Take what Hypercorn's protocol sends: data, the end of the connection, the beginning or end of idleness."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            if event.idle:
                self.idle_task.begin()
            else:
                self.idle_task.end()
        elif isinstance(event, Closed):
            if self._h11.their_state is h11.ERROR:
                await self._linger()
            await self._close()

    async def _linger(self) -> None:
        """Hear out who sent what cannot be understood; closed at once, the connection could lose the answer on its way."""
        self._write_held()
        with contextlib.suppress(OSError, NotImplementedError, RuntimeError):  # TimeoutError among them
            self.writer.write_eof()
            async with asyncio.timeout(LINGER_S):
                while await self.reader.read(READ_BYTES):
                    continue

    def stop(self) -> None:
        """The server stops: serve the request that runs or has arrived, and wait for no other."""
        self.loop.call_later(LAST_REQUEST_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self.idle_task.is_idle:
            self._end_idle()

    def _hold(self, head: bytes) -> None:
        self._held = head
        self.loop.call_soon(self._write_held)

    def _write_held(self) -> None:
        head, self._held = self._held, b""
        if head and not self.writer.transport.is_closing():
            self.writer.write(head)

    def _write(self, data: bytes) -> Awaitable[None]:
        transport = self.writer.transport
        if not data or transport.is_closing():
            return DONE
        if len(data) > JOINED_BYTES:
            self._write_held()
        head, self._held = self._held, b""
        transport.write(head + data if head else data)
        return DONE if transport.get_write_buffer_size() < DRAIN_ABOVE_BYTES else self._drain()

    async def _drain(self) -> None:
        try:
            await self.writer.drain()
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())
        except OSError as error:
            raise ClientLost(*error.args) from error

    async def _close(self) -> None:
        self._write_held()
        with contextlib.suppress(OSError):  # a TLS connection that its client does not end in order
            await super()._close()

    def _end_idle(self) -> None:
        self.writer.close()  # which also ends the reading


class _IdleTimer(IdleTimer):
    """In Hypercorn's place for the task that it makes and cancels each time."""

    async def stop(self) -> None:
        """As Hypercorn calls it when a connection has ended."""
        self.cancel()
