"""The demo upstream on a free port, and clients of it.

    async with a_demo_upstream(chunk_delay_ms=0) as url: ...
    async with openai_client() as client: ...

``frames_of`` splits the body of an event stream; it knows nothing of any provider.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai

from gateway.config import ServerSettings
from gateway.demo_upstream import DemoSettings, create_demo_upstream
from gateway.serving import Listener, serve

QUICK = DemoSettings(chunk_delay_ms=0)
KEY = "sk-demo"
# typed as nothing, so that it fits every SDK's call
ASK: Any = {"model": "demo-small", "messages": [{"role": "user", "content": "What is a gateway?"}]}
LONG: Any = ASK | {"max_tokens": 500}


@contextlib.asynccontextmanager
async def a_demo_upstream(settings: DemoSettings = QUICK) -> AsyncIterator[str]:
    """Yield the URL of a served demo."""
    shutdown = asyncio.Event()
    bound: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    listener = Listener(create_demo_upstream(settings), "127.0.0.1", 0, "demo")
    server = ServerSettings(drain_timeout="2s")
    task: asyncio.Future[Any] = asyncio.create_task(
        serve([listener], server, shutdown, ready=bound.set_result, cleanup_ms=1_000)
    )
    await asyncio.wait([task, bound], return_when=asyncio.FIRST_COMPLETED)
    try:
        host, port = bound.result()["demo"]
        yield f"http://{host}:{port}"
    finally:
        shutdown.set()
        await task


@contextlib.asynccontextmanager
async def openai_client(settings: DemoSettings = QUICK, api_key: str = KEY) -> AsyncIterator[Any]:
    async with (
        a_demo_upstream(settings) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def anthropic_client(settings: DemoSettings = QUICK, api_key: str = KEY) -> AsyncIterator[Any]:
    async with (
        a_demo_upstream(settings) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key=api_key, max_retries=0) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def http_client(settings: DemoSettings = QUICK) -> AsyncIterator[aiohttp.ClientSession]:
    async with a_demo_upstream(settings) as url, aiohttp.ClientSession(url) as session:
        yield session


async def posted(session: aiohttp.ClientSession, path: str, body: Any, **switches: Any) -> Any:
    """The JSON of a reply; ``cached_tokens=5`` is the switch ``x-demo-cached-tokens``."""
    async with session.post(path, json=body, headers=switched(switches)) as reply:
        assert reply.status == 200
        return await reply.json()


async def streamed(session: aiohttp.ClientSession, path: str, body: Any, **switches: Any) -> list[tuple[str | None, Any]]:
    """The events of a stream: name and parsed data, or the data as it is where it is no JSON."""
    async with session.post(path, json=body, headers=switched(switches)) as reply:
        assert reply.status == 200
        assert reply.content_type == "text/event-stream"
        return frames_of(await reply.read())


def switched(switches: dict[str, Any]) -> dict[str, str]:
    """As request headers."""
    return {f"x-demo-{name.replace('_', '-')}": str(value) for name, value in switches.items()}


def frames_of(body: bytes) -> list[tuple[str | None, Any]]:
    """The events of a body, whatever ends its lines. Each must have one line of data and nothing unknown."""
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n")
    *frames, rest = text.split("\n\n")
    assert rest == ""
    found = []
    for frame in frames:
        lines = [line for line in frame.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        fields = dict(line.split(": ", 1) for line in lines)
        assert len(fields) == len(lines)
        assert set(fields) <= {"event", "data"}
        data = fields["data"]
        found.append((fields.get("event"), json.loads(data) if data.startswith("{") else data))
    return found
