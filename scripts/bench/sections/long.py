"""Hours in small: steady load below saturation, and whether memory grows."""

from __future__ import annotations

import math

from scripts.bench.bed import Bed
from scripts.bench.contenders.gateway import a_gateway
from scripts.bench.line_up import LineUp, Wanted
from scripts.bench.results import Chart, Findings, Point, Table, told_failures

SHARE = 0.7
CALIBRATE_S = 10.0
WARM_UP = 0.1
"""The share of the run after which the first memory counts: caches have filled by then."""


def measure_long(bed: Bed, wanted: Wanted, line_up: LineUp, findings: Findings) -> None:
    """Each engine in turn, so a run takes the minutes for each."""
    table = Table(
        f"{wanted.minutes:g} minutes at {SHARE:.0%} of what it can",
        [
            "gateway",
            "requests",
            "requests/s",
            "of at most",
            "share of a core",
            "MB after warm-up",
            "MB at the end",
            "growth %",
            "failed",
        ],
        [0, 0, 0, 0, 2, 1, 1, 2, 0],
    )
    findings.tables.append(table)
    lines: dict[str, list[Point]] = {}
    slices = max(2, round(wanted.minutes))
    slice_s = wanted.minutes * 60 / slices
    for engine in line_up.engines:
        with a_gateway(bed, wanted.checkouts[0], engine=engine) as gateway:
            request = gateway.request(line_up.callers[0].json)
            program = gateway.program
            most = bed.wrk.run(request, wanted.connections, CALIBRATE_S)
            latency_us = most.p50_us
            memory = [(0.0, program.rss_bytes() / 1e6)]
            requests = refused = lost = 0
            cpu_s = program.cpu_s()
            for number in range(1, slices + 1):
                pause_ms = pause_for(SHARE * most.per_s, wanted.connections, latency_us / 1000)
                answers = bed.wrk.run(request, wanted.connections, slice_s, pause_ms=pause_ms)
                latency_us = answers.p50_us
                requests, refused, lost = requests + answers.requests, refused + answers.refused, lost + answers.lost
                memory.append((number * slice_s / 60, program.rss_bytes() / 1e6))
            seconds = slices * slice_s
            busy = (program.cpu_s() - cpu_s) / seconds
        if refused or lost:
            findings.notes.append(f"{engine}: {refused} answers had a status over 399, {lost} connections broke or timed out.")
        first, last = after_warm_up(memory), memory[-1][1]
        lines[engine] = memory
        growth = (last / first - 1) * 100
        table.add(engine, requests, requests / seconds, most.per_s, busy, first, last, growth, told_failures(refused + lost))
    findings.charts.append(Chart("long", "Memory under steady load", "MB", lines=lines, x_label="minutes"))


def pause_for(per_s: float, connections: int, latency_ms: float) -> int:
    """Milliseconds that each connection waits before a request, so that all together send so many a second."""
    return max(1, math.ceil(connections * 1000 / per_s - latency_ms))


def after_warm_up(memory: list[Point]) -> float:
    """The first value after the warm-up."""
    end = memory[-1][0] * WARM_UP
    return next(value for minute, value in memory if minute >= end and minute > 0)
