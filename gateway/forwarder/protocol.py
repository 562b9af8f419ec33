"""A connection to a target, and all that is known here of aiohttp's insides.

Read in aiohttp 3.14.5: ``client_proto``, ``streams``, ``base_protocol``, ``_http_parser.pyx``, and what ``client`` and
``client_reqrep`` do with them. `tests/unit/forwarder/test_aiohttp.py` fails where an update changes what is relied on.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EofStream, StreamReader

READ_BUFFER_BYTES = 64 << 10
MAX_LINE_BYTES = 16 << 10
MAX_INTERIM_REPLIES = 100

BROKEN_EXCHANGE = (aiohttp.ClientError, HttpProcessingError, EofStream, OSError)
"""What a connection that is read from or written to may raise, timeouts included."""


class TargetProtocol(ResponseHandler):
    """One request after the other on a connection, each with a deadline that costs no timer of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._due: float | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._was_paused = False
        self._idle_socket: select.poll | None = None
        self.on_change: Callable[[], None] | None = None
        """Called when more of a body has come, or will not come."""

    # The time that the other side has

    def give_until(self, when: float) -> None:
        """Raise SocketTimeoutError in whoever reads at this moment of the loop's clock, unless another is set before.

        The timer stays where it is if it rings earlier: it looks at the deadline when it does.
        """
        self._due = when
        if self._alarm is None or self._alarm_at > when:
            self._set_alarm(when)

    def stop_clock(self) -> None:
        """Nothing is awaited of the other side."""
        self._due = None

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        if self._due is None:
            return
        if self._loop.time() < self._due:
            self._set_alarm(self._due)
            return
        self._due = None
        error, body = aiohttp.SocketTimeoutError("the target took too long"), self._payload
        self.set_exception(error)
        if body is not None and not body.is_eof():
            body.set_exception(error)
        if self.on_change is not None:
            self.on_change()

    # Requests

    def is_usable(self) -> bool:
        """Whether an idle connection may carry a request: it is open, and nothing was said on it that nobody asked for.

        What the kernel has and the loop has not read yet counts: after a request that may not be repeated it would be too late.
        """
        transport = self.transport
        if transport is None or transport.is_closing() or self.should_close:
            return False
        if self._idle_socket is None:
            self._idle_socket = select.poll()
            self._idle_socket.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._idle_socket.poll(0)

    def begin(self, *, without_body: bool) -> None:
        """Be ready for the reply to a request; ``without_body`` if its method is HEAD."""
        self._was_paused = False
        self.set_response_params(
            skip_payload=without_body,
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
        )

    def write(self, *pieces: bytes | memoryview) -> None:
        """Send, or keep until the other side takes it. Raises ClientConnectionResetError."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the connection is gone")
        for piece in pieces:
            transport.write(piece)

    async def drain(self) -> None:
        """Returns when the other side has taken so much that there is room for more. Raises ConnectionError."""
        if self._paused:
            await self._drain_helper()

    @property
    def has_sent_all(self) -> bool:
        """Whether everything written has left for the kernel."""
        return self.transport is not None and self.transport.get_write_buffer_size() == 0

    def arrived(self, body: StreamReader) -> bytes:
        """What has come of a body and was not read, also before it broke, which aiohttp keeps to itself."""
        return body._read_nowait(-1) if body._buffer else b""

    async def reply(self) -> tuple[RawResponseMessage, StreamReader]:
        """Head and body of the final reply; interim ones are skipped (RFC 9110 §15.2). Raises BROKEN_EXCHANGE."""
        for _ in range(MAX_INTERIM_REPLIES):
            message, body = await self.read()
            if not 100 <= message.code <= 199 or message.code == 101:
                return message, body
        raise aiohttp.ClientPayloadError("interim replies without end")

    # What aiohttp and the event loop call

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        super().data_received(data)
        if self.on_change is not None:
            self.on_change()

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Tell the reader of the body as well: aiohttp lets it wait for ever when a later part of it is framed wrongly."""
        body = self._payload
        super().set_exception(exc, exc_cause or exc)
        if isinstance(exc, HttpProcessingError) and body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError(type(exc).__name__), exc)
        if self.on_change is not None:
            self.on_change()

    def connection_lost(self, exc: BaseException | None) -> None:
        """A body that lasts as long as its connection is complete if that was closed, but not if it broke."""
        body = self._payload
        if exc is not None and body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError(type(exc).__name__), exc)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        super().connection_lost(exc)
        if self.on_change is not None:
            self.on_change()

    def pause_reading(self) -> None:
        """Too much has come that nobody reads."""
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called for each piece that is read. As long as nothing was ever paused there is nothing to do."""
        if self._was_paused:
            super().resume_reading(resume_parser)
