"""Several processes behind the same ports: what the supervisor does itself, and what a worker does.

The supervisor binds the sockets, runs the embedded store if there is one, and serves nothing itself; its workers are alike and
share what is in the store. Ports stay bound while a worker is replaced: what has connected meanwhile is taken by the others.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from gateway.composition import Addresses, Shutdown, addresses, master_key, opened_stores, serve_parts, store_server
from gateway.config import Config
from gateway.errors import ConfigurationError, StoreUnavailable
from gateway.proxy import webhook_target
from gateway.registry import Registry
from gateway.serving import CLEANUP_MS, Supervisor, WorkerLink, WorkerProcess, bind, check_server, run_event_loop
from gateway.store import Stores
from gateway.telemetry import SHARED_METRICS, Metrics, forget_process, metrics_folder, start_logging

MARGIN_S = 10.0
"""What workers may need beyond the times that the configuration gives them."""

REFRESH_S = 0.25
"""How old what one worker tells of another one may be."""

_LOG = logging.getLogger("gateway")


@dataclass(frozen=True)
class Job:
    """What a worker is told: file descriptors of bound sockets by the name of their listener, and where the store is."""

    config: Config
    parts: tuple[str, ...]
    sockets: dict[str, int]
    store_url: str | None
    own_key: bool
    demo_port: int | None


async def run_workers(
    config: Config,
    parts: Collection[str],
    *,
    embedded: bool,
    local: bool = False,
    demo_port: int | None = None,
    prepare: Callable[[Stores], Awaitable[None]] | None = None,
    ready: Callable[[Addresses], None] | None = None,
) -> None:
    """`run_servers` in ``server.workers`` processes. Raises the same."""
    shutdown = Shutdown(config.server.drain_delay)
    shutdown.listen()
    # what would stop every worker is said once, here
    check_server(config.server)
    Registry.load([Path(path) for path in config.plugins.paths])
    master_key(config, own=embedded or local)
    webhook_target(config)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(store_server(config, embedded=embedded))
        async with opened_stores(config, url) as stores:
            if prepare is not None:
                await prepare(stores)
        metrics, lock = stack.enter_context(metrics_folder())
        sockets: dict[str, socket.socket] = {}
        for name, (host, port) in addresses(config, parts, demo_port).items():
            sockets[name] = stack.enter_context(closing(bind(name, host, port, config.limits.write_stall_timeout)))
        fds = {name: sock.fileno() for name, sock in sockets.items()}
        bound: Addresses = {name: sock.getsockname()[:2] for name, sock in sockets.items()}
        job = Job(config, tuple(parts), fds, url, embedded or local, demo_port)

        async def start() -> WorkerProcess:
            return await WorkerProcess.start(work, job, fds=[*fds.values(), lock], environment={SHARED_METRICS: str(metrics)})

        supervisor = Supervisor(
            config.server.workers,
            start,
            leaving=shutdown.leaving,
            stopping=shutdown.now,
            died=lambda pid: forget_process(pid, metrics),
        )
        closer = asyncio.create_task(_close_when(shutdown.now, sockets.values()))
        stack.callback(closer.cancel)
        patience_s = (config.server.drain_timeout + CLEANUP_MS) / 1_000 + MARGIN_S
        await supervisor.run(lambda: ready(bound) if ready is not None else None, patience_s)
    _LOG.info("stopped")


async def _close_when(event: asyncio.Event, sockets: Collection[socket.socket]) -> None:
    """Let go of the sockets, so that nothing can connect once the workers have closed theirs."""
    await event.wait()
    for sock in sockets:
        sock.close()


def work(ready_fd: int) -> None:
    """What a worker process does, from its first line to its last."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the supervisor says what follows
    link = WorkerLink(ready_fd)
    log = link.job.config.log
    start_logging(log.level, exception_messages=log.exception_messages)
    try:
        run_event_loop(_work(link, link.job))
    except (ConfigurationError, StoreUnavailable) as error:
        sys.exit(f"Error: {error}")


async def _work(link: WorkerLink, job: Job) -> None:
    shutdown = Shutdown(job.config.server.drain_delay)
    link.listen(shutdown.leaving.set, shutdown.now.set)
    # a service manager may tell every process; that is one signal, not a second one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, shutdown.leave)
    sockets = {name: socket.socket(fileno=fd) for name, fd in job.sockets.items()}
    metrics = Metrics()
    async with opened_stores(job.config, job.store_url) as stores:
        refresher = asyncio.create_task(_refresh(metrics))
        try:
            await serve_parts(
                job.config,
                job.parts,
                stores,
                shutdown,
                own_key=job.own_key,
                demo_port=job.demo_port,
                ready=lambda _addresses: link.ready(),
                metrics=metrics,
                sockets=sockets,
            )
        finally:
            refresher.cancel()


async def _refresh(metrics: Metrics) -> None:
    while True:
        metrics.refresh()
        await asyncio.sleep(REFRESH_S)
