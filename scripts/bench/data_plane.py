"""CPU of the data plane by itself: ASGI messages go in and come out without a server, a real store and a real target behind.

    python -m scripts.bench.data_plane [--requests 4000] [--at-once 32] [--limits 1] [--profile FILE]

Prints CPU microseconds a request of this process: the loop and the clients of this script (measured alone, with an app
that answers at once), and what the gateway adds. The target is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import statistics
import time
from typing import Any

import uvloop

from gateway.config import Config
from gateway.proxy import ProxyParts, create_proxy_app
from gateway.secrets import Vault
from gateway.store import connect, open_stores
from gateway.telemetry import AccessLog, Metrics
from tests.asgi import App, a_scope, status_of
from tests.builders import an_accounting, built_in_plugins
from tests.gateways import MASTER_KEY, ATenant, Gateway
from tests.servers import valkey_server
from tests.stores import patient

REQUEST = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"%s"}]}' % (b"Say something about gateways. " * 14)
ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"content":"%s"}}]}' % (b"word " * 180)
ROUNDS = 7


class _Target(asyncio.Protocol):
    """Answers each request with the same reply. A request is one body of `REQUEST` after its head."""

    _REPLY = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: target\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        b"x-request-id: req_1\r\ncontent-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
    )

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._pending = b""

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) >= 0 and len(self._pending) >= end + 4 + len(REQUEST):
            self._pending = self._pending[end + 4 + len(REQUEST) :]
            self._transport.write(self._REPLY)


def _serve_target(port: Any) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Target, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


async def _burn(app: App, tenant: ATenant, requests: int, at_once: int) -> float:
    """CPU microseconds a request."""
    left = requests

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            status = await status_of(app, a_scope(tenant.host, tenant.secret, REQUEST), REQUEST)
            if status != 200:
                raise SystemExit(f"answered {status}")

    began = time.process_time()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return (time.process_time() - began) / requests * 1e6


async def _answer(_scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _measure(store_url: str, target_port: int, options: argparse.Namespace) -> None:
    config = Config.model_validate({"upstream": {"allowed_networks": "127.0.0.0/8"}})
    connection = connect(patient(store_url))
    stores = await open_stores(connection, config.limits.lease, config.usage.retention)
    metrics, vault, log = Metrics(), Vault(MASTER_KEY), io.StringIO()
    accounting = an_accounting(config)
    parts = ProxyParts(config, stores, built_in_plugins(), vault, accounting, metrics, AccessLog(log), lambda: False)
    app = create_proxy_app(parts)
    gateway = Gateway(0, config, stores, vault, metrics, log)
    tenant = await gateway.new_tenant()
    limits = [{"limit": 10_000 - number, "window": "1s"} for number in range(options.limits)]
    chain = [{"name": "rate_limiter", "settings": limit} for limit in limits]
    await gateway.new_rule(tenant, f"http://127.0.0.1:{target_port}", plugin_chain=chain)
    await app.startup()
    try:
        await _burn(app.asgi_app, tenant, 500, options.at_once)
        alone, whole = [], []
        if options.profile:
            await _profiled(app.asgi_app, tenant, options)
        for _ in range(ROUNDS):
            alone.append(await _burn(_answer, tenant, options.requests, options.at_once))
            whole.append(await _burn(app.asgi_app, tenant, options.requests, options.at_once))
            log.seek(0)
            log.truncate()
        base = statistics.median(alone)
        median = statistics.median(whole)
        print(f"harness {base:6.1f} us   gateway {median - base:6.1f} us a request  (least {min(whole) - base:.1f})")
    finally:
        await app.shutdown()
        await connection.close()


async def _profiled(app: App, tenant: ATenant, options: argparse.Namespace) -> None:
    import cProfile  # noqa: PLC0415

    with cProfile.Profile() as profile:
        await _burn(app, tenant, options.requests, options.at_once)
    profile.dump_stats(options.profile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--limits", type=int, default=1)
    parser.add_argument("--profile")
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    target = multiprocessing.Process(target=_serve_target, args=(theirs,), daemon=True)
    target.start()
    with valkey_server() as server:
        uvloop.run(_measure(server.url, ours.recv(), options))
    target.terminate()


if __name__ == "__main__":
    main()
