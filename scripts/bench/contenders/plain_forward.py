"""The least that forwards in Python: aiohttp's server and aiohttp's client, no key, no limit, no store.

python plain_forward.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web

SESSION = web.AppKey("session", aiohttp.ClientSession)


def create_app(upstream: str) -> web.Application:
    """The whole proxy."""

    async def sessions(app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3600)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            app[SESSION] = session
            yield

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": request.headers.get("Content-Type", "application/octet-stream")}
        body = await request.read()
        async with request.app[SESSION].post(upstream + request.path, data=body, headers=headers) as answer:
            told = {"Content-Type": answer.headers.get("Content-Type", "application/octet-stream")}
            if answer.headers.get("Transfer-Encoding") != "chunked":
                return web.Response(body=await answer.read(), status=answer.status, headers=told)
            response = web.StreamResponse(status=answer.status, headers=told)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    app = web.Application(client_max_size=64 << 20)
    app.cleanup_ctx.append(sessions)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


def main() -> None:
    """Serve until killed."""
    port, upstream = sys.argv[1:]
    uvloop.install()
    web.run_app(create_app(upstream), host="127.0.0.1", port=int(port), access_log=None, backlog=8192, keepalive_timeout=3600)


if __name__ == "__main__":
    main()
