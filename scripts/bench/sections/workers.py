"""Two workers against one: with all cores, shared with load, upstream and store, and with a small share of a core each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.contenders.gateway import a_gateway
from scripts.bench.cpu_share import held
from scripts.bench.line_up import LineUp, Wanted
from scripts.bench.processes import DidNotStart, Program
from scripts.bench.results import Findings, Table, told_failures
from scripts.bench.rounds import measure, note, ratios

SHARE = 0.25
"""Of a core, for each worker: beside four such workers, load, upstream and store of two cores would still be light."""


def measure_workers(bed: Bed, wanted: Wanted, line_up: LineUp, findings: Findings) -> None:
    """On each engine that takes several. Nothing is pinned here."""
    cores = sorted({*bed.cores.proxy, *bed.cores.others})
    columns = ["gateway", "requests/s", "× one worker", "CPU µs/request", "cores busy with it", "MB", "failed"]
    decimals = [0, 0, 2, 1, 2, 0, 0]
    free = Table(f"Workers, all on {len(cores)} cores, as are load, upstream and store", columns, decimals)
    small = Table(f"Workers held to {SHARE:.0%} of a core each", columns, decimals)
    findings.tables += [free, small]
    with _everything_on(bed, cores):
        for engine in line_up.engines:
            with contextlib.ExitStack() as running:
                endpoints: dict[str, Endpoint] = {}
                programs: list[Program] = []
                for count in (1, 2):
                    try:
                        gateway = running.enter_context(
                            a_gateway(bed, wanted.checkouts[0], engine=engine, workers=count, cores=cores)
                        )
                    except DidNotStart as refusal:
                        note(bed, f"{engine} with {count} workers was left out: {refusal}")
                        continue
                    endpoints[f"{engine}, {count}"] = Endpoint(gateway.program, gateway.request(line_up.callers[0].json))
                    programs.append(gateway.program)
                _measure(bed, wanted, engine, endpoints, free)  # by its end, all workers are there
                try:
                    running.enter_context(held([pid for program in programs for pid in serving_pids(program)], SHARE))
                except OSError as error:
                    note(bed, f"no processes could be held to a share of a core: {error}")
                    continue
                _measure(bed, wanted, engine, endpoints, small)


def serving_pids(program: Program) -> list[int]:
    """The children of a supervisor, or the only process there is."""
    _, *children = program.pids()
    return children or [program.process.pid]


def _measure(bed: Bed, wanted: Wanted, engine: str, endpoints: dict[str, Endpoint], table: Table) -> None:
    series = measure(bed, endpoints, rounds=wanted.rounds, seconds=wanted.seconds, connections=2 * wanted.connections)
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
