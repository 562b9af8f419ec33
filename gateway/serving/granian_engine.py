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
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from granian import _granian
from granian.http import HTTP1Settings, HTTP2Settings

from gateway.errors import ConfigurationError
from gateway.serving import granian_trial
from gateway.serving.certificate import Pair
from gateway.serving.engine import Assignment
from gateway.serving.granian_exchange import Exchange, mend
from gateway.serving.listener import BACKLOG
from gateway.serving.sweeper import IS_ABLE, Activity, Sweeper

MIN_BUFFER_BYTES = 8 << 10
"""hyper refuses to work with less."""

FLUSH_S = 3.0
"""How long connections may last after the last reply of a drain has been written; Granian does not tell what is left of it."""

DONE_LATER_S = 0.25
"""How long Granian is not told of the end of a request that was answered before its body had come: hyper closes the connection
if the reply has gone by then, and otherwise waits for the body, without a limit."""

TRIAL_S = 30.0
"""Longest time that the trial of a certificate may take."""

STREAMS = 100
"""Requests at once on a connection of HTTP/2."""

WINDOW_BYTES = 64 << 10
"""What a client may send of a body, and is kept of a reply, before anybody takes it."""

CONNECTION_WINDOW_BYTES = 1 << 20
"""The same for all requests of a connection."""

PING_EVERY_MS = 20_000
PONG_S = 10
"""When a client that says nothing is asked whether it is there, and how long it may take to answer."""

_RUST: Any = _granian  # its stubs describe an older one

logger = logging.getLogger("gateway.server")


def create_server(assignment: Assignment) -> GranianServer:
    """See `Engine`."""
    return GranianServer(assignment)


def check_pair(pair: Pair) -> None:
    """Try a certificate out in another process; see `granian_trial`. Raises ConfigurationError."""
    with pair.files() as (chain, key, fds):
        command = [sys.executable, "-P", granian_trial.__file__, chain, key, pair.min_version]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        tried = subprocess.run(command, env=environment, pass_fds=fds, capture_output=True, timeout=TRIAL_S, check=False)  # noqa: S603
    if tried.returncode:
        raise ConfigurationError("server.tls_certificate, server.tls_key: Granian's TLS library cannot use them")


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
        self._bounds = assignment.bounds
        self._certificate = assignment.certificate
        self._running: set[asyncio.Task[None]] = set()
        self._workers: set[_Worker] = set()
        self._has_http2 = assignment.http2
        self._activity = Activity(assignment.settings.keep_alive / 1000, assignment.settings.first_header_timeout / 1000)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set and every connection has ended."""
        logging.getLogger("_granian").setLevel(logging.WARNING)  # it announces its threads
        current = self._start_worker()
        sweeping = asyncio.create_task(Sweeper(self.address[1], self._bounds, self._activity).run())

        def renew() -> None:
            nonlocal current
            if not stop.is_set():
                before, current = current, self._start_worker()
                before.signal.set()  # its connections end with the reply that they are at

        if self._certificate is not None:
            self._certificate.on_renewal(renew)
        self.accepting.set()
        try:
            await stop.wait()
        finally:
            sweeping.cancel()
            self._socket.close()
            for worker in self._workers:
                worker.signal.set()
        await self._until_ended()

    def cut(self) -> int:
        """Cancel the requests that run; returns how many."""
        for task in self._running:
            task.cancel()
        return len(self._running)

    async def _until_ended(self) -> None:
        while self._workers:
            if self._running:
                await asyncio.wait(self._running)
            try:
                async with asyncio.timeout(FLUSH_S):
                    for worker in list(self._workers):
                        await worker.ended.wait()
            except TimeoutError:
                if not self._running:
                    logger.debug("%s: leaves connections behind that have not ended", self.name)
                    break

    def _start_worker(self) -> _Worker:
        loop = asyncio.get_running_loop()
        worker = _Worker(loop, self._workers.discard)
        self._workers.add(worker)
        scheduler = _RUST.CallbackScheduler(loop, self._start, None, None, None)

        def schedule(watcher: Any) -> None:  # what this returned, Granian would never let go of
            loop.call_soon_threadsafe(self._start, watcher)

        scheduler._schedule_fn = schedule
        http1 = HTTP1Settings(
            header_read_timeout=self._settings.keep_alive,
            max_buffer_size=max(MIN_BUFFER_BYTES, self._settings.max_header_bytes),
        )
        tls: dict[str, Any] = {}
        if self._certificate is not None:
            chain, key, _ = worker.files.enter_context(self._certificate.pair.files())
            version = f"tls{self._certificate.min_version}"
            tls = {"ssl_enabled": True, "ssl_cert": chain, "ssl_key": key, "ssl_protocol_min": version}
        fd = os.dup(self._socket.fileno())  # closed by Granian when it stops to accept
        holder = _RUST.SocketHolder(fd, False, BACKLOG) if sys.platform == "linux" else _RUST.SocketHolder(fd, False)
        accepting = _RUST.ASGIWorker(
            1,
            (None, holder),
            None,
            backpressure=self._bounds.total,
            http_mode="auto" if self._has_http2 else "1",
            http1_opts=http1,
            http2_opts=self._http2() if self._has_http2 else None,
            websockets_enabled=True,  # so that the app can refuse them
            **tls,
        )
        with _batch_policy():
            accepting.serve_async(scheduler, loop, worker.signal)
        return worker

    def _http2(self) -> HTTP2Settings:
        """What hyper bounds besides: resets of requests not yet seen (20), errors of the client's (1 024), frames of a head."""
        return HTTP2Settings(
            max_concurrent_streams=STREAMS,
            max_headers_size=self._settings.max_header_bytes,
            initial_stream_window_size=WINDOW_BYTES,
            initial_connection_window_size=CONNECTION_WINDOW_BYTES,
            max_send_buffer_size=WINDOW_BYTES,
            keep_alive_interval=PING_EVERY_MS,
            keep_alive_timeout=PONG_S,
        )

    def _start(self, watcher: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(watcher))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, watcher: Any) -> None:
        scope = watcher.scope
        exchange = Exchange(scope, watcher.proto, self._signs)
        is_http = scope["type"] == "http"
        if is_http:
            mend(scope)
        if IS_ABLE:
            self._activity.begin(scope["client"])
        try:
            if scope["http_version"] == "2":
                await exchange.translate()
            if not is_http or exchange.is_framed():
                await self._app(scope, exchange.receive if is_http else watcher.proto.receive, exchange.send)
        except asyncio.CancelledError:  # by `cut`, or by the app itself when its client had left: nobody waits for the task
            pass
        except Exception:
            logger.exception("Error in ASGI Framework")
        finally:
            exchange.forget()
            if IS_ABLE:
                self._activity.end(scope["client"])
            if is_http and not exchange.is_ended:
                exchange.break_off()
            if is_http and exchange.misses_body:
                asyncio.get_running_loop().call_later(DONE_LATER_S, watcher.done)
            else:
                watcher.done()


class _Worker:
    """A thread of Rust. ``files`` are those it may still have to read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, forget: Any) -> None:
        self.ended = asyncio.Event()
        self.files = contextlib.ExitStack()
        self.signal = _RUST.WorkerSignal()

        def end() -> None:
            self.files.close()
            self.ended.set()
            forget(self)

        self.signal.add_cb(lambda: loop.call_soon_threadsafe(end))


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
