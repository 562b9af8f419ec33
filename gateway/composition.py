"""Puts the parts together: which store, which apps, and how they start, serve and stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from gateway.admin import create_admin_app
from gateway.config import Config, RedisSettings
from gateway.demo_upstream import DemoSettings, create_demo_upstream
from gateway.errors import ConfigurationError, GatewayError, StoreUnavailable
from gateway.export import Exporter, ReceiptFiles, Totals, follow
from gateway.policy import Accounting
from gateway.prices import Catalogue, Price, PriceBook, PriceList
from gateway.proxy import ProxyParts, create_proxy_app, webhook_target
from gateway.registry import Registry
from gateway.secrets import Vault, local_master_key, parse_master_key
from gateway.serving import ASGIApp, Listener, check_server, serve
from gateway.store import EmbeddedServer, ReceiptStore, Stores, connect, describe, open_stores
from gateway.telemetry import AccessLog, Metrics
from gateway.tokens import TokenCounter

_LOG = logging.getLogger("gateway")

GARBAGE_THRESHOLD = 10_000
"""Objects that are made and not gone before the garbage collector looks at the young ones; Python's own is 700."""

Addresses = Mapping[str, tuple[str, int]]


class Runner(Protocol):
    """`run_servers`, or what does the same in several processes."""

    async def __call__(
        self,
        config: Config,
        parts: Collection[str],
        *,
        embedded: bool,
        local: bool = False,
        demo_port: int | None = None,
        prepare: Callable[[Stores], Awaitable[None]] | None = None,
        ready: Callable[[Addresses], None] | None = None,
    ) -> None:
        """Serve until a signal says stop."""


class Shutdown:
    """Turns signals into two events: first ``leaving`` (not ready any more), then ``now`` (stop accepting, drain).

    SIGTERM waits ``delay_ms`` in between, so that load balancers can look elsewhere; SIGINT, and a second signal, do not.
    """

    def __init__(self, delay_ms: int) -> None:
        self.leaving = asyncio.Event()
        self.now = asyncio.Event()
        self._delay = delay_ms / 1_000

    def listen(self) -> None:
        """Take over SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._begin, self._delay)
        loop.add_signal_handler(signal.SIGINT, self._begin, 0.0)

    def leave(self) -> None:
        """Leave, and stop after the delay; nothing if that has begun."""
        if not self.leaving.is_set():
            self._begin(self._delay)

    def _begin(self, delay: float) -> None:
        if self.leaving.is_set():
            self.now.set()
            return
        self.leaving.set()
        asyncio.get_running_loop().call_later(delay, self.now.set)


@asynccontextmanager
async def store_server(config: Config, *, embedded: bool) -> AsyncIterator[str | None]:
    """The URL of an embedded server that runs meanwhile, or None for the configured one. Raises ConfigurationError."""
    if embedded:
        async with EmbeddedServer(config.redis.data_dir) as url:
            yield url
    else:
        yield None


@asynccontextmanager
async def opened_stores(config: Config, url: str | None) -> AsyncIterator[Stores]:
    """The stores at a URL or as configured, with their scripts loaded. Raises ConfigurationError, StoreUnavailable."""
    async with AsyncExitStack() as stack:
        connection = connect(config.redis, url=url)
        stack.push_async_callback(connection.close)
        max_receipts = config.usage.max_receipts if config.usage.receipts else None
        yield await open_stores(connection, config.limits.lease, config.usage.retention, max_receipts=max_receipts)


async def answers(settings: RedisSettings) -> bool:
    """True if a store answers where the configuration says."""
    connection = connect(settings)
    try:
        await connection.ping()
    except GatewayError:
        return False
    finally:
        await connection.close()
    return True


def master_key(config: Config, *, own: bool) -> bytes | None:
    """The configured key, else if ``own`` one that is made in the data folder. Raises ConfigurationError."""
    if config.secrets.master_key is not None:
        return parse_master_key(config.secrets.master_key.get_secret_value())
    return local_master_key(config.redis.data_dir) if own else None


def accounting_of(config: Config, catalogue: Catalogue) -> Accounting:
    """What counts tokens and knows prices, as configured. Raises ConfigurationError."""
    counter = TokenCounter(exact=config.limits.count_prompts == "exact")
    if config.limits.count_prompts == "exact" and not counter.is_exact:
        raise ConfigurationError("limits.count_prompts: exact needs `pip install ai-gateway[tokens]`")
    prices = config.prices
    fallback = Price.of(prices.fallback) if prices.unknown_model == "price" else None
    book = PriceBook(catalogue, fallback, PriceList(prices.models))
    return Accounting(counter, book, config.limits.default_output_tokens)


async def run_servers(
    config: Config,
    parts: Collection[str],
    *,
    embedded: bool,
    local: bool = False,
    demo_port: int | None = None,
    prepare: Callable[[Stores], Awaitable[None]] | None = None,
    ready: Callable[[Addresses], None] | None = None,
) -> None:
    """Serve ``admin`` and/or ``proxy`` until a signal says stop. Raises ConfigurationError, StoreUnavailable.

    ``local`` says that this machine is all there is: where no master key is configured, one is made here, as it is with the
    embedded store; replicas on several machines must be given the same. ``demo_port`` also serves the demo upstream there.
    ``prepare`` may write to the store before anything is served; ``ready`` is called once every listener accepts.
    """
    check_server(config.server)
    shutdown = Shutdown(config.server.drain_delay)
    shutdown.listen()
    async with store_server(config, embedded=embedded) as url, opened_stores(config, url) as stores:
        if prepare is not None:
            await prepare(stores)
        own_key = embedded or local
        await serve_parts(config, parts, stores, shutdown, own_key=own_key, demo_port=demo_port, ready=ready, metrics=Metrics())
    _LOG.info("stopped")


def addresses(config: Config, parts: Collection[str], demo_port: int | None) -> dict[str, tuple[str, int]]:
    """Host and port of each listener, by its name."""
    server = config.server
    own = {"admin": (server.admin_host, server.admin_port), "proxy": (server.proxy_host, server.proxy_port)}
    demo = {} if demo_port is None else {"demo": ("127.0.0.1", demo_port)}
    return {name: address for name, address in own.items() if name in parts} | demo


async def serve_parts(
    config: Config,
    parts: Collection[str],
    stores: Stores,
    shutdown: Shutdown,
    *,
    own_key: bool,
    demo_port: int | None,
    ready: Callable[[Addresses], None] | None,
    metrics: Metrics,
    sockets: Mapping[str, socket.socket] | None = None,
) -> None:
    """Serve until the shutdown; on ``sockets`` if they are bound already. Raises ConfigurationError."""
    registry = Registry.load([Path(path) for path in config.plugins.paths])
    vault = Vault(master_key(config, own=own_key))
    accounting = accounting_of(config, Catalogue.bundled())
    apps: dict[str, ASGIApp] = {}
    if "admin" in parts:
        apps["admin"] = create_admin_app(stores, registry, vault, config, accounting, draining=shutdown.leaving.is_set)
    if "proxy" in parts:
        proxy_parts = ProxyParts(
            config=config,
            stores=stores,
            registry=registry,
            vault=vault,
            accounting=accounting,
            metrics=metrics,
            access_log=AccessLog(sys.stdout if config.log.access else None),
            draining=shutdown.leaving.is_set,
        )
        apps["proxy"] = create_proxy_app(proxy_parts)
    if demo_port is not None:
        apps["demo"] = create_demo_upstream(DemoSettings())
    _LOG.info("starting %s", ", ".join(apps))
    where = addresses(config, parts, demo_port)
    _spare_the_collector()
    await serve(
        [Listener(app, *where[name], name) for name, app in apps.items()],
        config.server,
        shutdown.now,
        ready=ready,
        leaving=shutdown.leaving,
        write_stall_ms=config.limits.write_stall_timeout,
        sockets=sockets,
        reserved_files=config.upstream.most_connections + config.redis.pool_size,
    )


def _scheme(config: Config, part: str) -> str:
    return "https" if config.server.has_tls(part) else "http"


def _spare_the_collector() -> None:
    """What was made until now stays until the end: the garbage collector need not look at it again.

    Requests leave no cycles behind, so it may come less often, too; it took a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)


async def run_demo_upstream(config: Config, host: str, port: int, settings: DemoSettings) -> None:
    """Serve the demo upstream alone."""
    shutdown = Shutdown(0)
    shutdown.listen()
    listener = Listener(create_demo_upstream(settings), host, port, "demo")
    await serve([listener], config.server, shutdown.now)


async def export_usage(config: Config, folder: Path, max_file_bytes: int, every_ms: int | None) -> str:
    """Export receipts to files in a folder: once, or every so often until a signal says stop. Returns what was exported.

    Raises ConfigurationError, and if it is done once StoreUnavailable, OSError of a file and what else went wrong.
    """
    shutdown = Shutdown(0)
    shutdown.listen()
    totals = Totals()

    @asynccontextmanager
    async def opened() -> AsyncIterator[ReceiptStore]:
        async with AsyncExitStack() as stack:
            url = None
            if config.redis.is_embedded:
                embedded = EmbeddedServer(config.redis.data_dir)
                url = await embedded.running()
                if url is None and every_ms is not None:
                    raise StoreUnavailable("no gateway runs the embedded store")
                url = url or await stack.enter_async_context(embedded)
            yield (await stack.enter_async_context(opened_stores(config, url))).receipts

    with ReceiptFiles(folder, max_file_bytes).opened() as files:
        if every_ms is not None:
            await follow(opened, files, totals, every_ms / 1_000, shutdown.now)
        else:
            async with opened() as receipts:
                exporter = Exporter(receipts, files, totals)
                await exporter.run(shutdown.now)
                if await exporter.tidy():
                    await exporter.run(shutdown.now)
        return (
            f"exported to {folder}: receipts {totals.receipts}, tenants {len(totals.tenants)}, files {len(files.written)};"
            f" lost before they were exported: {totals.lost}"
        )


def check(config: Config) -> list[str]:
    """What a configuration would start, one line a finding. Raises ConfigurationError for what would stop it."""
    check_server(config.server)
    registry = Registry.load([Path(path) for path in config.plugins.paths])
    if not config.redis.is_embedded:
        connect(config.redis)
    if config.secrets.master_key is not None:
        parse_master_key(config.secrets.master_key.get_secret_value())
    receiver = webhook_target(config)
    signed = "" if config.alerts.webhook_secret else " (not signed)"
    return [
        f"admin   {_scheme(config, 'admin')}://{config.server.admin_host}:{config.server.admin_port}"
        + ("" if config.server.admin_token else " (no operator token: open to whoever reaches it)"),
        f"proxy   {_scheme(config, 'proxy')}://{config.server.proxy_host}:{config.server.proxy_port} for tenants under "
        + ", ".join(config.server.tenant_domains),
        f"store   {describe(config.redis)}",
        f"plugins {', '.join(registry.names())}",
        *([] if receiver is None else [f"alerts  {receiver.origin}{signed}"]),
    ]
