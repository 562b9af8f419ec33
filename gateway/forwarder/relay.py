"""A body on its way to a client that takes it as fast as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp.streams import StreamReader

from gateway.forwarder.protocol import TargetProtocol

PassOn = Callable[[bytes], Awaitable[None] | None]
"""Takes a part of the body; returns None, or what has to be awaited until there is room for more."""


class Relay:
    """Passes on each part of a body in the very turn of the event loop in which it comes: nobody has to be woken for it.

    `over` returns at the end of the body, when it breaks, or when the other side had no room, and has again.
    """

    __slots__ = ("_content", "_ends_at", "_idle", "_loop", "_over", "_pass_on", "_protocol", "_rest")

    def __init__(
        self, protocol: TargetProtocol, content: StreamReader, pass_on: PassOn, *, idle_seconds: float, ends_at: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._content = content
        self._pass_on = pass_on
        self._idle = idle_seconds
        self._ends_at = ends_at
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._rest: Awaitable[None] | None = None

    async def over(self) -> None:
        """Raises what ``pass_on`` raises."""
        protocol = self._protocol
        protocol.on_change = self._look
        try:
            self._look()
            await self._over
        finally:
            protocol.on_change = None
            protocol.stop_clock()
        if self._rest is not None:
            await self._rest

    def _look(self) -> None:
        """Something has come, or nothing will come any more."""
        if self._over.done():
            return
        content, protocol = self._content, self._protocol
        chunk = protocol.arrived(content)
        if chunk:
            try:
                self._rest = self._pass_on(chunk)
            except Exception as error:
                self._over.set_exception(error)
                return
        if self._rest is not None or content.is_eof() or content.exception() is not None:
            self._over.set_result(None)
        else:
            protocol.give_until(min(self._loop.time() + self._idle, self._ends_at))
