"""What a forwarded request costs, and by how much it is late, at one connection and at many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scripts.bench.bed import Bed
from scripts.bench.contenders.peers import PEERS
from scripts.bench.line_up import BASE, FORWARD, UPSTREAM, LineUp, Wanted
from scripts.bench.results import Chart, Findings, Table, told_failures
from scripts.bench.rounds import Contender, Series, measure, ratios, started


def measure_cpu(bed: Bed, wanted: Wanted, line_up: LineUp, findings: Findings) -> None:
    """All but other products."""
    _measure(bed, wanted, [one for one in line_up.contenders if one.name not in PEERS], findings)


def measure_peers(bed: Bed, wanted: Wanted, line_up: LineUp, findings: Findings) -> None:
    """Other products, beside nginx + Lua and the gateway on each engine."""
    references = [one for one in line_up.contenders if one.name in {UPSTREAM, BASE, FORWARD}]
    peers = [one for one in line_up.contenders if one.name in PEERS]
    _measure(bed, wanted, [*references, *line_up.gateways, *peers], findings)
    for peer in wanted.peers:
        findings.notes.append(f"{peer} {PEERS[peer].version(bed)}: {PEERS[peer].does}.")


def _measure(bed: Bed, wanted: Wanted, contenders: Sequence[Contender], findings: Findings) -> None:
    with started(bed, contenders) as endpoints:
        busy = measure(bed, endpoints, rounds=wanted.rounds, seconds=wanted.seconds, connections=wanted.connections)
        findings.tables.append(_busy_table(busy, wanted.connections))
        quiet = measure(bed, endpoints, rounds=wanted.rounds, seconds=wanted.seconds, connections=1)
    findings.tables.append(_quiet_table(quiet))
    bars = [(name, value) for name, series in busy.items() if (value := series.median("proxy_us")) is not None]
    if bars:
        title = f"CPU of the proxy for each request, {wanted.connections} connections"
        name = findings.section
        findings.charts.append(Chart(name, title, "µs, logarithmic", bars=bars, logarithmic=True))


def _busy_table(series: Mapping[str, Series], connections: int) -> Table:
    columns = [
        "proxy",
        "CPU µs/request",
        f"× {BASE}",
        "requests/s",
        "core busy",
        "p50 ms",
        "p99 ms",
        "Redis CPU µs/request",
        "failed",
    ]
    table = Table(f"{connections} connections", columns, [0, 1, 2, 0, 2, 2, 2, 1, 0])
    against = ratios(series, "proxy_us", BASE)
    for name, one in series.items():
        p50, p99 = _ms(one.median("p50_us")), _ms(one.median("p99_us"))
        measured = (one.median("proxy_us"), against.get(name), one.median("per_s"), one.median("busy"), p50, p99)
        table.add(name, *measured, one.median("redis_us"), told_failures(one.failed))
    return table


def _quiet_table(series: Mapping[str, Series]) -> Table:
    columns = ["proxy", "p50 ms", "p99 ms", "added p50 ms", "added p99 ms", f"p50 over {FORWARD}", "CPU µs/request", "failed"]
    table = Table("1 connection; added: over the upstream itself", columns, [0, 3, 3, 3, 3, 3, 1, 0])
    for name, one in series.items():
        p50, p99 = _ms(one.median("p50_us")), _ms(one.median("p99_us"))
        added = [_over(value, series, UPSTREAM, which) for value, which in ((p50, "p50_us"), (p99, "p99_us"))]
        beyond = _over(p50, series, FORWARD, "p50_us")
        table.add(name, p50, p99, *added, beyond, one.median("proxy_us"), told_failures(one.failed))
    return table


def _over(value_ms: float | None, series: Mapping[str, Series], base: str, which: str) -> float | None:
    base_ms = _ms(series[base].median(which)) if base in series else None
    return None if value_ms is None or base_ms is None else value_ms - base_ms


def _ms(micros: float | None) -> float | None:
    return None if micros is None else micros / 1000
