"""The Quart app of the proxy: its own pages, with the data plane in front of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quart import Quart, Response

from gateway.config import Config
from gateway.errors import StoreUnavailable
from gateway.forwarder import Forwarder
from gateway.policy import Accounting, Compiler
from gateway.proxy.admitter import Admitter
from gateway.proxy.alerts import Alerts
from gateway.proxy.background import Background
from gateway.proxy.configurations import Configurations
from gateway.proxy.data_plane import DataPlane
from gateway.proxy.forwarding import Forwarding
from gateway.proxy.gate import Gate
from gateway.proxy.hosts import TenantDomains
from gateway.proxy.last_known import LastKnown
from gateway.proxy.leave_watch import LeaveWatches
from gateway.proxy.loop_watch import LoopWatch
from gateway.proxy.renewer import Renewer
from gateway.proxy.seeding import Seeding
from gateway.proxy.settler import Settler
from gateway.proxy.webhook import Webhook, webhook_target
from gateway.registry import Registry
from gateway.secrets import Vault
from gateway.store import Stores
from gateway.telemetry import AccessLog, Metrics
from gateway.web import health_blueprint, install_error_handlers

DRAIN_BACKGROUND_MS = 5_000


@dataclass(frozen=True, slots=True)
class ProxyParts:
    """What the proxy is given; it opens and closes only its own connections to targets."""

    config: Config
    stores: Stores
    registry: Registry
    vault: Vault
    accounting: Accounting
    metrics: Metrics
    access_log: AccessLog
    draining: Callable[[], bool]


def last_known_of(parts: ProxyParts) -> LastKnown | None:
    """What admits while the store is away, if anything is to."""
    limits = parts.config.limits
    if limits.store_failure != "cached" or limits.replicas is None:
        return None
    return LastKnown(limits.replicas * parts.config.server.workers, limits.cached_for, parts.metrics.cached.inc)


def create_proxy_app(parts: ProxyParts) -> Quart:
    """An ASGI app for any server. Raises ConfigurationError."""
    app = Quart("gateway.proxy", static_folder=None)
    install_error_handlers(app)
    last_known = last_known_of(parts)

    async def check_store() -> None:
        try:
            await parts.stores.connection.ping()
        except StoreUnavailable:
            if last_known is None or not last_known.is_fresh:
                raise

    app.register_blueprint(health_blueprint(check_store, parts.draining))

    @app.get("/metrics")
    async def metrics() -> Response:
        text, media_type = parts.metrics.exposition()
        return Response(text, content_type=media_type)

    config = parts.config
    background = Background()
    watches = LeaveWatches()
    forwarder = Forwarder(config.upstream, parts.metrics.outage)
    target = webhook_target(config)
    webhook = None if target is None else Webhook(config, target, forwarder)
    alerts = Alerts(parts.stores.alerts, background, parts.metrics, webhook)
    domains = TenantDomains(config.server.tenant_domains)
    gate = Gate(config.limits.max_in_flight, config.limits.max_in_flight_per_tenant)
    max_lag_ms = config.limits.max_loop_lag
    loop_watch = LoopWatch(
        config.limits.plugin_timeout, lambda lag_ms: gate.adjust(late=lag_ms > max_lag_ms), parts.metrics.loop_stalled
    )
    parts.metrics.show_in_flight(lambda: gate.in_flight)
    parts.metrics.show_loop_lag(lambda: loop_watch.lag_ms)
    parts.metrics.show_breakers(parts.stores.connection.breaker_states)
    compiler = Compiler(parts.registry, parts.vault, config, parts.metrics.plugin_failed)
    settlements = parts.stores.settlements
    renewer = Renewer(settlements, config.limits.lease, config.limits.renewal)
    seeding = Seeding(parts.stores.admissions, parts.stores.usage)
    settler = Settler(settlements, config.limits.lease, parts.metrics.unsettled.inc)
    admitter = Admitter(
        parts.stores.admissions,
        Configurations(compiler),
        domains,
        settler,
        seeding,
        renewer,
        parts.accounting,
        config.limits.max_inspected_bytes,
        last_known,
    )

    @app.before_serving
    async def start() -> None:
        await forwarder.start()
        renewer.start()
        watches.start()
        parts.access_log.start()
        loop_watch.start()

    @app.after_serving
    async def stop() -> None:
        loop_watch.stop()
        await watches.stop()
        await renewer.stop()
        alerts.stop()
        await background.drain(DRAIN_BACKGROUND_MS)
        await settler.drain(DRAIN_BACKGROUND_MS)
        await forwarder.stop()
        await parts.access_log.stop()

    data_plane = DataPlane(
        app.asgi_app,
        config=config,
        domains=domains,
        admitter=admitter,
        forwarding=Forwarding(admitter, parts.accounting, forwarder, background, alerts, watches, config.limits),
        gate=gate,
        metrics=parts.metrics,
        access_log=parts.access_log,
    )
    # Quart's own seam for ASGI middleware
    app.asgi_app = data_plane  # type: ignore[method-assign]
    return app
