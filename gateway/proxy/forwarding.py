"""What becomes of an admitted request: its chain, its target, its reply."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Any, cast

from gateway.config import LimitsSettings
from gateway.errors import GatewayError, UpstreamAuthFailed
from gateway.forwarder import Forwarder
from gateway.headers import forwarded
from gateway.limit_headers import limit_headers_in
from gateway.plugin import Answer, Exchange, Headers, Reply, Request
from gateway.policy import Accounting, reached_thresholds, refusal_of, renamed_path, sent_body
from gateway.proxy.admitter import Admitter
from gateway.proxy.alerts import Alerts
from gateway.proxy.background import Background
from gateway.proxy.leave_watch import LeaveWatch, LeaveWatches
from gateway.proxy.metering import Metering
from gateway.proxy.outcome import Outcome
from gateway.proxy.reply_writer import ReplyWriter
from gateway.proxy.request_body import ClientLeft, RequestBody
from gateway.proxy.request_head import RequestHead
from gateway.proxy.returning import Returning
from gateway.proxy.ticket import Ticket
from gateway.telemetry import Called, Visit

_LOG = logging.getLogger("gateway.proxy")

READ_AT_ONCE_BYTES = 64 << 10
MOST_NAMED = 1_000
"""Clients name models, so not every one that is unknown is worth a line in the log."""


class Forwarding:
    """Takes admitted requests to their end: plugins, target, reply."""

    def __init__(
        self,
        admitter: Admitter,
        accounting: Accounting,
        forwarder: Forwarder,
        background: Background,
        alerts: Alerts,
        watches: LeaveWatches,
        limits: LimitsSettings,
    ) -> None:
        self._admitter = admitter
        self._accounting = accounting
        self._forwarder = forwarder
        self._background = background
        self._alerts = alerts
        self._watches = watches
        self._limits = limits
        self._unpriced: set[str] = set()
        self._limit_headers = limit_headers_in(limits.ratelimit_headers)

    async def run(self, ticket: Ticket, head: RequestHead, body: RequestBody, reply: ReplyWriter, visit: Visit) -> None:
        """Answer the request. Raises what refuses it, and ClientLeft."""
        began = perf_counter()
        chain, states = ticket.rule.chain, ticket.admission.states
        exchange = _exchange_of(ticket, head, visit)
        watch = LeaveWatch(self._watches, body)
        outcome = Outcome()
        metering = self._metering_of(ticket)
        try:
            refused_at, refusal = (None, None) if ticket.admission.admitted else refusal_of(states)
            if exchange.request.body is None and chain.reads_request_body_before(refused_at):
                exchange.request.body = await body.read(self._limits.max_inspected_bytes)
            stopped = None
            if refused_at is not None or chain.sees_request:
                stopped = await chain.pre_request(exchange, refused_at, refusal)
            outcome.reached = len(chain.entries) if stopped is None else stopped.index
            if ticket.terms.limits:
                told = states if stopped is None else [state for state in states if state.entry <= outcome.reached]
                reply.extra = self._limit_headers(told)
                if (ticket.rule.alerts or ticket.key.alerts) and ticket.by_store:
                    reached = reached_thresholds(ticket.terms.limits, states, outcome.reached)
                    reply.extra += self._alerts.note(ticket.tenant.info, reached, ticket.admission.now_ms)
            if stopped is not None and stopped.error is not None:
                raise stopped.error
            outcome.exchange = exchange
            if exchange.answer is not None:
                await self._answer(ticket, exchange, exchange.answer, reply)
            else:
                await self._forward(ticket, head, body, exchange, reply, visit, watch, outcome, metering)
        except asyncio.CancelledError:
            if watch.left:
                cast("asyncio.Task[Any]", asyncio.current_task()).uncancel()
                raise ClientLeft from None
            raise
        finally:
            watch.stop()
            if metering is not None:
                outcome.spent = metering.spent()
                _note(outcome, exchange, visit, metering)
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
        metering: Metering | None,
    ) -> None:
        rule, request = ticket.rule, exchange.request
        if request.body is None and (body.complete or (body.length is not None and body.length <= READ_AT_ONCE_BYTES)):
            request.body = await body.read(READ_AT_ONCE_BYTES)
        if body.complete:
            watch.start()
        else:
            body.on_complete = watch.start
        path, sent, hides_usage = _sent(ticket, request)
        url = rule.url(path, request.query)
        fields = rule.forwarded if metering is None else rule.plainly_forwarded
        headers = fields.over(
            request.headers.raw,
            client_ip=head.client_ip,
            scheme=head.scheme,
            authority=head.authority,
            request_id=exchange.request_id,
            length=body.length if sent is None else None,
        )
        payload = body if sent is None else sent or None
        began = perf_counter()
        if metering is not None:
            metering.forwarded()
        try:
            upstream = await self._forwarder.open(
                rule.target, request.method, url, headers, payload, rule.retries, owner=ticket.tenant.info.subdomain
            )
        except GatewayError:
            if metering is not None:
                metering.refused()
            raise
        try:
            visit.upstream_ms = exchange.timings.upstream_ms = (perf_counter() - began) * 1_000
            if metering is not None and not upstream.is_success:
                metering.refused()
            if upstream.status in (401, 403):
                _LOG.warning("target %s of rule %s answered %d", rule.target.origin, rule.info.id, upstream.status)
                raise UpstreamAuthFailed(headers=[("x-should-retry", "false")])
            received = Headers(rule.returned(upstream.raw_headers))
            exchange.reply = Reply(upstream.status, received)
            outcome.note_reply(ticket.terms.limits, received)
            returning = Returning(
                exchange, upstream, reply, watch, metering, received, hides_usage=hides_usage, comments=rule.usage_comment
            )
            chain = rule.chain
            if chain.sees_reply:
                await chain.post_request(exchange)
                if chain.needs_reply_body and not returning.is_event_stream:
                    exchange.reply.body = await returning.read(self._limits.max_inspected_bytes)
                await chain.pre_response(exchange)
            await returning.send(checked=not chain.sees_reply)
        finally:
            upstream.close()

    def _metering_of(self, ticket: Ticket) -> Metering | None:
        """Of a request that calls a model and may be forwarded."""
        call, quote = ticket.terms.call, ticket.terms.quote
        if call is None or quote is None:
            return None
        if not quote.known and call.model not in self._unpriced and len(self._unpriced) < MOST_NAMED:
            self._unpriced.add(call.model)
            _LOG.warning("nobody knows what the model %.200r costs: its calls cost prices.fallback", call.model)
        return Metering(self._accounting, call, quote, ticket.terms.demand)


def _sent(ticket: Ticket, request: Request) -> tuple[str, bytes | None, bool]:
    """Path and body for the target, None for one that is not read; and whether a usage will come that must be hidden."""
    terms, path, body = ticket.terms, request.path, request.body
    call = terms.call
    if call is None or body is None:
        return path, body, False
    bound = None if terms.demand is None else terms.demand.bound
    sent, hides_usage = sent_body(call, terms.body, body, bound, asks=ticket.rule.ask_for_usage)
    return renamed_path(call, path), sent, hides_usage


def _note(outcome: Outcome, exchange: Exchange, visit: Visit, metering: Metering) -> None:
    """For plugins that observe, the metrics and the log."""
    spent = outcome.spent
    exchange.usage, exchange.cost_nano_usd = spent.usage, spent.cost_nano_usd
    visit.called = Called(metering.call.model, spent.usage, spent.cost_nano_usd, spent.is_estimate, metering.is_priced)


def _exchange_of(ticket: Ticket, head: RequestHead, visit: Visit) -> Exchange:
    secret = (head.secret or "").encode("latin-1")
    headers = Headers(forwarded(head.headers, secret))
    request = Request(head.method, head.path, head.query, headers, head.client_ip, ticket.terms.body, head.has_body)
    states = ticket.admission.states
    exchange = Exchange(visit.request_id, request, ticket.tenant.info, ticket.key.info, ticket.rule.info, limits=states)
    exchange.timings.admission_ms = visit.admission_ms
    return exchange
