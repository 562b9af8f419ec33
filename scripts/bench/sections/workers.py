"""Two workers against one, where both have all cores and share them with load, upstream and store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.contenders.gateway import a_gateway
from scripts.bench.line_up import LineUp, Wanted
from scripts.bench.processes import DidNotStart
from scripts.bench.results import Findings, Table, told_failures
from scripts.bench.rounds import measure, note, ratios


def measure_workers(bed: Bed, wanted: Wanted, line_up: LineUp, findings: Findings) -> None:
    """On each engine that takes several. Nothing is pinned here."""
    cores = sorted({*bed.cores.proxy, *bed.cores.others})
    checkout = wanted.checkouts[0]
    table = Table(
        f"Workers, all on {len(cores)} cores",
        ["gateway", "requests/s", "× one worker", "CPU µs/request", "cores busy with it", "MB", "failed"],
        [0, 0, 2, 1, 2, 0, 0],
    )
    findings.tables.append(table)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_everything_on(bed, cores))
        for engine in line_up.engines:
            endpoints: dict[str, Endpoint] = {}
            with contextlib.ExitStack() as running:
                for workers in (1, 2):
                    try:
                        gateway = running.enter_context(a_gateway(bed, checkout, engine=engine, workers=workers, cores=cores))
                    except DidNotStart as refusal:
                        note(bed, f"{engine} with {workers} workers was left out: {refusal}")
                        continue
                    request = gateway.request(line_up.callers[0].json)
                    endpoints[f"{engine}, {workers}"] = Endpoint(gateway.program, request)
                series = measure(
                    bed, endpoints, rounds=wanted.rounds, seconds=wanted.seconds, connections=2 * wanted.connections
                )
                against = ratios(series, "per_s", f"{engine}, 1")
                for name, one in series.items():
                    program = endpoints[name].program
                    rss = program.rss_bytes() / 1e6 if program else None
                    measured = (one.median("per_s"), against.get(name), one.median("proxy_us"), one.median("busy"), rss)
                    table.add(name, *measured, told_failures(one.failed))


@contextlib.contextmanager
def _everything_on(bed: Bed, cores: list[int]) -> Iterator[None]:
    programs = (bed.redis, bed.upstream)
    for program in programs:
        os.sched_setaffinity(program.process.pid, cores)
    bed.wrk.cores = cores
    try:
        yield
    finally:
        bed.wrk.cores = bed.cores.others
        for program in programs:
            os.sched_setaffinity(program.process.pid, bed.cores.others)
