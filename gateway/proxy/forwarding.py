"""What becomes of an admitted request: its chain, its target, its reply."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Any, cast

from gateway.config import LimitsSettings
from gateway.errors import InternalError, UpstreamAuthFailed, UpstreamUnreachable
from gateway.forwarder import BodyBroken, Forwarder, UpstreamReply
from gateway.headers import forwarded
from gateway.limit_headers import limit_headers_in
from gateway.plugin import Answer, Exchange, Headers, Reply, Request
from gateway.policy import refusal_of
from gateway.proxy.admitter import Admitter, Ticket
from gateway.proxy.background import Background
from gateway.proxy.leave_watch import LeaveWatch, LeaveWatches
from gateway.proxy.outcome import Outcome
from gateway.proxy.reply_writer import ReplyWriter
from gateway.proxy.request_body import ClientLeft, RequestBody
from gateway.proxy.request_head import RequestHead
from gateway.telemetry import Visit

_LOG = logging.getLogger("gateway.proxy")

READ_AT_ONCE_BYTES = 64 << 10


class Forwarding:
    """Takes admitted requests to their end: plugins, target, reply."""

    def __init__(
        self,
        admitter: Admitter,
        forwarder: Forwarder,
        background: Background,
        watches: LeaveWatches,
        limits: LimitsSettings,
    ) -> None:
        self._admitter = admitter
        self._forwarder = forwarder
        self._background = background
        self._watches = watches
        self._limits = limits
        self._limit_headers = limit_headers_in(limits.ratelimit_headers)

    async def run(self, ticket: Ticket, head: RequestHead, body: RequestBody, reply: ReplyWriter, visit: Visit) -> None:
        """Answer the request. Raises what refuses it, and ClientLeft."""
        began = perf_counter()
        chain, states = ticket.rule.chain, ticket.admission.states
        exchange = _exchange_of(ticket, head, visit)
        watch = LeaveWatch(self._watches, body)
        outcome = Outcome()
        try:
            refused_at, refusal = (None, None) if ticket.admission.admitted else refusal_of(states)
            if exchange.request.body is None and chain.reads_request_body_before(refused_at):
                exchange.request.body = await body.read(self._limits.max_inspected_bytes)
            stopped = None
            if refused_at is not None or chain.sees_request:
                stopped = await chain.pre_request(exchange, refused_at, refusal)
            outcome.reached = len(chain.entries) if stopped is None else stopped.index
            if ticket.limits:
                told = states if stopped is None else [state for state in states if state.entry <= outcome.reached]
                reply.extra = self._limit_headers(told)
            if stopped is not None and stopped.error is not None:
                raise stopped.error
            outcome.exchange = exchange
            if exchange.answer is not None:
                await self._answer(ticket, exchange, exchange.answer, reply)
            else:
                await self._forward(ticket, head, body, exchange, reply, visit, watch, outcome)
        except asyncio.CancelledError:
            if watch.left:
                cast("asyncio.Task[Any]", asyncio.current_task()).uncancel()
                raise ClientLeft from None
            raise
        finally:
            watch.stop()
            self._admitter.settle(ticket, outcome)
            if chain.observes:
                exchange.timings.total_ms = (perf_counter() - began) * 1_000
                self._background.run(lambda: chain.post_response(exchange))

    async def _answer(self, ticket: Ticket, exchange: Exchange, answer: Answer, reply: ReplyWriter) -> None:
        """A plugin's answer goes to the client like the target's: what is checked in every reply is checked in it too."""
        exchange.reply = made = Reply(answer.status, Headers.of(answer.headers), answer.body)
        await ticket.rule.chain.pre_response(exchange)
        await reply.whole(made.status, made.headers.raw, made.body or b"")

    async def _forward(
        self,
        ticket: Ticket,
        head: RequestHead,
        body: RequestBody,
        exchange: Exchange,
        reply: ReplyWriter,
        visit: Visit,
        watch: LeaveWatch,
        outcome: Outcome,
    ) -> None:
        rule, request = ticket.rule, exchange.request
        if request.body is None and (body.complete or (body.length is not None and body.length <= READ_AT_ONCE_BYTES)):
            request.body = await body.read(READ_AT_ONCE_BYTES)
        if body.complete:
            watch.start()
        else:
            body.on_complete = watch.start
        payload = body if request.body is None else request.body or None
        url = rule.url(request.path, request.query)
        headers = rule.forwarded.over(
            request.headers.raw,
            client_ip=head.client_ip,
            scheme=head.scheme,
            authority=head.authority,
            request_id=exchange.request_id,
            length=body.length if request.body is None else None,
        )
        began = perf_counter()
        upstream = await self._forwarder.open(rule.target, request.method, url, headers, payload, rule.retries)
        try:
            visit.upstream_ms = exchange.timings.upstream_ms = (perf_counter() - began) * 1_000
            if upstream.status in (401, 403):
                _LOG.warning("target %s of rule %s answered %d", rule.target.origin, rule.info.id, upstream.status)
                raise UpstreamAuthFailed(headers=[("x-should-retry", "false")])
            received = Headers(rule.returned(upstream.raw_headers))
            exchange.reply = Reply(upstream.status, received)
            outcome.note_reply(ticket.limits, received)
            chain = rule.chain
            if chain.sees_reply:
                await chain.post_request(exchange)
                if chain.needs_reply_body and not _is_event_stream(received):
                    exchange.reply.body = await self._read_reply(upstream)
                await chain.pre_response(exchange)
            await self._send(exchange, upstream, reply, watch, checked=not chain.sees_reply)
        finally:
            upstream.close()

    async def _read_reply(self, upstream: UpstreamReply) -> bytes:
        try:
            body = await upstream.read(self._limits.max_inspected_bytes)
        except BodyBroken as error:
            raise UpstreamUnreachable("The target of this route broke off its reply.") from error
        if body is None:
            raise UpstreamUnreachable("The target's reply is longer than what the plugins of this route may read.")
        return body

    async def _send(
        self, exchange: Exchange, upstream: UpstreamReply, reply: ReplyWriter, watch: LeaveWatch, *, checked: bool
    ) -> None:
        answered = exchange.reply
        if answered is None:
            raise InternalError from AssertionError("a plugin removed the reply")
        if answered.body is not None and exchange.request.method != "HEAD":
            watch.stop()
            await reply.whole(answered.status, answered.headers.raw, answered.body)
            return
        await reply.start(answered.status, answered.headers.raw, checked=checked)
        whole = upstream.take()
        try:
            if whole is None:
                while chunk := await upstream.next_chunk():
                    if watch.left:  # a plugin has swallowed the cancellation
                        raise ClientLeft
                    await reply.write(chunk)
                    await upstream.relay(reply.pass_on)
        except BodyBroken as error:
            _LOG.info("reply of request %s broke off: %s", exchange.request_id, error)
            failure = UpstreamUnreachable("The target of this route broke off its reply.")
            reply.note(failure)
            if _takes_an_event(answered.headers):
                await reply.broken_event(failure)
            return
        # the server reports the end of its own reply like a client that leaves
        watch.stop()
        await reply.end(whole or b"")


def _exchange_of(ticket: Ticket, head: RequestHead, visit: Visit) -> Exchange:
    secret = (head.secret or "").encode("latin-1")
    headers = Headers(forwarded(head.headers, secret))
    request = Request(head.method, head.path, head.query, headers, head.client_ip, ticket.body, head.has_body)
    states = ticket.admission.states
    exchange = Exchange(visit.request_id, request, ticket.tenant.info, ticket.key.info, ticket.rule.info, limits=states)
    exchange.timings.admission_ms = visit.admission_ms
    return exchange


def _is_event_stream(headers: Headers) -> bool:
    return (headers.get("content-type") or "").lower().startswith("text/event-stream")


def _takes_an_event(headers: Headers) -> bool:
    """A stream that is compressed, or whose length was announced, has no place for an event of ours."""
    return _is_event_stream(headers) and "content-encoding" not in headers and "content-length" not in headers
