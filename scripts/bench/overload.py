"""More load than a gateway can serve: what is served of it, and what another tenant notices.

    python -m scripts.bench.overload [--engine uvicorn] [--delay-ms 200] [--max-in-flight 60] [--seconds 10]

Finds the peak (as many callers as fit, each asking again when it is answered), then sends one, two and three times as many
requests a second as one tenant, at times of their own whatever becomes of them, while another tenant asks 20 times a
second. Goodput counts what is answered 200 within two seconds of its time, to either tenant. The gateway has the last core,
everything else the first; where that is not busy in a run without a delay, the load generator is what was full.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from tests.e2e.processes import HOST, Gateway, a_gateway
from tests.servers import short_directory, valkey_server

IN_TIME_S = 2.0
MODEST_PER_S = 20.0
PAUSE_S = 2.0
CONNECTIONS = 1_000
"""Of each tenant, opened before; a request that finds none free is not sent, and counts as none that was served."""
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"


class _Target(asyncio.Protocol):
    """Answers each request after the delay."""

    def __init__(self, delay_s: float) -> None:
        self._delay = delay_s

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for _ in range(data.count(b"\r\n\r\n")):
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, _REPLY)


def _serve_target(port: Any, delay_s: float) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Target(delay_s), HOST, 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    os.sched_setaffinity(0, {0})
    uvloop.run(serve())


@contextmanager
def _target(delay_s: float) -> Iterator[int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve_target, args=(theirs, delay_s), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


class _Client(asyncio.Protocol):
    """A keep-alive connection: one request at a time."""

    def __init__(self) -> None:
        self._pending = b""
        self.waiter: asyncio.Future[int] | None = None
        self.closed = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(0)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        end = self._pending.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._pending, 0, end + 2)
        if length is None or len(self._pending) < end + 4 + int(length[1]):
            return
        status, self._pending = int(self._pending[9:12]), b""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(status)

    async def ask(self, request: bytes) -> int:
        """The status; 0 if the connection was closed."""
        self.waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self.waiter

    def close(self) -> None:
        self._transport.close()


@dataclass
class Load:
    """One tenant's requests."""

    port: int
    request: bytes
    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    taken_s: list[float] = field(default_factory=list)
    _free: list[_Client] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Served in time."""
        return sum(taken <= IN_TIME_S for taken in self.taken_s) / self.seconds

    def percentile_ms(self, share: int) -> float:
        return statistics.quantiles(self.taken_s, n=100)[share - 1] * 1_000

    async def connect(self, count: int) -> None:
        """Open so many connections."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, client = await loop.create_connection(_Client, HOST, self.port)
            self._free.append(client)

    async def at_once(self, callers: int) -> None:
        """Each caller asks again when it is answered."""
        ends = time.perf_counter() + self.seconds

        async def call() -> None:
            while time.perf_counter() < ends:
                await self._one(time.perf_counter())

        await asyncio.gather(*(call() for _ in range(callers)))

    async def at_rate(self, per_s: float) -> None:
        """Requests come at random times of their own."""
        rng = random.Random(1)
        began = due = time.perf_counter()
        tasks = []
        while due < began + self.seconds:
            due += rng.expovariate(per_s)
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(self._one(due)))
        _, late = await asyncio.wait(tasks, timeout=30)
        self.statuses["no answer"] += len(late)  # type: ignore[index]
        for task in late:
            task.cancel()

    async def _one(self, due: float) -> None:
        if not self._free:
            self.statuses[0] += 1
            return
        client = self._free.pop()
        status = await client.ask(self.request)
        self.statuses[status] += 1
        if status == 200:
            self.taken_s.append(time.perf_counter() - due)
        if client.closed:
            await self.connect(1)
        else:
            self._free.append(client)

    def close(self) -> None:
        for client in self._free:
            client.close()


def _tenant(gateway: Gateway, name: str, target_port: int) -> bytes:
    """A new tenant's request."""
    made = gateway.admin("POST", "/tenants", {"name": name, "subdomain": name}).json
    limits = [{"name": "rate_limiter", "settings": {"limit": 10**9, "window": "1m"}}]
    rule = {"path": "/", "target": f"http://{HOST}:{target_port}", "plugin_chain": limits}
    answer = gateway.admin("POST", f"/tenants/{made['id']}/rules", rule, key=made["api_key"])
    if answer.status != 201:
        raise SystemExit(f"no rule: {answer}")
    return f"GET /x HTTP/1.1\r\nhost: {name}.example.com\r\nauthorization: Bearer {made['api_key']}\r\n\r\n".encode()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _measure(gateway: Gateway, flood: bytes, modest: bytes, options: argparse.Namespace) -> None:
    port, pid = gateway.proxy_port, gateway.program.process.pid

    async def loaded(per_s: float) -> tuple[Load, Load]:
        many, few = Load(port, flood, options.seconds), Load(port, modest, options.seconds)
        await many.connect(CONNECTIONS)
        await few.connect(50)
        await asyncio.gather(many.at_rate(per_s) if per_s else asyncio.sleep(0), few.at_rate(MODEST_PER_S))
        many.close()
        few.close()
        await asyncio.sleep(PAUSE_S)
        return many, few

    warm, peak = Load(port, flood, 2), Load(port, flood, options.seconds)
    callers = min(options.max_in_flight, options.callers)
    for load in warm, peak:
        await load.connect(callers)
        await load.at_once(callers)
        load.close()
    _, alone = await loaded(0)
    print(f"{options.engine}: peak {peak.per_s:.0f}/s; the other tenant alone: p99 {alone.percentile_ms(99):.0f} ms\n")
    print("| offered | goodput of the peak | refused | neither | the other tenant served | its p99 of p99 alone | core busy |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for times in (1, 2, 3):
        began, burnt = time.perf_counter(), _cpu_s(pid)
        many, few = await loaded(times * peak.per_s)
        busy = (_cpu_s(pid) - burnt) / (time.perf_counter() - began - PAUSE_S)
        asked, asked_few = many.statuses.total(), few.statuses.total()
        print(
            f"| {times}x | {(many.per_s + few.per_s) / peak.per_s:.0%} | {many.statuses[503] / asked:.0%}"
            f" | {1 - (many.statuses[503] + many.statuses[200]) / asked:.1%} | {few.statuses[200] / asked_few:.0%}"
            f" | {few.percentile_ms(99) / alone.percentile_ms(99):.2f} | {busy:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="uvicorn")
    parser.add_argument("--delay-ms", type=float, default=200)
    parser.add_argument("--max-in-flight", type=int, default=60)
    parser.add_argument("--callers", type=int, default=1_000, help="most callers at once when the peak is measured")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    settings = {
        "SERVER__ENGINE": options.engine,
        "LIMITS__MAX_IN_FLIGHT": str(options.max_in_flight),
        "LIMITS__MAX_IN_FLIGHT_PER_TENANT": str(options.max_in_flight),
        "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
        "LOG__ACCESS": "false",
    }
    with ExitStack() as stack:
        os.sched_setaffinity(0, {0})
        store = stack.enter_context(valkey_server())
        port = stack.enter_context(_target(options.delay_ms / 1_000))
        folder = stack.enter_context(short_directory())
        os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
        gateway = stack.enter_context(a_gateway(folder, settings={**settings, "REDIS__URL": store.url}))
        os.sched_setaffinity(0, {0})
        flood, modest = (_tenant(gateway, name, port) for name in ("flood", "modest"))
        uvloop.run(_measure(gateway, flood, modest, options))


if __name__ == "__main__":
    main()
