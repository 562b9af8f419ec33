"""Starts and stops an app, as the ASGI lifespan specification has it.

Hypercorn could do it for each listener alone. Here all apps start before the first listener accepts, and none stops before
the last one has drained, whatever became of its connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.errors import ConfigurationError
from gateway.serving.listener import ASGIApp, Listener, Message

LIFESPAN_S = 60.0
"""Longest startup or shutdown of an app."""

logger = logging.getLogger("gateway.server")


@asynccontextmanager
async def lifespan_of(listener: Listener) -> AsyncIterator[None]:
    """Start an app, and shut it down at the end (https://asgi.readthedocs.io/en/latest/specs/lifespan.html).

    Raises ConfigurationError when the app refuses to start. A failing shutdown is logged.
    """
    lifespan = _Lifespan(listener)
    try:
        await lifespan.startup()
        try:
            yield
        finally:
            await lifespan.shutdown()
    finally:
        await lifespan.close()


class _Lifespan:
    def __init__(self, listener: Listener) -> None:
        self._name = listener.name
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._call(listener.app), name=f"{listener.name} lifespan")

    async def startup(self) -> None:
        try:
            refusal = await self._send("startup")
        except TimeoutError:
            refusal = f"no answer within {LIFESPAN_S:g} s"
        if refusal is not None:
            raise ConfigurationError(f"{self._name}: does not start: {refusal}")

    async def shutdown(self) -> None:
        try:
            refusal = await self._send("shutdown")
        except TimeoutError:
            refusal = f"no answer within {LIFESPAN_S:g} s"
        if refusal is not None:
            logger.error("%s: shutdown failed: %s", self._name, refusal)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task], timeout=LIFESPAN_S)

    async def _call(self, app: ASGIApp) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        try:
            await app(scope, self._events.get, self._answer)
        except Exception as error:  # an app may know no lifespan; the specification wants it served all the same
            logger.info("%s: runs without lifespan: %r", self._name, error)

    async def _answer(self, message: Message) -> None:
        if not self._reply.done():
            self._reply.set_result(message)

    async def _send(self, phase: str) -> str | None:
        """Return the app's refusal, if it refuses. Raises TimeoutError."""
        if self._task.done():
            return None
        self._reply = asyncio.get_running_loop().create_future()
        self._events.put_nowait({"type": f"lifespan.{phase}"})
        either: list[asyncio.Future[Any]] = [self._reply, self._task]
        done, _ = await asyncio.wait(either, timeout=LIFESPAN_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise TimeoutError
        message = self._reply.result() if self._reply.done() else {}
        return str(message.get("message", "")) if message.get("type") == f"lifespan.{phase}.failed" else None
