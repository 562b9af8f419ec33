"""What operators see: metrics for Prometheus and one JSON line for each proxied request.

Labels come from closed sets (tenants and rules that exist, statuses, codes), so no client can add a series.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import TextIO

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

from gateway.formats import Usage
from gateway.money import NANO

_LOG = logging.getLogger("gateway")

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STORE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
MAX_METHOD_LOGGED = 16
MAX_PATH_LOGGED = 512
MAX_MODEL_LOGGED = 200
MAX_LINES = 1_000
FLUSH_EVERY_MS = 100
WHOLE_BYTES = 4_096
"""A pipe takes so much at once (PIPE_BUF on Linux): lines of several workers do not get mixed."""


@dataclass(slots=True)
class Visit:
    """What is noted of one request on its way. Empty texts where it did not come that far; status 499: the client left.

    ``usage`` and ``cost_nano_usd`` are set if a model was called; ``is_estimate`` if the target did not tell how many tokens
    that took, ``is_priced`` is false if nobody knows what the model costs.
    """

    request_id: str
    method: str = ""
    path: str = ""
    client_ip: str = ""
    tenant: str = ""
    rule: str = ""
    key_id: str = ""
    status: int = 0
    code: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    admission_ms: float | None = None
    upstream_ms: float | None = None
    model: str = ""
    usage: Usage | None = None
    cost_nano_usd: int = 0
    is_estimate: bool = False
    is_priced: bool = True


SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable: the folder in which the processes of a replica keep their series. Read when this module is imported."""


def forget_process(pid: int, folder: Path) -> None:
    """Drop what a dead process was doing from the shared series; what it has done stays counted."""
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


class Metrics:
    """All series of a process, in a registry of their own; where `SHARED_METRICS` is set, shown summed over all processes."""

    def __init__(self) -> None:
        # the time at which each series was made is twice the output for a number nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        # looking a series up by its labels takes longer than counting
        self._ended: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._upstream: dict[str, Callable[[float], None]] = {}
        self._called: dict[tuple[str, str], tuple[Callable[[float], None], ...]] = {}
        self._is_shared = SHARED_METRICS in os.environ
        self._read_in_flight: Callable[[], int] | None = None
        self.requests = Counter("gateway_requests", "Requests answered.", ["tenant", "rule", "status"], registry=registry)
        self.refusals = Counter(
            "gateway_refusals", "Requests answered by the gateway itself.", ["tenant", "code"], registry=registry
        )
        self.in_flight = Gauge(
            "gateway_requests_in_flight", "Requests being handled.", registry=registry, multiprocess_mode="livesum"
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
        self.alerts = Counter(
            "gateway_limit_alerts",
            "Crossings of thresholds of limits, each counted by one replica.",
            ["tenant", "limit", "at"],
            registry=registry,
        )
        self.undelivered_alerts = Counter(
            "gateway_undelivered_alerts", "Webhooks of alerts that were given up.", ["tenant"], registry=registry
        )

    def show_in_flight(self, read: Callable[[], int]) -> None:
        """Take the number of requests in flight from here; between processes, whenever `refresh` is called."""
        if self._is_shared:
            self._read_in_flight = read
        else:
            self.in_flight.set_function(read)

    def refresh(self) -> None:
        """Tell the other processes what is shown as it is now."""
        if self._read_in_flight is not None:
            self.in_flight.set(self._read_in_flight())

    def plugin_failed(self, plugin: str, stage: str) -> None:
        """Count a failure."""
        self.plugin_failures.labels(plugin, stage).inc()

    def observe(self, visit: Visit, total_ms: float) -> None:
        """Count an ended request."""
        labels = visit.tenant, visit.rule, visit.status
        series = self._ended.get(labels)
        if series is None:
            requests = self.requests.labels(visit.tenant, visit.rule, str(visit.status))
            series = self._ended[labels] = requests.inc, self.total_seconds.labels(visit.tenant).observe
        count, observe = series
        count()
        observe(total_ms / 1_000)
        if visit.code:
            self.refusals.labels(visit.tenant, visit.code).inc()
        if visit.admission_ms is not None:
            self.admission_seconds.observe(visit.admission_ms / 1_000)
        if visit.upstream_ms is not None:
            upstream = self._upstream.get(visit.tenant)
            if upstream is None:
                upstream = self._upstream[visit.tenant] = self.upstream_seconds.labels(visit.tenant).observe
            upstream(visit.upstream_ms / 1_000)
        if visit.usage is not None:
            self._observe_call(visit, visit.usage)

    def _observe_call(self, visit: Visit, usage: Usage) -> None:
        labels = visit.tenant, visit.rule
        series = self._called.get(labels)
        if series is None:
            of_type = [self.tokens.labels(*labels, kind).inc for kind in ("input", "output", "cached")]
            series = self._called[labels] = (*of_type, self.cost.labels(*labels).inc)
        count_input, count_output, count_cached, count_cost = series
        count_input(usage.input_tokens)
        count_output(usage.output_tokens)
        count_cost(visit.cost_nano_usd / NANO)
        if usage.cached_tokens:
            count_cached(usage.cached_tokens)
        if visit.is_estimate:
            self.estimated.labels(visit.tenant).inc()
        if not visit.is_priced:
            self.unpriced.labels(visit.tenant).inc()

    def exposition(self) -> tuple[bytes, str]:
        """The text format and its media type."""
        registry = self._registry
        if self._is_shared:
            self.refresh()
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class AccessLog:
    """One line of JSON a request; ASCII only, bounded, without bodies, query strings or secrets.

    Between `start` and `stop` lines are written together, ten times a second; otherwise each at once.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self._second = -1
        self._moment = ""

    def write(self, visit: Visit, total_ms: float) -> None:
        """Append a line."""
        if self._stream is None:
            return
        # json.dumps takes three times as long; what is not quoted here cannot hold anything that needs it
        self._lines.append(
            f'{{"time":"{self._now()}","request_id":{_quoted(visit.request_id)},"tenant":{_quoted(visit.tenant)},'
            f'"rule":{_quoted(visit.rule)},"key_id":{_quoted(visit.key_id)},"client_ip":{_quoted(visit.client_ip)},'
            f'"method":{_quoted(visit.method[:MAX_METHOD_LOGGED])},"path":{_quoted(visit.path[:MAX_PATH_LOGGED])},'
            f'"status":{visit.status},"code":{_quoted(visit.code)},"bytes_in":{visit.bytes_in},"bytes_out":{visit.bytes_out},'
            f'"admission_ms":{_ms(visit.admission_ms)},"upstream_ms":{_ms(visit.upstream_ms)},"total_ms":{_ms(total_ms)}'
            f"{_call_fields(visit)}}}\n"
        )
        if self._task is None or len(self._lines) >= MAX_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what was appended. What cannot be written is lost, and said on standard error: requests go on."""
        lines, self._lines = self._lines, []
        if self._stream is None or not lines:
            return
        pieces, size = [[lines[0]]], len(lines[0])
        for line in lines[1:]:
            size += len(line)
            if size > WHOLE_BYTES:
                pieces.append([])
                size = len(line)
            pieces[-1].append(line)
        try:
            for piece in pieces:
                self._stream.write("".join(piece))
                self._stream.flush()
        except (OSError, ValueError) as error:  # a disk that is full, a reader that is gone, a stream that was closed
            _LOG.error("up to %d lines of the access log are lost: %s", len(lines), error)

    def start(self) -> None:
        """Gather lines from now on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what was gathered; lines that come later are written at once."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self.flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_MS / 1_000)
            self.flush()

    def _now(self) -> str:
        second, ms = divmod(int(time.time() * 1_000), 1_000)
        if second != self._second:
            self._second = second
            self._moment = datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds")[:-6]
        return f"{self._moment}.{ms:03d}+00:00"


class JsonFormatter(logging.Formatter):
    """Log records as one line of JSON each."""

    def format(self, record: logging.LogRecord) -> str:
        """Escaped, so that no logged text can pretend to be another line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging(level: str) -> None:
    """Log to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _call_fields(visit: Visit) -> str:
    """What is logged of a call to a model, besides what is logged of every request."""
    usage = visit.usage
    if usage is None:
        return ""
    return (
        f',"model":{_quoted(visit.model[:MAX_MODEL_LOGGED])},"input_tokens":{usage.input_tokens},'
        f'"output_tokens":{usage.output_tokens},"cached_tokens":{usage.cached_tokens},"cost_nano_usd":{visit.cost_nano_usd}'
    )


def _ms(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"
