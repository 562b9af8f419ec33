"""Calls of many callers over one connection to a server: what is handed over in one turn of the event loop is one write.

What is not written yet may be dropped or go over another connection; what is written belongs to its `Link`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError

from gateway.store.breaker import Breaker, NotSent
from gateway.store.link import TIMER_GRAIN_S, Call, Link, Word, pack

MAX_PENDING = 4_096
"""Calls of one server that may wait for their replies; about what it runs within the deadline."""


class Commands(Protocol):
    """Takes commands that have keys, on any server or cluster."""

    def call(self, *words: Word) -> Awaitable[Any]:
        """The reply, or redis-py's exception for it, `NotSent` if the command was never written.

        The command is EVALSHA or EVAL, whose fourth word is its first key, or GET.
        """

    def breakers(self) -> Sequence[Breaker]:
        """Of the servers that are known, if they have such."""

    async def aclose(self) -> None:
        """Fail what is waiting and close every connection."""


class Server(Protocol):
    """Where a multiplexed connection leads."""

    def make_connection(self) -> AbstractConnection:
        """A connection of redis-py's, not yet connected."""

    def is_current(self, connection: AbstractConnection) -> bool:
        """Whether new calls may go over this connection; asked before each write."""

    async def is_needed(self) -> bool:
        """False if no calls will come for this server; asked before each probe."""


class MultiplexedConnection:
    """One connection to one server, for any number of callers; made when it is needed and again when it was lost.

    A call is sent once at most. It fails ``timeout`` seconds after it was handed over, connecting included, whatever the server
    does; so does one more than ``max_pending``, at once. A connection on which a call was late gets no new ones and ends with
    those it has: the next call connects anew, while what is in flight may still be answered in time. While the breaker is
    open every call fails at once; the probe that closes it leaves its connection to those that come then.
    """

    def __init__(self, server: Server, name: str, timeout: float, max_pending: int = MAX_PENDING) -> None:
        self.breaker = Breaker(name, self._probe)
        self._server = server
        self._timeout = timeout
        self._max_pending = max_pending
        self._waiting: deque[Call] = deque()
        self._is_flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._links: set[Link] = set()
        self._is_closed = False

    def call(self, *words: Word) -> asyncio.Future[Any]:
        """As in `Commands`."""
        return self.send(pack(words))

    def send(self, packed: bytes, *, asks: bool = False) -> asyncio.Future[Any]:
        """The reply to a packed command; ``asks`` puts ASKING right before it."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        if self.breaker.is_open:
            reply.set_exception(NotSent("the server does not answer"))
            return reply
        link = self._link
        if len(self._waiting) + (0 if link is None else len(link.in_flight)) >= self._max_pending:
            reply.set_exception(MaxConnectionsError("too many calls are waiting for their replies"))
            return reply
        now = loop.time()
        self._waiting.append(Call(packed, reply, now, now + self._timeout, asks))
        if not self._is_flush_due:
            self._is_flush_due = True
            loop.call_soon(self._flush)
        return reply

    def breakers(self) -> Sequence[Breaker]:
        """As in `Commands`."""
        return (self.breaker,)

    async def aclose(self) -> None:
        """As in `Commands`. Later calls fail."""
        self._is_closed = True
        await self.breaker.stop()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._flush()
        links = list(self._links)
        for link in links:
            link.abort()
        await asyncio.gather(*(link.lost for link in links))

    def _flush(self) -> None:
        self._is_flush_due = False
        if not self._waiting:
            return
        if self._is_closed:
            self._fail_waiting(RedisConnectionError("the connection was closed"))
            return
        link = self._link
        if link is not None and not (link.is_open() and self._server.is_current(link.connection)):
            link.retire()
            link = self._link = None
        if link is not None:
            link.write(self._waiting)
        elif self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._waiting[0].deadline, self._expire)

    async def _connect(self) -> None:
        began = asyncio.get_running_loop().time()
        connection = self._server.make_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await self._use(connection)
        except Exception as error:  # whatever it is, nobody is left waiting for it
            self.breaker.failed(self._waiting[-1].began if self._waiting else began, error)
            self._fail_waiting(error)
        finally:
            self._connecting = None
            if connection.is_connected:  # and not taken over
                await connection.disconnect(nowait=True)
        self._flush()

    async def _probe(self) -> bool:
        if not await self._server.is_needed():
            return False
        connection = self._server.make_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            # one that loads its data or runs a script for long takes connections, and says so when it is asked
            await connection.send_command("PING")
            await connection.read_response()
            await self._use(connection)
        finally:
            if connection.is_connected:
                await connection.disconnect(nowait=True)
        return True

    async def _use(self, connection: AbstractConnection) -> None:
        if await connection.can_read():
            raise RedisConnectionError("the server ended the connection or sent what nobody asked for")
        if self._link is not None:
            self._link.retire()
        self._link = Link(connection, self.breaker, self._flush, self._links.discard)
        self._links.add(self._link)

    def _fail_waiting(self, error: Exception) -> None:
        while self._waiting:
            # each its own: whoever raises one adds to it
            own = NotSent(str(error))
            own.__cause__ = error
            self._waiting.popleft().fail(own)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting and (self._waiting[0].deadline <= now or self._waiting[0].reply.done()):
            call = self._waiting.popleft()
            if not call.reply.done():
                late = NotSent("no connection in time")
                call.reply.set_exception(late)
                self.breaker.failed(call.began, late)
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_at(max(self._waiting[0].deadline, now + TIMER_GRAIN_S), self._expire)
