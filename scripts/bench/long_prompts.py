"""Do long prompts make other requests wait? Latency of small calls, alone and beside prompts of 200 000 tokens.

    python -m scripts.bench.long_prompts [--seconds 15] [--a-second 10]

A gateway process with limits of tokens and dollars, so that every prompt is read, counted and priced; a target of its own; this
process is all the clients. Prints milliseconds of the small calls in both situations of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import aiohttp

from tests.e2e.processes import Gateway, a_gateway
from tests.servers import short_directory, valkey_server

EVERY_S = 0.02
ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }
).encode()
WORDS = "The gateway reads a prompt that is as long as a novel, and other people's requests must not notice. "
KINDS = {
    "prose": WORDS * (800_000 // len(WORDS)),
    "ideographs": "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(200_000)),
    "escapes": '"\\\n' * 130_000,
}


class _Target(asyncio.Protocol):
    """Takes a request, however long, and answers it."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._left = 0
        self._head = b""

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            head, found, body = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._left = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            self._head, data = b"", body
        self._left -= len(data)
        if self._left <= 0:
            self._left = 0
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self._transport.write(head + ANSWER)


def _serve_target(port: Any) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Target, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def _body(prompt: str) -> bytes:
    return json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}], "max_tokens": 100}).encode()


@contextmanager
def _bed() -> Iterator[tuple[Gateway, str]]:
    ours, theirs = multiprocessing.Pipe()
    target = multiprocessing.Process(target=_serve_target, args=(theirs,), daemon=True)
    target.start()
    with ExitStack() as stack:
        stack.callback(target.terminate)
        store = stack.enter_context(valkey_server())
        folder = stack.enter_context(short_directory())
        settings = {"REDIS__URL": store.url, "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8"}
        gateway = stack.enter_context(a_gateway(folder, settings=settings))
        limits = [{"unit": "tokens", "limit": 10**12, "window": "1m"}, {"unit": "usd", "quota": {"monthly": 999_999}}]
        tenant = gateway.admin("POST", "/tenants", {"name": "Long", "subdomain": "long", "limits": limits}).json
        rule = {"path": "/", "target": f"http://127.0.0.1:{ours.recv()}"}
        gateway.admin("POST", f"/tenants/{tenant['id']}/rules", rule, key=tenant["api_key"])
        yield gateway, tenant["api_key"]


async def _small(session: aiohttp.ClientSession, seconds: float) -> list[float]:
    """Milliseconds of small calls, one begun every 20 ms."""
    body, took = _body("Hello"), []

    async def one() -> None:
        began = time.perf_counter()
        async with session.post("/v1/chat/completions", data=body) as reply:
            await reply.read()
            reply.raise_for_status()
        took.append((time.perf_counter() - began) * 1e3)

    async with asyncio.TaskGroup() as group:
        for _ in range(int(seconds / EVERY_S)):
            group.create_task(one())
            await asyncio.sleep(EVERY_S)
    return took


def _send_long(url: str, key: str, prompt: str, a_second: float, seconds: float, count: Any) -> None:
    """In a process of its own, so that the client of the small calls does not wait for it."""

    async def run() -> None:
        body = _body(prompt)

        async def one(session: aiohttp.ClientSession) -> None:
            async with session.post("/v1/chat/completions", data=body) as reply:
                await reply.read()
                reply.raise_for_status()
                count.value += 1

        headers = {"authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(url, headers=headers) as session, asyncio.TaskGroup() as group:
            for _ in range(int(seconds * a_second)):
                group.create_task(one(session))
                await asyncio.sleep(1 / a_second)

    asyncio.run(run())


def _shown(name: str, took: list[float], sent: int = 0) -> str:
    took = sorted(took)
    at = [took[min(len(took) - 1, int(len(took) * share))] for share in (0.5, 0.99)]
    return f"{name:24}{sent:6d} long prompts   p50 {at[0]:6.1f}   p99 {at[1]:6.1f}   most {took[-1]:6.1f} ms"


async def _measure(gateway: Gateway, key: str, options: argparse.Namespace) -> None:
    url = f"http://127.0.0.1:{gateway.proxy_port}"
    async with aiohttp.ClientSession(url, headers={"authorization": f"Bearer {key}"}) as session:
        await _small(session, 2)
        print(_shown("alone", await _small(session, options.seconds)))
        for name, prompt in KINDS.items():
            count = multiprocessing.Value("i", 0)
            arguments = (url, key, prompt, options.a_second, options.seconds, count)
            sender = multiprocessing.Process(target=_send_long, args=arguments, daemon=True)
            sender.start()
            took = await _small(session, options.seconds)
            await asyncio.to_thread(sender.join)
            print(_shown(f"beside {name}", took, count.value))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--a-second", type=float, default=10, help="long prompts")
    options = parser.parse_args()
    with _bed() as (gateway, key):
        asyncio.run(_measure(gateway, key, options))


if __name__ == "__main__":
    main()
