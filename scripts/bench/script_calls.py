"""CPU time of this process for one script call, through redis-py and multiplexed: ``python -m scripts.bench.script_calls``.

Callers call one after another, 1 or 32 at once, on a Valkey server of the bench's own. A call is as large as an admission
with one limit. Median of the rounds; the two ways take turns, because the machine is noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import uvloop

from gateway.store.connect import Connection
from tests.servers import connected, valkey_server

SCRIPT = "return {'admitted', 1760000000000, 0, 1, 9999, 0, 60000}"
KEYS = ["gw:{acme}:tenant", "gw:{acme}:rules", "gw:{acme}:key:" + "a" * 64, "gw:{acme}:req:" + "b" * 32, "gw:{acme}:clock"]
ARGUMENTS = ["v" * 22, "r" * 22, "60000", "b" * 32, "", "log", "1", "10000", "60000", "0", "0"]


async def cpu_us(call: Callable[[], Awaitable[object]], callers: int, calls: int) -> float:
    async def caller() -> None:
        for _ in range(calls // callers):
            await call()

    began = time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return (time.process_time() - began) / (calls // callers * callers) * 1e6


async def bench(connection: Connection, calls: int, rounds: int) -> None:
    sha = await connection.client.script_load(SCRIPT)
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "redis-py": lambda: connection.client.evalsha(sha, len(KEYS), *KEYS, *ARGUMENTS),
        "multiplexed": lambda: connection.scripts.call("EVALSHA", sha, len(KEYS), *KEYS, *ARGUMENTS),
    }
    for callers in (1, 32):
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, call in ways.items():
                samples[name].append(await cpu_us(call, callers, calls))
        for name, values in samples.items():
            print(f"{callers:3} at once  {name:12} {statistics.median(values):7.1f} us of CPU per call")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--unix", action="store_true", help="over a socket of the file system, as the embedded server")
    options = parser.parse_args()

    async def run() -> None:
        with valkey_server(unix=options.unix) as server:
            async with connected(server.url) as connection:
                await bench(connection, options.calls, options.rounds)

    if options.loop == "uvloop":
        uvloop.run(run())
    else:
        asyncio.run(run())


if __name__ == "__main__":
    main()
