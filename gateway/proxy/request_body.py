"""The request body at ASGI level: read whole while it is small or must be inspected, otherwise passed on as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from gateway.awaiting import within
from gateway.errors import RequestTimeout
from gateway.policy import check_inspected_length, check_length

Receive = Callable[[], Awaitable[Any]]


class ClientLeft(Exception):
    """The client closed the connection; nobody is there to be answered."""


class Incoming:
    """ASGI's ``receive``, which knows whether the request has come to its end."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def __call__(self) -> Any:
        """The next message."""
        message = await self._receive()
        self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def discard(self, max_bytes: int, timeout_ms: int) -> None:
        """Drop what is still coming. A connection that is closed with unread bytes may lose the reply on its way out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1_000):
                while not self.ended and max_bytes > 0:
                    max_bytes -= len((await self()).get("body", b""))


class RequestBody:
    """Reads ``receive`` only when asked, so that a client cannot send faster than the upstream takes it."""

    def __init__(self, receive: Receive, *, present: bool, length: int | None, max_bytes: int, idle_ms: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._idle = idle_ms / 1_000
        self.length = length
        self.received_bytes = 0
        self.complete = not present
        self.error: Exception | None = None
        self.on_complete: Callable[[], None] | None = None
        if length is not None:
            check_length(length, max_bytes)

    async def read(self, limit_bytes: int) -> bytes:
        """All of it. Raises BodyTooLarge, RequestTimeout, ClientLeft."""
        if self.length is not None:
            check_inspected_length(self.length, limit_bytes)
        parts: list[bytes] = []
        while not self.complete:
            parts.append(await self._next())
            check_inspected_length(self.received_bytes, limit_bytes)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Its parts as they come. What is raised is also kept in ``error``: aiohttp swallows what a body raises."""
        try:
            while not self.complete:
                chunk = await self._next()
                if chunk:
                    yield chunk
        except Exception as error:
            self.error = error
            raise
        if self.on_complete is not None:
            self.on_complete()

    async def wait_until_left(self) -> None:
        """Returns when the client closes the connection. Only once the body is complete."""
        while (await self._receive())["type"] != "http.disconnect":
            continue

    async def _next(self) -> bytes:
        try:
            message = await within(self._idle, self._receive())
        except TimeoutError:
            raise RequestTimeout(headers=[("connection", "close")]) from None
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk: bytes = message.get("body", b"")
        self.received_bytes += len(chunk)
        check_length(self.received_bytes, self._max_bytes)
        self.complete = not message.get("more_body", False)
        return chunk
