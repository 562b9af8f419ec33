"""The reply of a target, piece by piece as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

from gateway.forwarder.pool import Destination
from gateway.forwarder.protocol import BROKEN_EXCHANGE, TargetProtocol
from gateway.forwarder.relay import PassOn, Relay
from gateway.forwarder.upload import Upload


class BodyBroken(Exception):
    """The upstream's body ended before it was complete, or paused for too long. The head was sent already."""


class UpstreamReply:
    """The live reply of a target: the head is here, the body is not."""

    __slots__ = ("_broken", "_connection", "_content", "_destination", "_ends_at", "_idle", "_upload", "raw_headers", "status")

    def __init__(
        self,
        connection: Connection,
        destination: Destination,
        message: RawResponseMessage,
        content: StreamReader,
        upload: Upload | None,
        *,
        idle_seconds: float,
        ends_at: float,
    ) -> None:
        self._connection: Connection | None = connection
        self._destination = destination
        self._content = content
        self._broken: BodyBroken | None = None
        self._upload = upload
        self._idle = idle_seconds
        self._ends_at = ends_at
        self.status: int = message.code
        self.raw_headers: tuple[tuple[bytes, bytes], ...] = message.raw_headers

    @property
    def is_success(self) -> bool:
        """Whether the target did what was asked."""
        return 200 <= self.status <= 299

    async def next_chunk(self) -> bytes:
        """What has arrived of the body, undecoded, or what arrives next; empty once it is complete.

        Raises BodyBroken, after all that has come.
        """
        content, connection = self._content, self._connection
        if self._broken is not None or connection is None:
            raise self._broken or BodyBroken("closed")
        protocol = cast("TargetProtocol", connection.protocol)
        loop = asyncio.get_running_loop()
        try:
            if not content.is_eof():
                protocol.give_until(min(loop.time() + self._idle, self._ends_at))
            chunk = await content.readany()
            protocol.stop_clock()
            return chunk
        except TimeoutError as error:
            late = loop.time() >= self._ends_at
            raise BodyBroken("the exchange took too long" if late else f"no data for {self._idle:g} s") from error
        except BROKEN_EXCHANGE as error:
            self._broken = BodyBroken(type(error).__name__)
            self._broken.__cause__ = error
            rest = protocol.arrived(content)
            if rest:
                return rest
            raise self._broken from error

    async def relay(self, pass_on: PassOn) -> None:
        """Hand over what comes of the body for as long as it is taken; to be called again after `next_chunk`.

        Returns when the body has ended or is broken, which `next_chunk` tells, or once there was a wait for room. Raises what
        ``pass_on`` raises.
        """
        connection = self._connection
        if self._broken is None and connection is not None:
            protocol = cast("TargetProtocol", connection.protocol)
            await Relay(protocol, self._content, pass_on, idle_seconds=self._idle, ends_at=self._ends_at).over()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body, piece by piece. Raises BodyBroken, after all that has come."""
        while chunk := await self.next_chunk():
            yield chunk

    def take(self) -> bytes | None:
        """The whole body if all of it has come already, which is usual for short ones: nothing needs to be waited for."""
        content = self._content
        if not content.is_eof() or content.exception() is not None:
            return None
        return content.read_nowait()

    async def read(self, limit_bytes: int) -> bytes | None:
        """The whole body, or None if it is longer than the limit. Raises BodyBroken."""
        body, is_whole = await self.read_up_to(limit_bytes)
        return body if is_whole else None

    async def read_up_to(self, limit_bytes: int) -> tuple[bytes, bool]:
        """The whole body, and True; of one that is longer than the limit what came by then, and False. Raises BodyBroken."""
        whole = self.take()
        if whole is not None:
            return whole, len(whole) <= limit_bytes
        parts: list[bytes] = []
        size = 0
        while size <= limit_bytes:
            chunk = await self.next_chunk()
            if not chunk:
                break
            size += len(chunk)
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts), size <= limit_bytes

    def close(self) -> None:
        """Give the connection back if request and reply have come to their ends, else drop it. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._destination.in_flight -= 1
        complete = self._content.is_eof() and (self._upload is None or self._upload.is_complete)
        give_back(connection, complete=complete, upload=self._upload)


def give_back(connection: Connection, *, complete: bool, upload: Upload | None) -> None:
    """End an exchange. A connection is used again only if nothing of the exchange is left in it."""
    protocol = cast("TargetProtocol", connection.protocol)
    protocol.stop_clock()
    if upload is not None:
        upload.stop()
    if complete and protocol.has_sent_all:
        connection.release()
        return
    if not protocol.has_sent_all:
        # closing waits for what was written to be taken, which may be never
        protocol.abort()
    connection.close()
