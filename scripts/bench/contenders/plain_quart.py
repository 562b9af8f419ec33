"""What one would write first: a Quart view on Hypercorn with one redis-py call and one aiohttp call for each request.

    python plain_quart.py PORT REDIS_URL UPSTREAM_URL WORDS.json

``WORDS.json`` holds the words of the script call, as `recorded_calls` wrote them down.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import redis.asyncio as redis
import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, Response, request

KEPT = frozenset({"content-type"})


def create_app(store: redis.Redis, upstream: str, words: list[str]) -> Quart:
    """The whole proxy."""
    app = Quart(__name__)
    sha, count, *rest = words
    session: aiohttp.ClientSession | None = None

    @app.before_serving
    async def start() -> None:
        nonlocal session
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3600))

    @app.after_serving
    async def stop() -> None:
        if session is not None:
            await session.close()

    @app.route("/<path:path>", methods=["POST"])
    async def forward(path: str) -> Response:
        assert session is not None
        subdomain = request.host.split(".")[0]
        secret = request.headers.get("Authorization", "").removeprefix("Bearer ")
        known = {
            "{id}": secrets.token_hex(16),
            "{digest}": hashlib.sha256(secret.encode()).hexdigest(),
            "{subdomain}": subdomain,
        }
        filled = []
        for word in rest:
            text = word
            for name, value in known.items():
                text = text.replace(name, value)
            filled.append(text)
        reply = await store.evalsha(sha, int(count), *filled)
        if reply[0] != b"admitted":
            return Response("refused", 429 if reply[0] == b"limited" else 401)
        headers = {name: value for name, value in request.headers if name.lower() in KEPT}
        answer = await session.post(f"{upstream}/{path}", data=await request.get_data(), headers=headers)
        told = {name: value for name, value in answer.headers.items() if name.lower() in KEPT}
        if answer.headers.get("Transfer-Encoding") != "chunked":
            async with answer:
                return Response(await answer.read(), answer.status, told)

        async def chunks() -> AsyncIterator[bytes]:
            async with answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        response = Response(chunks(), answer.status, told)
        response.timeout = None
        return response

    return app


def main() -> None:
    """Serve until killed."""
    port, redis_url, upstream, path = sys.argv[1:]
    words = json.loads(Path(path).read_text(encoding="utf-8"))
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.keep_alive_timeout = 3600
    config.backlog = 8192

    async def run() -> None:
        store = redis.Redis.from_url(redis_url, max_connections=10_000)
        await serve(create_app(store, upstream, words), config, shutdown_trigger=asyncio.Event().wait)

    uvloop.run(run())


if __name__ == "__main__":
    main()
