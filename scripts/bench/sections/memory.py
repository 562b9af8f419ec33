"""What an idle connection and an open stream take of a proxy's memory."""

from __future__ import annotations

import asyncio
import http.client

import uvloop

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.contenders.peers import PEERS
from scripts.bench.line_up import UPSTREAM, LineUp, Wanted
from scripts.bench.processes import HOST
from scripts.bench.results import Findings, Table, told_failures
from scripts.bench.rounds import note, started
from scripts.bench.stream_load import OpenStreams, set_pace, stream_request

IDLE = 1000
SETTLE_S = 2.0
INTERVAL_US = 2_000_000
OPEN_S = 240.0
FEWER_AT_PEERS = 500
"""Streams at other products, some of which take seconds for so many."""


def measure_memory(bed: Bed, wanted: Wanted, line_up: LineUp, findings: Findings) -> None:
    """Each alone, freshly started: memory is not given back in an order that could be relied on."""
    columns = ["proxy", "MB at rest", "MB after warm-up", "KB/idle connection", "streams", "KB/open stream", "failed"]
    table = Table(
        f"{IDLE:,} idle keep-alive connections; then open streams with a chunk each {INTERVAL_US // 10**6} s",
        columns,
        [0, 1, 1, 1, 0, 1, 0],
    )
    findings.tables.append(table)
    for contender in line_up.contenders:
        if contender.name == UPSTREAM:
            continue
        with started(bed, [contender], streams=True) as endpoints:
            for name, endpoint in endpoints.items():
                streams = min(wanted.streams, FEWER_AT_PEERS) if name in PEERS else wanted.streams
                try:
                    table.add(name, *_measure(bed, endpoint, streams))
                except (RuntimeError, OSError) as error:
                    note(bed, f"{name}, memory: {error}")


def _measure(bed: Bed, endpoint: Endpoint, streams: int) -> tuple[float, float, float, float, float, str]:
    assert endpoint.program is not None
    program = endpoint.program
    at_rest = program.rss_bytes()
    bed.wrk.run(endpoint.request, 32, 5)  # small replies: allocators and caches have what they keep
    warm = program.rss_bytes()
    connections = [_idle(endpoint) for _ in range(IDLE)]
    uvloop.run(asyncio.sleep(SETTLE_S))
    idle_bytes = (program.rss_bytes() - warm) / IDLE
    for connection in connections:
        connection.close()
    uvloop.run(asyncio.sleep(SETTLE_S))
    before = program.rss_bytes()
    set_pace(bed.streams_port, 10_000, INTERVAL_US)

    async def opened() -> tuple[int, int, str]:
        load = OpenStreams(stream_request(endpoint.request), connections=streams)
        try:
            await load.open()
            loop = asyncio.get_running_loop()
            end = loop.time() + OPEN_S
            while load.begun < streams and load.streamed.failed == 0 and loop.time() < end:  # noqa: ASYNC110 - thousands tell nobody
                await asyncio.sleep(0.2)
            await asyncio.sleep(2 * INTERVAL_US / 1e6)
            return program.rss_bytes(), load.begun, load.streamed.first_failure
        finally:
            load.close()

    open_bytes, begun, failure = uvloop.run(opened())
    stream_bytes = (open_bytes - before) / max(1, begun)
    missing = streams - begun
    if missing:
        note(bed, f"{program.name}: {missing} of {streams} streams did not begin: {failure}")
    return at_rest / 1e6, warm / 1e6, idle_bytes / 1000, float(begun), stream_bytes / 1000, told_failures(missing)


def _idle(endpoint: Endpoint) -> http.client.HTTPConnection:
    """A connection that has had one answer and stays open."""
    connection = http.client.HTTPConnection(HOST, endpoint.request.port, timeout=30)
    headers = {"Content-Type": "application/json", **endpoint.request.headers}
    connection.request("POST", endpoint.request.path, endpoint.request.body, headers)
    connection.getresponse().read()
    return connection
