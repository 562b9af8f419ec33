"""How cost grows with limits, rules, tenants and the size of a body."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.contenders.gateway import LIMIT, Checkout, Running, a_gateway
from scripts.bench.line_up import LineUp, Wanted
from scripts.bench.load import Request, chat_body
from scripts.bench.population import populate, write_senders
from scripts.bench.results import Chart, Findings, Point, Table, told_failures
from scripts.bench.rounds import Sample, measure, note, ratios, take

LIMITS = (0, 1, 2, 3, 4, 5)
RULES = (1, 10, 100, 1000)
BODIES = (500, 4_000, 64_000, 1_000_000)
RULES_A_TENANT = 3
FAMILIAR = 1000
"""Tenants that send requests where many more are there."""
WARM_UP_S = 2.0
MEETING_S = 20.0
"""For how long tenants send requests before memory is looked at: by then the cache of configurations is what it stays."""

Steps = list[tuple[float, Request]]


def measure_growth(bed: Bed, wanted: Wanted, line_up: LineUp, findings: Findings) -> None:
    """On each engine; requests to all steps of a question in turns."""
    checkout = wanted.checkouts[0]
    questions: list[tuple[str, str, Callable[[Bed, Running, Request], Steps]]] = [
        ("limits", "limits of a request", _limits),
        ("rules", "rules of a tenant", _rules),
        ("body", "bytes of a body", _bodies),
    ]
    lines: dict[str, dict[str, list[Point]]] = {}
    for engine in line_up.engines:
        with a_gateway(bed, checkout, engine=engine) as gateway:
            familiar = gateway.request(line_up.callers[0].json)
            for name, label, steps_of in questions:
                try:
                    points = _in_turns(bed, wanted, gateway, f"{engine}: {label}", steps_of(bed, gateway, familiar), findings)
                    lines.setdefault(name, {})[engine] = points
                except (RuntimeError, OSError) as error:
                    note(bed, f"{engine}, growth with {label}: {error}")
    for name, label, _ in questions:
        if name in lines:
            title = f"CPU of the proxy by {label}"
            logarithmic = name != "limits"
            findings.charts.append(
                Chart(f"growth-{name}", title, "µs/request", lines=lines[name], x_label=label, logarithmic=logarithmic)
            )
    for engine in line_up.engines:
        try:
            _tenants(bed, wanted, checkout, engine, findings)
        except (RuntimeError, OSError) as error:
            note(bed, f"{engine}, growth with tenants: {error}")


def _limits(bed: Bed, gateway: Running, familiar: Request) -> Steps:
    del familiar
    steps: Steps = []
    for count in LIMITS:
        caller = gateway.create_tenant(f"limits{count}-{gateway.proxy_port}")
        limits = [{**LIMIT, "window": f"{minutes}m"} for minutes in range(1, count + 1)]
        gateway.create_rule(caller, bed.target_url(False), limits=limits)
        steps.append((count, gateway.request(caller)))
    return steps


def _rules(bed: Bed, gateway: Running, familiar: Request) -> Steps:
    del familiar
    steps: Steps = []
    for count in RULES:
        caller = gateway.create_tenant(f"rules{count}-{gateway.proxy_port}")
        for number in range(1, count):
            gateway.create_rule(caller, bed.target_url(False), f"/other{number}")
        gateway.create_rule(caller, bed.target_url(False))
        steps.append((count, gateway.request(caller)))
    return steps


def _bodies(bed: Bed, gateway: Running, familiar: Request) -> Steps:
    del bed, gateway
    return [(size, replace(familiar, body=chat_body(size))) for size in BODIES]


def _in_turns(bed: Bed, wanted: Wanted, gateway: Running, label: str, steps: Steps, findings: Findings) -> list[Point]:
    samples: dict[float, list[Sample]] = {}
    for number in range(wanted.rounds):
        for value, request in steps:
            if number == 0:
                bed.wrk.run(request, wanted.connections, WARM_UP_S)
            sample = take(bed, Endpoint(gateway.program, request), wanted.seconds, wanted.connections)
            samples.setdefault(value, []).append(sample)
    table = Table(
        label, [label.partition(": ")[2], "CPU µs/request", "× first row", "Redis CPU µs/request", "failed"], [0, 1, 2, 1, 0]
    )
    points: list[Point] = []
    for value, taken in samples.items():
        micros = _median(taken, "proxy_us")
        points.append((value, micros))
        failed = sum(sample.answers.failed for sample in taken)
        table.add(f"{value:,.0f}", micros, micros / points[0][1], _median(taken, "redis_us"), told_failures(failed))
    findings.tables.append(table)
    return points


def _tenants(bed: Bed, wanted: Wanted, checkout: Checkout, engine: str, findings: Findings) -> None:
    """One database for this: the crowd must be in nobody else's way."""
    alone = replace(checkout, db=14)
    client = bed.client(alone.db)
    client.flushdb()
    with a_gateway(bed, alone, engine=engine) as gateway:
        model = gateway.create_tenant("model")
        for number in range(RULES_A_TENANT - 1):
            gateway.create_rule(model, bed.target_url(False), f"/other{number}")
        gateway.create_rule(model, bed.target_url(False))
        crowd = populate(client, model, wanted.tenants)
        table = Table(
            f"{engine}: {wanted.tenants:,} tenants in the store, {RULES_A_TENANT} rules each",
            [
                "requests come from",
                "CPU µs/request",
                "× one tenant",
                "p50 ms, 1 connection",
                "× one tenant",
                "MB by then",
                "failed",
            ],
            [0, 1, 2, 3, 2, 1, 0],
        )
        findings.tables.append(table)
        at_rest = gateway.program.rss_bytes()
        sizes = (FAMILIAR, wanted.tenants)
        groups = [("one tenant", crowd[:1]), *((f"{count:,} of them, at random", crowd[:count]) for count in sizes)]
        endpoints: dict[str, Endpoint] = {}
        memory = {}
        for number, (label, callers) in enumerate(groups):
            senders = write_senders(bed.folder / f"senders-{number}", callers)
            request = replace(gateway.request(callers[0]), senders=senders)
            endpoints[label] = Endpoint(gateway.program, request)
            bed.wrk.run(request, wanted.connections, MEETING_S)
            memory[label] = gateway.program.rss_bytes() / 1e6
        busy = measure(bed, endpoints, rounds=wanted.rounds, seconds=wanted.seconds, connections=wanted.connections)
        quiet = measure(bed, endpoints, rounds=wanted.rounds, seconds=wanted.seconds, connections=1)
        dearer, later = ratios(busy, "proxy_us", groups[0][0]), ratios(quiet, "p50_us", groups[0][0])
        for label in busy:
            failed = busy[label].failed + quiet[label].failed
            p50_us = quiet[label].median("p50_us") or 0
            costs = (busy[label].median("proxy_us"), dearer.get(label), p50_us / 1000, later.get(label))
            table.add(label, *costs, memory[label], told_failures(failed))
        findings.notes.append(f"{engine}, tenants: {at_rest / 1e6:.1f} MB before the first of these requests.")
    client.flushdb()


def _median(samples: Sequence[Sample], name: str) -> float:
    return statistics.median(value for sample in samples if (value := sample.value(name)) is not None)
