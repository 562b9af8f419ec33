"""What a decision costs the store: microseconds of Redis for each call, also as a multiple of the cheapest script there is.

    python -m scripts.bench.admission [--rounds N] [--calls N] [--at-once N] [--server valkey|redis|all]

Starts the servers itself, on a core of their own where there are two. The state is that of steady traffic: a request every
120 ms for a whole window before the first that is measured, so with each one a unit leaves the window, sub-windows begin and
end, the bucket is part drained, and 50 to 100 requests are in flight. The calls carry this time of theirs; only one row asks
the server's clock. Everything is measured in turns, in several rounds; the tables show the medians. Times are those of
``INFO commandstats`` and include what the server waits for a core: use a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hiredis

from gateway.models import LimitSpec
from gateway.store import open_stores
from scripts.bench.calls import HELD_BUDGET, LEASE_MS, SPECS, WINDOW_MS, Call, calls_of, packed, recorder_of
from tests.gate import Gate
from tests.servers import DEBIAN_REDIS, Server, connected, redis_server, valkey_server

BATCH = 50
STEP_MS = 120
NOTHING = "`return 1`"
FIVE = "admit, five limits of five kinds"
MIXES: dict[str, Sequence[LimitSpec]] = {
    "admit, no limit": (),
    **{f"admit, one limit: {spec.kind}": (spec,) for spec in SPECS},
    "admit, one limit: budget that holds": (HELD_BUDGET,),
    FIVE: SPECS,
    "admit, ten limits of five kinds": SPECS * 2,
}
TARGETS = {row: 20 for row, specs in MIXES.items() if len(specs) == 1} | {FIVE: 60}
"""The most that a call may cost, as a multiple of `return 1`."""

SERVERS: dict[str, Callable[..., AbstractContextManager[Server]]] = {"valkey": valkey_server}
if DEBIAN_REDIS.exists():
    SERVERS["redis"] = partial(redis_server, DEBIAN_REDIS)


class Wire:
    """A connection that sends so many commands at once and then reads the replies."""

    def __init__(self, server: Server, at_once: int) -> None:
        self._at_once = at_once
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def run(self, commands: Sequence[bytes]) -> tuple[list[Any], float]:
        """The replies, and the seconds until the last has come."""
        pieces = [commands[place : place + self._at_once] for place in range(0, len(commands), self._at_once)]
        replies: list[Any] = []
        start = time.perf_counter()
        for piece in pieces:
            self._socket.sendall(b"".join(piece))
            wanted = len(replies) + len(piece)
            while len(replies) < wanted:
                reply = self._reader.gets()
                if reply is False:
                    self._reader.feed(self._socket.recv(1 << 16))
                else:
                    replies.append(reply)
        return replies, time.perf_counter() - start

    def close(self) -> None:
        self._socket.close()


@dataclass
class Sample:
    """Calls of one kind in one round, by batches: one in which the server had to wait for its core is not the median."""

    micros: list[float] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)

    @property
    def micros_a_call(self) -> float:
        return statistics.median(self.micros)

    @property
    def commands_a_call(self) -> float:
        return statistics.fmean(self.commands)


@dataclass
class Meter:
    """Sends batches and notes what the server says of them."""

    wire: Wire
    client: Any
    samples: dict[str, Sample] = field(default_factory=lambda: defaultdict(Sample))

    def measure(self, row: str, word: bytes | int, commands: Sequence[bytes], parts: int = 1) -> None:
        """Add a batch to a row. ``word`` is what each reply must begin with; a command does so many ``parts``."""
        self.client.config_resetstat()
        self.send(word, commands)
        stats = self.client.info("commandstats")
        inside = sum(
            stat["calls"] for name, stat in stats.items() if not name.startswith(("cmdstat_evalsha", "cmdstat_config"))
        )
        self.samples[row].micros.append(stats["cmdstat_evalsha"]["usec"] / len(commands) / parts)
        self.samples[row].commands.append(inside / len(commands) / parts)

    def send(self, word: bytes | int, commands: Sequence[bytes]) -> float:
        """The same without noting anything; returns the seconds that it took."""
        replies, seconds = self.wire.run(commands)
        for reply in replies:
            assert (reply if isinstance(word, int) else reply[0]) == word, reply
        return seconds


class Traffic:
    """Steady requests: every batch is admitted, then the batch before it is settled."""

    def __init__(self, start_ms: int, settle: Call) -> None:
        self._now_ms = start_ms
        self._settle = settle
        self._ids = (f"{number:032x}" for number in itertools.count())
        self.flying: list[tuple[str, int]] = []

    @property
    def now_ms(self) -> int:
        """When the latest request came."""
        return self._now_ms - STEP_MS

    def admissions(self, admit: Call, count: int = BATCH) -> tuple[list[bytes], list[bytes]]:
        """So many further ones, and the settlements of those before them."""
        settlements = [self._settle.packed(name, self._now_ms) for name, _ in self.flying]
        self.flying = []
        for _ in range(count):
            self.flying.append((next(self._ids), self._now_ms))
            self._now_ms += STEP_MS
        return [admit.packed(*one) for one in self.flying], settlements


async def measure_round(meter: Meter, gate: Gate, calls: int, rates: dict[str, list[float]]) -> None:
    """Every row once."""
    recorder = await recorder_of(gate.stores)
    nothing = packed("EVALSHA", meter.client.script_load("return 1"), 0)
    for row, specs in MIXES.items():
        meter.client.flushall()
        await gate.prepare()
        asked = await calls_of(gate, recorder, specs, live=WINDOW_MS // STEP_MS)
        now_ms = time.time_ns() // 1_000_000
        traffic = Traffic(now_ms - WINDOW_MS, asked.settle)
        batches = -(-calls // BATCH)
        for number in range(WINDOW_MS // STEP_MS // BATCH + batches):
            measured = number >= WINDOW_MS // STEP_MS // BATCH
            admissions, settlements = traffic.admissions(asked.admit)
            if measured:
                meter.measure(NOTHING, 1, [nothing] * BATCH)
                meter.measure(row, b"admitted", admissions)
            else:
                meter.send(b"admitted", admissions)
            if specs and measured and row == FIVE:
                meter.measure("settle, five limits", b"settled", settlements)
            elif specs and settlements:
                meter.send(b"settled", settlements)
        if row == FIVE:
            await _measure_the_rest(meter, gate, asked, traffic, batches)
        elif not specs:
            for _ in range(batches):
                clocked = [asked.admit.packed(name, None) for name, _ in traffic.flying]
                meter.measure("admit, no limit, server's clock", b"admitted", clocked)
        admissions, _ = traffic.admissions(asked.admit, max(calls, BATCH))
        rates[row].append(len(admissions) / meter.send(b"admitted", admissions))


async def _measure_the_rest(meter: Meter, gate: Gate, asked: Any, traffic: Traffic, batches: int) -> None:
    """What else is asked of five limits, all at the moment of the latest admission."""
    now_ms = traffic.now_ms
    for batch in range(batches):
        refused = [asked.refused.packed(f"{batch}r{number}", now_ms) for number in range(BATCH)]
        meter.measure("refused by one of five limits", b"limited", refused)
        replayed = [asked.admit.packed(name, now_ms) for name, _ in traffic.flying]
        meter.measure("replay, five limits", b"replayed", replayed)
        renewed = [asked.renew.packed(name, now_ms) for name, _ in traffic.flying]
        meter.measure("renew, what five limits hold", b"renewed", renewed)
        for together, settle in asked.settle_together.items():
            ids = [f"{batch}s{together}x{number}" for number in range(-(-BATCH // together))]
            markers = [f"{gate.keyspace.marker(name)}-{number}" for name in ids for number in range(together)]
            meter.client.mset(dict.fromkeys(markers, f"A {now_ms} {now_ms + LEASE_MS}"))
            row = f"settle with nothing due, each of {together} together"
            meter.measure(row, b"settled", [settle.packed(name, now_ms) for name in ids], together)


@dataclass
class Result:
    """Rounds on one server."""

    server: str
    rounds: list[dict[str, Sample]]
    rates: dict[str, list[float]]

    def tables(self) -> Iterator[str]:
        """Markdown."""
        yield f"## {self.server}\n"
        yield f"| call | commands inside | µs | × {NOTHING} | target |\n|---|---:|---:|---:|---|"
        for row in self.rounds[0]:
            micros = statistics.median(samples[row].micros_a_call for samples in self.rounds)
            ratio = statistics.median(samples[row].micros_a_call / samples[NOTHING].micros_a_call for samples in self.rounds)
            commands = statistics.median(samples[row].commands_a_call for samples in self.rounds)
            target = TARGETS.get(row)
            verdict = "" if target is None else f"≤ {target}: {'reached' if ratio <= target else 'missed'}"
            yield f"| {row} | {commands:.1f} | {micros:.2f} | {ratio:.1f} | {verdict} |"
        yield "\n| admissions a second on one core | over the wire | by the µs above |\n|---|---:|---:|"
        for row, rates in self.rates.items():
            micros = statistics.median(samples[row].micros_a_call for samples in self.rounds)
            yield f"| {row} | {statistics.median(rates):,.0f} | {1e6 / micros:,.0f} |"
        yield ""


async def measure(name: str, rounds: int, calls: int, at_once: int = BATCH) -> Result:
    """All rounds on one server."""
    with SERVERS[name](users=False) as server, server.admin(decode_responses=True) as client:
        pin(server.pid)
        wire = Wire(server, at_once)
        rates: dict[str, list[float]] = defaultdict(list)
        samples = []
        async with connected(server.url) as connection:
            gate = Gate(await open_stores(connection, LEASE_MS))
            for _ in range(rounds):
                meter = Meter(wire, client)
                await measure_round(meter, gate, calls, rates)
                samples.append(dict(meter.samples))
        wire.close()
        facts = client.info("server")
        version = facts.get("valkey_version") or facts["redis_version"]
        return Result(f"{name.capitalize()} {version}, {at_once} at once", samples, rates)


def pin(server_pid: int) -> None:
    """The server to the last core that we may use, ourselves to the others."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(server_pid))
    if len(cores) > 1:
        with suppress(PermissionError):
            os.sched_setaffinity(server_pid, cores[-1:])
            os.sched_setaffinity(0, cores[:-1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is measured (%(default)s)")
    parser.add_argument("--calls", type=int, default=500, help="calls of a kind in a round (%(default)s)")
    parser.add_argument(
        "--at-once", type=int, default=BATCH, help="calls sent together: one is a quiet server, many a busy one (%(default)s)"
    )
    parser.add_argument("--server", choices=["all", *SERVERS], default="all")
    options = parser.parse_args()
    for name in SERVERS if options.server == "all" else [options.server]:
        for line in asyncio.run(measure(name, options.rounds, options.calls, options.at_once)).tables():
            print(line)


if __name__ == "__main__":
    main()
