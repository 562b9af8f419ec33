"""One connection to a server, and the calls whose replies it brings.

A reply belongs to the oldest call that has none. So no call is ever taken back once it is written: who no longer waits for a
reply, cancelled or late, has it read and dropped, and whoever comes next gets their own.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis._parsers.base import BaseParser
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.store.breaker import Breaker

TIMER_GRAIN_S = 0.005
"""Calls that are late within such a time of each other fail together."""

Word = str | bytes | int

pack: Callable[[tuple[Word, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]  # it says "a tuple of one"
"""A command as it goes over the wire."""

_WRITE_BYTES = 256 * 1_024
_ASKING = pack(("ASKING",))
_NO_REPLY = object()


class Call:
    """A command and the future of its reply; it ``began`` and is late at ``deadline`` on the loop's clock."""

    __slots__ = ("asks", "began", "deadline", "packed", "reply")

    def __init__(self, packed: bytes, reply: asyncio.Future[Any], began: float, deadline: float, asks: bool) -> None:
        self.packed = packed
        self.reply = reply
        self.began = began
        self.deadline = deadline
        self.asks = asks

    def fail(self, error: Exception) -> None:
        """Unless the caller no longer waits."""
        if not self.reply.done():
            self.reply.set_exception(error)


class Link(asyncio.Protocol):
    """A connection that is made, and the calls that were written to it; the breaker is told how they end."""

    def __init__(
        self,
        connection: AbstractConnection,
        breaker: Breaker,
        on_writable: Callable[[], None],
        on_lost: Callable[[Link], None],
    ) -> None:
        self.connection = connection
        self.in_flight: deque[Call] = deque()
        self.lost = asyncio.get_running_loop().create_future()
        self._breaker = breaker
        self._on_writable = on_writable
        self._on_lost = on_lost
        self._is_paused = False
        self._is_retired = False
        self._timer: asyncio.TimerHandle | None = None
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_NO_REPLY)
        self._writer = _take_over(connection, self)
        self._transport = self._writer.transport

    def is_open(self) -> bool:
        """Whether new calls may be written."""
        return not (self._is_retired or self._transport.is_closing())

    def write(self, waiting: deque[Call]) -> None:
        """Send what is waiting, as far as the server keeps up with reading."""
        in_flight = self.in_flight
        while waiting and not self._is_paused:
            packed = []
            size = 0
            while waiting and size < _WRITE_BYTES:
                call = waiting.popleft()
                if call.reply.done():
                    continue
                if call.asks:
                    in_flight.append(_nobodys(call))
                    packed.append(_ASKING)
                in_flight.append(call)
                packed.append(call.packed)
                size += len(call.packed)
            if packed:
                self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))
        if self._timer is None and in_flight:
            self._timer = asyncio.get_running_loop().call_at(in_flight[0].deadline, self._expire)

    def retire(self) -> None:
        """Write nothing any more, and end when the last reply has come or is late."""
        self._is_retired = True
        if not self.in_flight:
            self.abort()

    def abort(self) -> None:
        """End now; what is in flight fails."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Replies, or parts of them."""
        in_flight, next_reply = self.in_flight, self._reader.gets
        in_time = False
        try:
            self._reader.feed(data)
            while (reply := next_reply()) is not _NO_REPLY:
                if type(reply) is hiredis.PushNotification:
                    continue
                if not in_flight:
                    raise InvalidResponse("a reply that nobody asked for")
                future = in_flight.popleft().reply
                if isinstance(reply, Exception):
                    if isinstance(reply, ReadOnlyError):
                        # demoted; behind its name or with Sentinel waits the new primary
                        self._is_retired = True
                    if not future.done():
                        in_time = True
                        future.set_exception(reply)
                elif not future.done():
                    in_time = True
                    future.set_result(reply)
        except InvalidResponse as error:
            self._fail(error)
            self.abort()
        else:
            if in_time and self._breaker.failures:
                self._breaker.answered()
        if self._is_retired and not in_flight:
            self.abort()

    def pause_writing(self) -> None:
        """The server does not read."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._is_paused = False
        self._on_writable()

    def eof_received(self) -> None:
        """The server has ended it: what is still to be written is not waited for."""
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """What is in flight may have run or not."""
        self._is_retired = True
        if self._timer is not None:
            self._timer.cancel()
        self._fail(RedisConnectionError(f"the connection was lost: {exc or 'closed'}"))
        self.lost.set_result(None)
        self._on_lost(self)
        self._on_writable()

    def _fail(self, error: Exception) -> None:
        if self.in_flight:
            self._breaker.failed(self.in_flight[-1].began, error)
        while self.in_flight:
            self.in_flight.popleft().fail(copy.copy(error))

    def _expire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for call in self.in_flight:
            if call.deadline > now:
                self._timer = loop.call_at(max(call.deadline, now + TIMER_GRAIN_S), self._expire)
                break
            # it stays in its place: its reply may come, and is nobody else's
            if not call.reply.done():
                late = RedisTimeoutError("no reply in time")
                call.reply.set_exception(late)
                self._breaker.failed(call.began, late)
            self._is_retired = True
        else:
            if self._is_retired:
                self.abort()
        if self._is_retired:
            self._on_writable()


def _nobodys(call: Call) -> Call:
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    reply.cancel()
    return Call(b"", reply, call.began, call.deadline, asks=False)


def _take_over(connection: AbstractConnection, protocol: asyncio.Protocol) -> asyncio.StreamWriter:
    """Let a protocol of ours read what comes over a connection that redis-py has made.

    The streams are attributes of their own name in redis-py 8.1.0, and no method gives them away; without them the connection
    takes itself for disconnected. Returns the writer, which must be kept: it closes the transport when it is collected.
    """
    writer: asyncio.StreamWriter = connection._writer  # type: ignore[assignment]
    connection._reader = connection._writer = None
    writer.transport.set_protocol(protocol)
    return writer
