"""A client of an ASGI app without a server between: what it costs to answer is the app's own doing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

App = Callable[[Any, Any, Any], Awaitable[None]]


def a_scope(host: str, key: str, body: bytes, path: str = "/v1/chat/completions", method: str = "POST") -> dict[str, Any]:
    """What a server makes of a chat request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", host.encode()),
            (b"authorization", f"Bearer {key}".encode()),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json"),
            (b"user-agent", b"OpenAI/Python 2.0.0"),
            (b"content-length", b"%d" % len(body)),
        ],
        "client": ("127.0.0.1", 40_000),
        "server": ("127.0.0.1", 8081),
    }


async def status_of(app: App, scope: dict[str, Any], body: bytes) -> int:
    """Send a request whose body is already here, and take the reply."""
    status = 0
    left = asyncio.get_running_loop().create_future()
    incoming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await left
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await app(scope, receive, send)
    return status
