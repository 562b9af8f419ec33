"""How long requests take while Redis is away, by the access log: ``python -m scripts.bench.outage [--engine NAME]``.

A real gateway with a Valkey server of the bench's own, which is killed and started again, and then stopped and let go on.
Clients ask one request after another, each on a connection of its own, with a pause between them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import time
from collections import Counter
from contextlib import ExitStack, redirect_stdout
from datetime import datetime
from typing import Any, NamedTuple

from tests.e2e.processes import Gateway, a_demo_upstream, a_gateway
from tests.servers import Server, short_directory, valkey_server
from tests.wire import connected_to

CLIENTS = 20
PAUSE_S = 0.03
SETTLED_S = 1.5
"""After this the breaker is open, and nothing else decides what a refusal takes."""


class Logged(NamedTuple):
    """When a request ended, in seconds since 1970, how long it took in the gateway, and its status."""

    at: float
    took_ms: float
    status: int


class Bench:
    """Clients that never stop, and what the gateway says of their requests."""

    def __init__(self, gateway: Gateway, key: str, server: Server) -> None:
        self._gateway = gateway
        self._fields = {"host": "bench.example.com", "authorization": f"Bearer {key}"}
        self._server = server
        self._served_at: list[float] = []
        self.lines: list[str] = []

    async def run(self, seconds: float) -> None:
        asking = [asyncio.create_task(self._ask()) for _ in range(CLIENTS)]
        began = time.time()
        await asyncio.sleep(2)
        await self._report("well", began, time.time())
        for is_killed in (True, False):
            await self._outage(seconds, is_killed=is_killed)
            await asyncio.sleep(2)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self) -> None:
        async with connected_to(self._gateway.proxy_port) as wire:
            while True:
                asked_at = time.time()
                if (await wire.ask("GET", "/v1/models", self._fields)).status == 200:
                    self._served_at.append(asked_at)
                await asyncio.sleep(PAUSE_S)

    async def _outage(self, seconds: float, *, is_killed: bool) -> None:
        name = "killed" if is_killed else "stopped"
        began = time.time()
        if is_killed:
            self._server.kill()
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self._server.start)
        else:
            with self._server.hung():
                await asyncio.sleep(seconds)
        back = time.time()
        while not self._served_at or self._served_at[-1] < back:  # noqa: ASYNC110  # asked by tasks at intervals
            await asyncio.sleep(0.005)
        again_ms = (time.time() - back) * 1_000
        await self._report(f"{name}, first {SETTLED_S:g} s", began, began + SETTLED_S)
        await self._report(f"{name}, afterwards", began + SETTLED_S, began + seconds)
        self.lines.append(f"{name}: served again {again_ms:.0f} ms after it answered")

    async def _report(self, name: str, since: float, until: float) -> None:
        await asyncio.sleep(0.3)  # until it is logged
        found = [logged for logged in map(_logged, self._gateway.program.access_log()) if since <= logged.at < until]
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(Counter(one.status for one in found).items()))
        took = sorted(one.took_ms for one in found)
        shares = (("p50", 0.5), ("p99", 0.99), ("most", 1.0))
        spread = "  ".join(f"{label} {took[min(len(took) - 1, int(share * len(took)))]:6.1f}" for label, share in shares)
        self.lines.append(f"{name:22} {spread} ms   {statuses}")


def _logged(line: dict[str, Any]) -> Logged:
    return Logged(datetime.fromisoformat(line["time"]).timestamp(), line["total_ms"], line["status"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="hypercorn")
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))  # what programs said, which tests want to see
        folder = stack.enter_context(short_directory())
        server = stack.enter_context(valkey_server(persistent=True))
        upstream = stack.enter_context(a_demo_upstream(folder))
        settings = {
            "REDIS__URL": server.url,
            "SERVER__ENGINE": options.engine,
            "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        gateway = stack.enter_context(a_gateway(folder, settings=settings))
        made = gateway.admin("POST", "/tenants", {"name": "Bench", "subdomain": "bench"}).json
        rule = {"path": "/", "target": f"http://127.0.0.1:{upstream}"}
        gateway.admin("POST", f"/tenants/{made['id']}/rules", rule, key=made["api_key"])
        bench = Bench(gateway, made["api_key"], server)
        asyncio.run(bench.run(options.seconds))
    print("\n".join(bench.lines))


if __name__ == "__main__":
    main()
