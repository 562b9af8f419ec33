"""Hypercorn's connection, less what costs most on the way of a request: timer tasks, and a write for each part of a reply."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import h11
from h11._headers import Headers
from h11._writers import BodyWriter
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr

from gateway.serving.idle_timer import IdleTimer

LAST_REQUEST_S = 0.05
"""How long a connection without a request lasts when the server stops: one may be on its way already."""

_NAMES = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUES = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class ClientLost(OSError):
    """The client cannot be written to."""


class Http1(H11Protocol):
    """HTTP/1.1 and nothing else: a wish for HTTP/2 without TLS is no other protocol here."""

    write: Callable[[Iterable[bytes]], Awaitable[None]]
    """Sends at once."""

    async def _check_protocol(self, event: h11.Request) -> None:
        pass  # would change to HTTP/2

    async def _create_stream(self, request: h11.Request) -> None:
        if request.http_version not in (b"1.1", b"1.0"):
            await self._send_error_response(505)
            await self.send(Closed())
        else:
            await super()._create_stream(request)

    async def stream_send(self, event: StreamEvent) -> None:
        """As Hypercorn's, but that the header fields of a reply are checked all at once, and h11 only frames its chunks."""
        if isinstance(event, Body) and self.connection.our_state is h11.SEND_BODY:
            parts: list[bytes] = []
            cast("BodyWriter", self.connection._writer).send_data(event.data, parts.append)
            await self.write(parts)
            return
        if isinstance(event, Response) and event.status_code >= 200:
            fields = [*event.headers, *self.config.response_headers("h11")]
            headers = _checked(fields)
            await self._send_h11_event(
                h11.Response(status_code=event.status_code, headers=fields if headers is None else headers)
            )
        else:
            await super().stream_send(event)


def _checked(fields: list[tuple[bytes, bytes]]) -> Headers | None:
    """The fields as h11 0.16 keeps them; None where it must look for itself."""
    names = [name for name, _ in fields]
    if not _NAMES.fullmatch(b"".join(names)) or not _VALUES.fullmatch(b"".join([value for _, value in fields])):
        return None
    if b"transfer-encoding" in names or b"" in names or names.count(b"content-length") > 1:
        return None
    return Headers([(name, name, value) for name, value in fields])


class Connection(TCPServer):
    """One connection. The head of a reply leaves together with what comes in the same turn of the event loop.

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
    ) -> None:
        super().__init__(app, loop, config, context, state, reader, writer)
        self.idle_task: Any = _IdleTimer(loop, config.keep_alive_timeout, self._end_idle)
        self._gathered: list[bytes] = []

    async def run(self) -> None:
        """Serve the connection to its end."""
        sock = self.writer.get_extra_info("socket")
        try:
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup(self.loop) as task_group:
                self._task_group = task_group
                state = ConnectionState(self.state)
                protocol = Http1(
                    self.app, self.config, self.context, task_group, state, False, client, server, self.protocol_send
                )
                protocol.write = self._write_now
                self.protocol = protocol  # type: ignore[assignment]  # its wrapper is there to change to HTTP/2
                self.idle_task.begin()
                if self.context.terminated.is_set():  # accepted while the server stopped
                    self.stop()
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

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
            await self._close()

    def stop(self) -> None:
        """The server stops: serve the request that runs or has arrived, and wait for no other."""
        self.loop.call_later(LAST_REQUEST_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self.idle_task.is_idle:
            self._end_idle()

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        if not self._gathered:
            self.loop.call_soon(self._flush)
        self._gathered.append(data)

    async def _write_now(self, parts: Iterable[bytes]) -> None:
        self._gathered.extend(parts)
        self._flush()
        if not self.writer.transport.get_write_buffer_size():
            return
        try:
            await self.writer.drain()
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())
        except OSError as error:
            raise ClientLost(*error.args) from error

    def _flush(self) -> None:
        gathered = self._gathered
        if gathered and not self.writer.transport.is_closing():
            self.writer.write(gathered[0] if len(gathered) == 1 else b"".join(gathered))
        gathered.clear()

    async def _close(self) -> None:
        self._flush()
        await super()._close()

    def _end_idle(self) -> None:
        self._flush()
        self.writer.close()  # which also ends the reading


class _IdleTimer(IdleTimer):
    """In Hypercorn's place for the task that it makes and cancels each time."""

    async def stop(self) -> None:
        """As Hypercorn calls it when a connection has ended."""
        self.cancel()
