"""Streams: how late the first chunk and each further one is, and what a chunk costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.line_up import UPSTREAM, LineUp, Wanted
from scripts.bench.results import Chart, Findings, Table, told_failures
from scripts.bench.rounds import note, started
from scripts.bench.stream_load import Streamed, run_streams, set_pace

QUIET_STREAMS, QUIET_CHUNKS = 10, 20
AT_ONCE = 32
MANY = 200
"""At this pace some ten thousand chunks a second: a core that is busy, and wakes up for several of them at a time."""
SHORT, LONG = 10, 110
INTERVAL_US = 20_000
TIMEOUT_S = 60.0


@dataclass
class Row:
    """Of one contender; what is not measured stays empty."""

    first_us: list[float] = field(default_factory=list)
    delay_us: list[float] = field(default_factory=list)
    late_us: list[float] = field(default_factory=list)
    costs_us: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """Of a whole stream, by how many there are at once and how many chunks each has."""

    failed: int = 0

    def chunk_us(self, at_once: int) -> float | None:
        """What a chunk costs with so many streams."""
        return a_chunk_us(self.costs_us.get((at_once, SHORT), []), self.costs_us.get((at_once, LONG), []))


def measure_streams(bed: Bed, wanted: Wanted, line_up: LineUp, findings: Findings) -> None:
    """In turns like everything else."""
    rows: dict[str, Row] = {}
    with started(bed, line_up.contenders, streams=True) as endpoints:
        for number in range(wanted.rounds):
            for name, endpoint in endpoints.items():
                if number == 0:
                    _streams(bed, endpoint, 1, 2, SHORT)
                try:
                    _measure(bed, endpoint, rows.setdefault(name, Row()))
                except (RuntimeError, OSError) as error:
                    note(bed, f"{name}, streams, round {number + 1}: {error}")
    findings.tables.append(_table(rows))
    bars = [(name, value) for name, row in rows.items() if (value := row.chunk_us(AT_ONCE)) is not None]
    if bars:
        findings.charts.append(
            Chart("streams", "CPU of the proxy for each streamed chunk", "µs, logarithmic", bars=bars, logarithmic=True)
        )


def a_chunk_us(short_us: Sequence[float], long_us: Sequence[float]) -> float | None:
    """What a chunk costs: what long streams cost more than short ones, so that the request itself is not in it."""
    if not short_us or not long_us:
        return None
    return max(0.1, (statistics.median(long_us) - statistics.median(short_us)) / (LONG - SHORT))


def _measure(bed: Bed, endpoint: Endpoint, row: Row) -> None:
    quiet = _streams(bed, endpoint, 1, QUIET_STREAMS, QUIET_CHUNKS)
    row.failed += quiet.failed
    if quiet.first_us:
        row.first_us.append(statistics.median(quiet.first_us))
        row.delay_us.append(statistics.median(quiet.delays_us))
    for at_once in (AT_ONCE, MANY):
        for chunks in (SHORT, LONG):
            streams = max(1, 3 * LONG // (chunks * 4))
            before = endpoint.program.cpu_s() if endpoint.program else 0.0
            busy = _streams(bed, endpoint, at_once, streams, chunks)
            row.failed += busy.failed
            if endpoint.program and busy.ended:
                costs = row.costs_us.setdefault((at_once, chunks), [])
                costs.append((endpoint.program.cpu_s() - before) * 1e6 / busy.ended)
            if (at_once, chunks) == (AT_ONCE, LONG) and busy.delays_us:
                row.late_us.append(statistics.quantiles(busy.delays_us, n=100)[98])


def _streams(bed: Bed, endpoint: Endpoint, connections: int, streams: int, chunks: int) -> Streamed:
    set_pace(bed.streams_port, chunks, INTERVAL_US)
    streamed = run_streams(endpoint.request, connections=connections, streams=streams, timeout_s=TIMEOUT_S)
    if streamed.failed:
        name = endpoint.program.name if endpoint.program else UPSTREAM
        note(bed, f"{name}: {streamed.failed} of {connections * streams} streams failed: {streamed.first_failure}")
    return streamed


def _table(rows: dict[str, Row]) -> Table:
    columns = [
        "proxy",
        "first chunk after ms",
        "added ms",
        "chunk delay p50 ms",
        "added ms",
        f"p99 ms, {AT_ONCE} streams",
        f"CPU µs/chunk, {AT_ONCE} streams",
        f"CPU µs/chunk, {MANY} streams",
        "failed",
    ]
    title = f"Streams with a chunk each {INTERVAL_US // 1000} ms; one at a time, {AT_ONCE}, and {MANY}"
    table = Table(title, columns, [0, 2, 2, 2, 2, 2, 1, 1, 0])
    base = rows.get(UPSTREAM, Row())
    for name, row in rows.items():
        first, delay = _ms(row.first_us), _ms(row.delay_us)
        added = (_minus(first, _ms(base.first_us)), _minus(delay, _ms(base.delay_us)))
        chunks_us = (row.chunk_us(AT_ONCE), row.chunk_us(MANY))
        table.add(name, first, added[0], delay, added[1], _ms(row.late_us), *chunks_us, told_failures(row.failed))
    return table


def _ms(micros: Sequence[float]) -> float | None:
    return statistics.median(micros) / 1000 if micros else None


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base
