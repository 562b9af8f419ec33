"""Serves all listeners, and drains them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from typing import Any, TypeVar

from gateway.config import ServerSettings
from gateway.serving.bounds import Bounds
from gateway.serving.certificate import Certificate
from gateway.serving.engine import Assignment, Server, load_engine
from gateway.serving.lifespan import lifespan_of
from gateway.serving.listener import Listener, bind

Ready = Callable[[Mapping[str, tuple[str, int]]], None]

T = TypeVar("T")

CLEANUP_MS = 5_000

logger = logging.getLogger("gateway.server")


async def serve(
    listeners: Sequence[Listener],
    settings: ServerSettings,
    shutdown: asyncio.Event,
    *,
    ready: Ready | None = None,
    leaving: asyncio.Event | None = None,
    write_stall_ms: int = 30_000,
    cleanup_ms: int = CLEANUP_MS,
    sockets: Mapping[str, socket.socket] | None = None,
    reserved_files: int = 0,
) -> None:
    """Serve all listeners until ``shutdown`` is set, then drain and return.

    ``ready`` is called once with ``{name: (host, port)}`` when all of them accept. Draining refuses new connections, closes
    idle ones, and gives running requests ``settings.drain_timeout``; what still runs then is cancelled and has
    ``cleanup_ms`` to unwind (close its upstream, settle). ``leaving``, set some time before ``shutdown``, makes replies
    carry ``connection: close``, so that clients with a connection pool have left before the sockets close. A client that
    accepts no byte for ``write_stall_ms`` is disconnected (by the kernel, where it has TCP_USER_TIMEOUT).

    ``sockets`` are bound already, by the listener's name; they are closed in the end. ``reserved_files`` is how many of the
    process's open files the apps may need; clients' connections get the rest.

    Raises ConfigurationError when the engine is not installed, the certificate cannot be used or an address cannot be bound,
    with nothing served yet, or when an app refuses to start.
    """
    engine = load_engine(settings.engine)
    secured = {listener.name for listener in listeners if settings.has_tls(listener.name)}
    certificate = Certificate(settings, engine.check_pair) if secured else None
    async with AsyncExitStack() as stack:
        bound = [
            stack.enter_context(
                closing(
                    sockets[listener.name]
                    if sockets is not None
                    else bind(listener.name, listener.host, listener.port, write_stall_ms)
                )
            )
            for listener in listeners
        ]
        for listener in listeners:
            await stack.enter_async_context(lifespan_of(listener))
        signs = (shutdown,) if leaving is None else (shutdown, leaving)
        servers = [
            engine.create_server(
                Assignment(
                    listener.name,
                    listener.app,
                    sock,
                    settings,
                    signs,
                    cleanup_ms,
                    Bounds.of(listener.name, settings, reserved_files),
                    certificate if listener.name in secured else None,
                )
            )
            for listener, sock in zip(listeners, bound, strict=True)
        ]
        if certificate is not None:
            stack.callback(asyncio.create_task(certificate.watch(), name="certificate").cancel)
        await _run(servers, shutdown, ready, settings.drain_timeout / 1000, cleanup_ms / 1000)


def check_server(settings: ServerSettings) -> None:
    """Raise ConfigurationError for what would keep every listener from being served."""
    engine = load_engine(settings.engine)
    if settings.tls_certificate is not None:
        Certificate(settings, engine.check_pair)


def run_event_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` in a new event loop, uvloop's where it is installed, and return its result."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        loop_factory = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.get_loop().set_exception_handler(_loop_error)
        return runner.run(main)


def _loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Keep a client whose connection times out from writing tracebacks into the log; Hypercorn lets that error escape."""
    if isinstance(context.get("exception"), OSError) and "client_connected_cb" in context["message"]:
        logger.debug("lost a client: %r", context["exception"])
    else:
        loop.default_exception_handler(context)


async def _run(
    servers: Sequence[Server], shutdown: asyncio.Event, ready: Ready | None, drain_s: float, cleanup_s: float
) -> None:
    stop = asyncio.Event()
    tasks = [asyncio.create_task(server.run(stop), name=f"{server.name} listener") for server in servers]
    until_shutdown = asyncio.create_task(_until_shutdown(servers, shutdown, ready))
    try:
        await asyncio.wait([until_shutdown, *tasks], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        _, draining = await asyncio.wait(tasks, timeout=drain_s)
        if draining:
            logger.warning("drain timeout: %d running requests are cut", sum(server.cut() for server in servers))
            await asyncio.wait(draining, timeout=cleanup_s)
    finally:
        # Hypercorn waits without end until a connection is flushed, even to a peer that does not read. Leave those behind.
        left = [task for task in (until_shutdown, *tasks) if not task.done()]
        stop.set()
        for server in servers:
            server.cut()
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=cleanup_s)
        _ = [task.exception() for task in left if task.done() and not task.cancelled()]  # not news: it was cancelled
    for task in (until_shutdown, *tasks):
        if task not in left:
            task.result()


async def _until_shutdown(servers: Sequence[Server], shutdown: asyncio.Event, ready: Ready | None) -> None:
    for server in servers:
        await server.accepting.wait()
    if ready is not None:
        ready({server.name: server.address for server in servers})
    await shutdown.wait()
