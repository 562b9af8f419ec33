"""What it costs to understand calls to models: CPU of the data plane with and without it, in one run.

    python -m scripts.bench.metering [--requests 2000] [--events 50]

The same calls go to four rules: `none` reads nothing, `auto` reads usage from replies, asks streams for it and hides it, and
the other two also reserve and settle tokens in a window, and dollars in a quota. Prints CPU microseconds of this process for a
call that is not streamed, for one that is, and for each event of a stream. The target is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
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
from tests.sse_events import chat_events
from tests.stores import patient

ROUNDS = 7
ASKED = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Say something about gateways. " * 14}],
    "max_tokens": 200,
}
USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 180,
    "total_tokens": 280,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 180}, "finish_reason": "stop"}],
    "usage": USAGE,
}
LIMITS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "auto": [],
    "auto, tokens per minute": [{"unit": "tokens", "limit": 10**12, "window": "1m"}],
    "auto, dollars per month": [{"unit": "usd", "quota": {"monthly": 999_999}}],
}
EVENT_EVERY_S = 0.002


class _Target(asyncio.Protocol):
    """Answers calls; streams event by event where the call asks for it."""

    events = 50

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._pending = b""

    def data_received(self, data: bytes) -> None:
        self._pending += data
        head, found, body = self._pending.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        if len(body) < length:
            return
        self._pending = b""
        asked = json.loads(body)
        if asked.get("stream"):
            task = asyncio.create_task(self._stream("stream_options" in asked))
            self._task = task
            return
        answer = json.dumps(ANSWER, separators=(",", ":")).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
        self._transport.write(head + answer)

    async def _stream(self, asked: bool) -> None:
        write = self._transport.write
        write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in chat_events(["word "] * self.events, usage=USAGE, asked=asked):
            write(b"%x\r\n%s\r\n" % (len(event), event))
            await asyncio.sleep(EVENT_EVERY_S)
        write(b"0\r\n\r\n")


def _serve_target(port: Any, events: int) -> None:
    _Target.events = events

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Target, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


async def _burn(app: App, tenant: ATenant, path: str, body: bytes, requests: int, at_once: int) -> float:
    """CPU microseconds a request."""
    left = requests

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            status = await status_of(app, a_scope(tenant.host, tenant.secret, body, path), body)
            if status != 200:
                raise SystemExit(f"answered {status}")

    began = time.process_time()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return (time.process_time() - began) / requests * 1e6


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
    paths = {}
    for number, (name, limits) in enumerate(LIMITS.items()):
        chain = [{"name": "rate_limiter", "settings": limit} for limit in limits]
        fields = {"format": name.partition(",")[0], "plugin_chain": chain}
        await gateway.new_rule(tenant, f"http://127.0.0.1:{target_port}", f"/{number}", **fields)
        paths[name] = f"/{number}/chat/completions"
    await app.startup()
    try:
        plain, streamed = ({name: [] for name in LIMITS} for _ in range(2))
        bodies = [json.dumps(ASKED | more, separators=(",", ":")).encode() for more in ({}, {"stream": True})]
        for turn in range(ROUNDS + 1):
            for name, path in paths.items():
                for body, found, count in zip(
                    bodies, (plain, streamed), (options.requests, options.requests // 10), strict=True
                ):
                    took = await _burn(app.asgi_app, tenant, path, body, count, 32)
                    if turn:  # the first round warms up
                        found[name].append(took)
            log.seek(0)
            log.truncate()
        print(f"{'':28}{'call':>8}{'stream':>10}{'event':>8}   us of CPU, medians of {ROUNDS} rounds")
        for name in LIMITS:
            call, stream = statistics.median(plain[name]), statistics.median(streamed[name])
            print(f"{name:28}{call:8.0f}{stream:10.0f}{(stream - call) / options.events:8.1f}")
    finally:
        await app.shutdown()
        await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--events", type=int, default=50)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    target = multiprocessing.Process(target=_serve_target, args=(theirs, options.events), daemon=True)
    target.start()
    with valkey_server() as server:
        uvloop.run(_measure(server.url, ours.recv(), options))
    target.terminate()


if __name__ == "__main__":
    main()
