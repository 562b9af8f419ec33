"""Series for Prometheus.

Labels come from closed sets (tenants and rules that exist, statuses, codes), so no client can add a series.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from gateway.errors import public_errors
from gateway.money import NANO
from gateway.telemetry.visit import Called, Visit

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STORE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)

_STATUSES = frozenset({499, *map(int, HTTPStatus)})

MOST_CODES = 200
"""Codes of refusals that are counted apart, the gateway's own among them; the rest is `OTHER`."""

OTHER = "other"

SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable: the folder in which the processes of a replica keep their series. Read when this module is imported."""


def forget_process(pid: int, folder: Path) -> None:
    """Drop what a dead process was doing from the shared series; what it has done stays counted."""
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def _status_label(status: int) -> str:
    """Targets choose statuses, so those that nobody has registered count as their class."""
    return str(status) if status in _STATUSES else f"{status // 100}xx"


class Metrics:
    """All series of a process, in a registry of their own; where `SHARED_METRICS` is set, shown summed over all processes."""

    def __init__(self) -> None:
        # the time at which each series was made is twice the output for a number nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        # looking a series up by its labels takes longer than counting
        self._ended: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._upstream: dict[str, Callable[[float], None]] = {}
        # input, output and cached tokens and nano-USD of calls since they were last shown
        self._called: dict[tuple[str, str], list[int]] = {}
        self._codes = {error.code for error in public_errors()}
        self._is_shared = SHARED_METRICS in os.environ
        self._shown: list[tuple[Gauge, Callable[[], float]]] = []
        self._read_breakers: Callable[[], Mapping[str, int]] = dict
        self.requests = Counter("gateway_requests", "Requests answered.", ["tenant", "rule", "status"], registry=registry)
        self.refusals = Counter(
            "gateway_refusals", "Requests answered by the gateway itself.", ["tenant", "code"], registry=registry
        )
        self.in_flight = Gauge(
            "gateway_requests_in_flight", "Requests being handled.", registry=registry, multiprocess_mode="livesum"
        )
        self.loop_lag = Gauge(
            "gateway_event_loop_lag_seconds",
            "How late the event loop is, hiccups left out.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.loop_stalls = Counter(
            "gateway_event_loop_stalls",
            "Times that the event loop stood still for longer than a plugin may run, by the plugin that held it up.",
            ["plugin"],
            registry=registry,
        )
        self.failed_auth_refused = Counter(
            "gateway_failed_auth_refused",
            "Requests that were refused unchecked, as too many from their address had wrong keys.",
            registry=registry,
        )
        self.total_seconds = Histogram(
            "gateway_request_seconds",
            "From the request head to the last byte.",
            ["tenant"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.upstream_seconds = Histogram(
            "gateway_upstream_seconds",
            "From the forwarded request to the reply head.",
            ["tenant"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.admission_seconds = Histogram(
            "gateway_admission_seconds", "The admission calls of a request.", buckets=_STORE_BUCKETS, registry=registry
        )
        self.plugin_failures = Counter(
            "gateway_plugin_failures", "Plugins that raised or ran too long.", ["plugin", "stage"], registry=registry
        )
        self.tokens = Counter(
            "gateway_tokens",
            "Tokens of calls to models: input (cached ones among them), cached, output.",
            ["tenant", "rule", "type"],
            registry=registry,
        )
        self.cost = Counter("gateway_cost_usd", "What calls to models have cost.", ["tenant", "rule"], registry=registry)
        self.estimated = Counter(
            "gateway_estimated_calls",
            "Calls whose tokens were counted here, as the target did not tell.",
            ["tenant"],
            registry=registry,
        )
        self.unpriced = Counter(
            "gateway_unpriced_calls", "Calls of models whose price is not known.", ["tenant"], registry=registry
        )
        self.unsettled = Counter(
            "gateway_unsettled_admissions", "Admissions that the store could not be told the end of.", registry=registry
        )
        self.breakers = Gauge(
            "gateway_store_breakers",
            "Servers of the store by the state of their circuit breaker; one that is not closed is not asked.",
            ["state"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.cached = Counter(
            "gateway_cached_admissions",
            "Requests admitted without the store, from this replica's share of their limits.",
            registry=registry,
        )
        self.alerts = Counter(
            "gateway_limit_alerts",
            "Crossings of thresholds of limits, each counted by one replica.",
            ["tenant", "limit", "at"],
            registry=registry,
        )
        self.undelivered_alerts = Counter(
            "gateway_undelivered_alerts", "Webhooks of alerts that were given up.", ["tenant"], registry=registry
        )

        self.outages = Counter(
            "gateway_target_outages",
            "Times a target failed so often in a row that it was not asked for a while.",
            ["tenant"],
            registry=registry,
        )

    def show_in_flight(self, read: Callable[[], int]) -> None:
        """Take the number of requests in flight from here; between processes, whenever `refresh` is called."""
        self._show(self.in_flight, read)

    def show_loop_lag(self, read_ms: Callable[[], float]) -> None:
        """The same for the lag of the event loop."""
        self._show(self.loop_lag, lambda: read_ms() / 1_000)

    def _show(self, gauge: Gauge, read: Callable[[], float]) -> None:
        if self._is_shared:
            self._shown.append((gauge, read))
        else:
            gauge.set_function(read)

    def show_breakers(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Take the number of breakers by their state from here, whenever `refresh` is called."""
        self._read_breakers = read

    def refresh(self) -> None:
        """Show everything as it is now, to the other processes as well."""
        self._show_calls()
        for gauge, read in self._shown:
            gauge.set(read())
        for state, count in self._read_breakers().items():
            self.breakers.labels(state).set(count)

    def plugin_failed(self, plugin: str, stage: str) -> None:
        """Count a failure."""
        self.plugin_failures.labels(plugin, stage).inc()

    def outage(self, tenant: str) -> None:
        """Count a target that is not asked for a while."""
        self.outages.labels(tenant).inc()

    def loop_stalled(self, plugin: str) -> None:
        """Count a stall; from any thread."""
        self.loop_stalls.labels(plugin).inc()

    def observe(self, visit: Visit, total_ms: float) -> None:
        """Count an ended request."""
        labels = visit.tenant, visit.rule, visit.status
        series = self._ended.get(labels)
        if series is None:
            requests = self.requests.labels(visit.tenant, visit.rule, _status_label(visit.status))
            series = self._ended[labels] = requests.inc, self.total_seconds.labels(visit.tenant).observe
        count, observe = series
        count()
        observe(total_ms / 1_000)
        if visit.code:
            self.refusals.labels(visit.tenant, self._code_label(visit.code)).inc()
        if visit.admission_ms is not None:
            self.admission_seconds.observe(visit.admission_ms / 1_000)
        if visit.upstream_ms is not None:
            upstream = self._upstream.get(visit.tenant)
            if upstream is None:
                upstream = self._upstream[visit.tenant] = self.upstream_seconds.labels(visit.tenant).observe
            upstream(visit.upstream_ms / 1_000)
        if visit.called is not None:
            self._observe_call(visit, visit.called)

    def _code_label(self, code: str) -> str:
        """Plugins make codes of their own; one that makes them of what clients send must not make series of it."""
        if code not in self._codes:
            if len(self._codes) >= MOST_CODES:
                return OTHER
            self._codes.add(code)
        return code

    def _observe_call(self, visit: Visit, called: Called) -> None:
        labels, usage = (visit.tenant, visit.rule), called.usage
        sums = self._called.get(labels)
        if sums is None:
            sums = self._called[labels] = [0, 0, 0, 0]
        sums[0] += usage.input_tokens
        sums[1] += usage.output_tokens
        sums[2] += usage.cached_tokens
        sums[3] += called.cost_nano_usd
        if called.is_estimate:
            self.estimated.labels(visit.tenant).inc()
        if not called.is_priced:
            self.unpriced.labels(visit.tenant).inc()

    def _show_calls(self) -> None:
        """Add to the series what was summed, so that a call need not be counted in four of them when it ends."""
        for (tenant, rule), sums in self._called.items():
            for kind, tokens in zip(("input", "output", "cached"), sums, strict=False):
                self.tokens.labels(tenant, rule, kind).inc(tokens)
            self.cost.labels(tenant, rule).inc(sums[3] / NANO)
        self._called.clear()

    def exposition(self) -> tuple[bytes, str]:
        """The text format and its media type."""
        self.refresh()
        registry = self._registry
        if self._is_shared:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
