"""A request body on its way: as fast as the target takes it and the client gives it, and no faster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Protocol

import aiohttp

from gateway.forwarder.protocol import TargetProtocol

PIECE_BYTES = 128 << 10


class Body(Protocol):
    """A request body that is still arriving."""

    @property
    def error(self) -> Exception | None:
        """What went wrong while it was read, if anything did."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Its parts as they come; may be called once."""


class Upload:
    """Sends a body while the reply is awaited: a target may answer before it has read everything.

    The deadline of the reply's head runs while the target has to act, not while the client has to.
    """

    def __init__(self, protocol: TargetProtocol, length: int | None, first_byte_seconds: float, ends_at: float) -> None:
        self._protocol = protocol
        self._length = length
        self._seconds = first_byte_seconds
        self._ends_at = ends_at
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self.is_answered = False
        self.is_complete = False

    def start(self, body: Body | bytes) -> None:
        """Begin, once the head is written."""
        chunks = _pieces(body) if isinstance(body, bytes) else body.chunks()
        self._task = self._loop.create_task(self._send(chunks))

    def stop(self) -> None:
        """Send no more."""
        if self._task is not None:
            self._task.cancel()

    async def _send(self, chunks: AsyncGenerator[bytes | memoryview, None]) -> None:
        try:
            async with contextlib.aclosing(chunks):
                await self._send_all(chunks)
            self.is_complete = True
        except Exception as error:
            # the connection's own error, if there is one, says more
            if self._protocol.exception() is None:
                self._protocol.set_exception(aiohttp.ClientConnectionError("the request broke off"), error)

    async def _send_all(self, chunks: AsyncGenerator[bytes | memoryview, None]) -> None:
        protocol, left = self._protocol, self._length
        while True:
            self._give(None)
            chunk = await anext(chunks, None)
            self._give(self._seconds)
            if chunk is None:
                break
            if left is None:
                protocol.write(b"".join((b"%x\r\n" % len(chunk), chunk, b"\r\n")))
            else:
                left -= len(chunk)
                if left < 0:
                    raise ValueError("the body is longer than announced")
                protocol.write(chunk)
            await protocol.drain()
        if left is None:
            protocol.write(b"0\r\n\r\n")
        elif left:
            raise ValueError("the body is shorter than announced")

    def _give(self, seconds: float | None) -> None:
        if not self.is_answered:
            when = self._ends_at
            self._protocol.give_until(when if seconds is None else min(self._loop.time() + seconds, when))


async def _pieces(body: bytes) -> AsyncGenerator[memoryview, None]:
    """A body that is here already, without a copy of it."""
    view = memoryview(body)
    for start in range(0, len(body), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]
