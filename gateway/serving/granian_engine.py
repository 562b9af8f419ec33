"""Granian: hyper, in a thread of Rust for each listener, calls our apps in our event loop. The only user of granian.

Its own servers want a process or a socket of their own, so this stands where ``granian.server.embed`` does: between its
workers and the loop. What it leaves out costs nothing, what differs from Hypercorn is made equal here; docs/servers.md
lists what cannot be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from typing import Any

from granian import _granian
from granian.http import HTTP1Settings

from gateway.serving.engine import Assignment
from gateway.serving.listener import BACKLOG, Message

MIN_BUFFER_BYTES = 8 << 10
"""hyper refuses to work with less."""

MAX_CONNECTIONS = 1 << 30
"""None of ours: beyond its own bound Granian stops accepting without a word."""

FLUSH_S = 3.0
"""How long connections may last after the last reply of a drain has been written; Granian does not tell what is left of it."""

DONE_LATER_S = 0.25
"""How long Granian is not told of the end of a request that was answered before its body had come: hyper closes the connection
if the reply has gone by then, and otherwise waits for the body, without a limit."""

Field = tuple[bytes, bytes]

_RUST: Any = _granian  # its stubs describe an older one

_UNNAMED: Field = (b"server", b"")
"""Granian names itself where a reply has no such field."""

_NO_HOST: Field = (b"host", b"")
_HEADS = frozenset({"http.response.start", "websocket.http.response.start"})
_OWN_REPLY: Message = {
    "type": "http.response.start",
    "headers": [(b"content-length", b"0"), (b"connection", b"close"), _UNNAMED],
}

logger = logging.getLogger("gateway.server")


def create_server(assignment: Assignment) -> GranianServer:
    """See `Engine`."""
    return GranianServer(assignment)


class GranianServer:
    """Serves one listener; see `Server`."""

    def __init__(self, assignment: Assignment) -> None:
        self.name = assignment.name
        self.address: tuple[str, int] = assignment.socket.getsockname()[:2]
        self.accepting = asyncio.Event()
        self._app = assignment.app
        self._socket = assignment.socket
        self._settings = assignment.settings
        self._signs = assignment.signs
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set and every connection has ended."""
        loop = asyncio.get_running_loop()
        logging.getLogger("_granian").setLevel(logging.WARNING)  # it announces its threads
        ended = asyncio.Event()
        signal = _RUST.WorkerSignal()
        signal.add_cb(lambda: loop.call_soon_threadsafe(ended.set))
        scheduler = _RUST.CallbackScheduler(loop, self._start, None, None, None)

        def schedule(watcher: Any) -> None:  # what this returned, Granian would never let go of
            loop.call_soon_threadsafe(self._start, watcher)

        scheduler._schedule_fn = schedule
        with _batch_policy():
            self._worker().serve_async(scheduler, loop, signal)
        self.accepting.set()
        try:
            await stop.wait()
        finally:
            signal.set()
        while not ended.is_set():
            if self._running:
                await asyncio.wait(self._running)
            try:
                async with asyncio.timeout(FLUSH_S):
                    await ended.wait()
            except TimeoutError:
                if not self._running:
                    logger.debug("%s: leaves connections behind that have not ended", self.name)
                    break

    def cut(self) -> int:
        """Cancel the requests that run; returns how many."""
        for task in self._running:
            task.cancel()
        return len(self._running)

    def _worker(self) -> Any:
        fd = self._socket.detach()  # closed by Granian when it stops to accept
        holder = _RUST.SocketHolder(fd, False, BACKLOG) if sys.platform == "linux" else _RUST.SocketHolder(fd, False)
        http1 = HTTP1Settings(
            header_read_timeout=self._settings.keep_alive,
            max_buffer_size=max(MIN_BUFFER_BYTES, self._settings.max_header_bytes),
        )
        return _RUST.ASGIWorker(
            1,
            (None, holder),
            None,
            backpressure=MAX_CONNECTIONS,
            http_mode="1",
            http1_opts=http1,
            websockets_enabled=True,  # so that the app can refuse them
        )

    def _start(self, watcher: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(watcher))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, watcher: Any) -> None:
        scope = watcher.scope
        exchange = _Exchange(scope, watcher.proto, self._signs)
        is_http = scope["type"] == "http"
        if is_http:
            _mend(scope)
        try:
            if not is_http or exchange.is_framed():
                await self._app(scope, exchange.receive if is_http else watcher.proto.receive, exchange.send)
        except asyncio.CancelledError:  # by `cut`, or by the app itself when its client had left: nobody waits for the task
            pass
        except Exception:
            logger.exception("Error in ASGI Framework")
        finally:
            if is_http and not exchange.is_ended:
                exchange.break_off()
            if is_http and exchange.misses_body:
                asyncio.get_running_loop().call_later(DONE_LATER_S, watcher.done)
            else:
                watcher.done()


class _Exchange:
    """One request and its reply: what Granian's own ``receive`` and ``send`` lack."""

    __slots__ = ("_is_asked", "_is_broken", "_left_bytes", "_proto", "_scope", "_signs", "is_ended")

    def __init__(self, scope: Any, proto: Any, signs: Sequence[asyncio.Event]) -> None:
        self._scope = scope
        self._proto = proto
        self._signs = signs
        self._left_bytes = 0
        self._is_asked = False
        self._is_broken = False
        self.is_ended = False

    def is_framed(self) -> bool:
        """Whether it is clear how long the body is; if not, the request has been refused."""
        length = _body_bytes(self._scope["headers"])
        if length is None:
            self._reply(400)
            self.is_ended = True
            return False
        self._left_bytes = length
        return True

    async def receive(self) -> Message:
        """A part of the body, or that the client has left."""
        if not self._left_bytes:
            if self._is_asked:
                return await self._leaving()
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        self._is_asked = True
        message: Message = await self._proto.receive()
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
            message = {**message, "headers": _fields(message.get("headers", ()), self._signs, is_early=self._left_bytes != 0)}
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


@contextlib.contextmanager
def _batch_policy() -> Iterator[None]:
    """Threads started within do not interrupt the event loop when they are woken, which each reply does (sched(7)).

    Where they share a core with it, they then take what has gathered in one go: a seventh less CPU for each request.
    """
    if sys.platform != "linux":
        yield
        return
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    if before != os.SCHED_OTHER:  # whoever started us has chosen
        yield
        return
    os.sched_setscheduler(0, os.SCHED_BATCH, parameters)
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, parameters)


def _mend(scope: Any) -> None:
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


def _fields(headers: Iterable[Field], signs: Iterable[asyncio.Event], *, is_early: bool) -> list[Field]:
    """The header fields of a reply, with ``connection: close`` if a sign is set.

    A reply that begins before its request has ended goes without a length: once it has sent so much, hyper would close the
    connection on a client that is still sending, and the reply may be lost on its way. Chunks end when the app says so.
    """
    fields = [field for field in headers if field[0] != b"content-length"] if is_early else list(headers)
    if any(sign.is_set() for sign in signs):
        fields.append((b"connection", b"close"))
    for name, _ in fields:
        if name == b"server":
            break
    else:
        fields.append(_UNNAMED)
    return fields
