"""Brings the reply of a target to the client, and reads on the way what it tells of its usage."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from gateway.errors import InternalError, UpstreamUnreachable
from gateway.formats import StreamMeter
from gateway.forwarder import BodyBroken, PassOn, UpstreamReply
from gateway.headers import RawHeaders
from gateway.plugin import Exchange, Headers
from gateway.proxy.leave_watch import LeaveWatch
from gateway.proxy.metering import Metering, usage_comment, usage_fields
from gateway.proxy.reply_writer import ReplyWriter
from gateway.proxy.request_body import ClientLeft

_EVENT_STREAM = b"text/event-stream"
_LOG = logging.getLogger("gateway.proxy")

MOST_KEPT_BYTES = 1 << 20
"""Replies to calls that are no streams are held back up to this length, so that their heads can tell their usage."""


class Returning:
    """One reply on its way.

    ``received`` is its head as the target sent it, which plugins may change later. ``hides_usage`` if its stream tells a usage
    that the client did not ask for; ``comments`` if a comment at its end is to.
    """

    def __init__(
        self,
        exchange: Exchange,
        upstream: UpstreamReply,
        reply: ReplyWriter,
        watch: LeaveWatch,
        metering: Metering | None,
        received: Headers,
        *,
        hides_usage: bool,
        comments: bool,
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._reply = reply
        self._watch = watch
        self._metering = metering
        content_type, self._is_encoded = b"", False
        for name, value in received.raw:
            if name == b"content-type":
                content_type = value.lower()
            elif name == b"content-encoding":
                self._is_encoded = True
        self._is_json = b"json" in content_type
        self.is_event_stream = content_type.startswith(_EVENT_STREAM)
        self._hides_usage = hides_usage
        self._comments = comments and self.is_event_stream

    async def read(self, max_bytes: int) -> bytes:
        """The whole body, for plugins. Raises UpstreamUnreachable."""
        try:
            body = await self._upstream.read(max_bytes)
        except BodyBroken as error:
            raise self._failed("The target of this route broke off its reply.") from error
        if body is None:
            raise self._failed("The target's reply is longer than what the plugins of this route may read.")
        if self._metering is not None and self._upstream.is_success:
            self._metering.whole(body)
            self._reply.extra += usage_fields(self._metering.spent())
        return body

    async def send(self, *, checked: bool) -> None:
        """Send it. ``checked`` if no plugin has touched its head. Raises ClientLeft."""
        answered = self._exchange.reply
        if answered is None:
            raise InternalError from AssertionError("a plugin removed the reply")
        if answered.body is not None and self._exchange.request.method != "HEAD":
            self._watch.stop()
            await self._reply.whole(answered.status, answered.headers.raw, answered.body)
            return
        headers, metering = answered.headers, self._metering
        if metering is None or not self._upstream.is_success:
            await self._reply.start(answered.status, headers.raw, checked=checked)
            await self._relay()
        elif self._is_encoded:
            metering.unreadable()
            await self._reply.start(answered.status, headers.raw, checked=checked)
            await self._relay()
        elif self.is_event_stream or (metering.call.asked.streams and metering.call.endpoint.streams_json):
            stream = metering.stream(hides_usage=self._hides_usage)
            if self._hides_usage or self._comments:
                headers.remove("content-length")
            await self._reply.start(answered.status, headers.raw, checked=checked)
            await self._relay(stream.feed, stream)
        elif self._is_json:
            await self._send_measured(metering, answered.status, headers.raw, checked=checked)
        else:
            await self._reply.start(answered.status, headers.raw, checked=checked)
            await self._relay(metering.long().feed)

    async def _send_measured(self, metering: Metering, status: int, fields: RawHeaders, *, checked: bool) -> None:
        """A reply that is no stream: whole, so that its head tells its usage, unless it is too long for that."""
        try:
            begun, is_whole = await self._upstream.read_up_to(MOST_KEPT_BYTES)
        except BodyBroken as error:
            raise self._failed("The target of this route broke off its reply.") from error
        if is_whole:
            metering.whole(begun)
            self._reply.extra += usage_fields(metering.spent())
            await self._reply.start(status, fields, checked=checked)
            self._watch.stop()
            await self._reply.end(begun)
            return
        look = metering.long().feed
        await self._reply.start(status, fields, checked=checked)
        await self._reply.write(look(begun))
        await self._relay(look)

    async def _relay(self, feed: Callable[[bytes], bytes] | None = None, stream: StreamMeter | None = None) -> None:
        """The body, part by part; what is sent of a part is what ``feed`` makes of it."""
        reply, upstream = self._reply, self._upstream
        pass_on = reply.pass_on if feed is None else _through(feed, reply.pass_on)
        whole = upstream.take()
        try:
            if whole is None:
                while chunk := await upstream.next_chunk():
                    if self._watch.left:  # a plugin has swallowed the cancellation
                        raise ClientLeft
                    rest = pass_on(chunk)
                    if rest is not None:
                        await rest
                    await upstream.relay(pass_on)
        except BodyBroken as error:
            await self._break_off(error, stream)
            return
        # the server reports the end of its own reply like a client that leaves
        self._watch.stop()
        last = whole or b""
        if feed is not None:
            last = feed(last)
        if stream is not None:
            last += stream.flush()
            if self._comments and self._metering is not None:
                last += usage_comment(self._metering.spent())
        await reply.end(last)

    async def _break_off(self, error: BodyBroken, stream: StreamMeter | None) -> None:
        _LOG.info("reply of request %s broke off: %s", self._exchange.request_id, error)
        failure = UpstreamUnreachable("The target of this route broke off its reply.")
        if stream is not None:
            await self._reply.write(stream.flush())
        self._reply.note(failure)
        answered = self._exchange.reply
        if answered is not None and _takes_an_event(answered.headers):
            await self._reply.broken_event(failure)

    def _failed(self, message: str) -> UpstreamUnreachable:
        """For a reply of which the client gets nothing, so that it costs nothing."""
        if self._metering is not None:
            self._metering.refused()
        return UpstreamUnreachable(message)


def _through(feed: Callable[[bytes], bytes], pass_on: PassOn) -> PassOn:
    def fed(chunk: bytes) -> Awaitable[None] | None:
        return pass_on(feed(chunk))

    return fed


def _takes_an_event(headers: Headers) -> bool:
    """A stream that is compressed, or whose length was announced, has no place for an event of ours."""
    content_type = (headers.get("content-type") or "").lower().encode("latin-1")
    return content_type.startswith(_EVENT_STREAM) and "content-encoding" not in headers and "content-length" not in headers
