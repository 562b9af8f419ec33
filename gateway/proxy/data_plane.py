"""The way of a request: one line, no way back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from gateway.config import Config
from gateway.errors import GatewayError, InternalError, InvalidApiKey, RateLimited, UnknownTenant, WebSocketNotSupported
from gateway.failed_logins import FailedLogins
from gateway.proxy.admitter import Admitter
from gateway.proxy.forwarding import Forwarding
from gateway.proxy.gate import Gate
from gateway.proxy.hosts import TenantDomains
from gateway.proxy.reply_writer import ReplyWriter, Send
from gateway.proxy.request_body import ClientLeft, Incoming, Receive, RequestBody
from gateway.proxy.request_head import authority_of, read_head
from gateway.telemetry import AccessLog, Metrics, Visit
from gateway.web import error_reply, request_id_of

_LOG = logging.getLogger("gateway.proxy")

OWN_PAGES = ("/health", "/metrics")
CLIENT_LEFT = 499

App = Callable[[Any, Any, Any], Awaitable[None]]


class DataPlane:
    """An ASGI callable in front of the Quart app: tenants' requests never reach the app, its own pages never come here."""

    def __init__(
        self,
        app: App,
        *,
        config: Config,
        domains: TenantDomains,
        admitter: Admitter,
        forwarding: Forwarding,
        gate: Gate,
        metrics: Metrics,
        access_log: AccessLog,
    ) -> None:
        self._app = app
        self._trusted = config.server.trusted_proxies
        self._max_head_bytes = config.server.max_header_bytes
        self._limits = config.limits
        self._domains = domains
        self._admitter = admitter
        self._forwarding = forwarding
        self._gate = gate
        self._failed_logins = FailedLogins(config.limits.failed_auth_per_minute)
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http" and not self._is_own_page(scope):
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._refuse_websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_own_page(self, scope: Any) -> bool:
        path: str = scope["path"]
        if not path.startswith(OWN_PAGES) or not any(path == page or path.startswith(f"{page}/") for page in OWN_PAGES):
            return False
        try:
            return self._domains.subdomain_of(authority_of(scope, self._trusted)) is None
        except GatewayError:
            return False

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> None:
        began = perf_counter()
        visit = Visit(request_id_of(_header(scope, b"x-request-id")), scope["method"], scope["path"])
        incoming = Incoming(receive)
        reply = ReplyWriter(send, incoming, visit)
        try:
            await self._handle(scope, incoming, reply, visit)
        except ClientLeft:
            visit.status, visit.code = CLIENT_LEFT, "client_left"
        except GatewayError as error:
            await self._answer_error(reply, error)
        except (Exception, BaseExceptionGroup):
            _LOG.exception("request %s failed", visit.request_id)
            await self._answer_error(reply, InternalError())
        finally:
            total_ms = (perf_counter() - began) * 1_000
            self._metrics.observe(visit, total_ms)
            self._access_log.write(visit, total_ms)
        if reply.waits_for_client:
            with contextlib.suppress(ClientLeft):
                await reply.finish()

    async def _answer_error(self, reply: ReplyWriter, error: GatewayError) -> None:
        if reply.started:
            # once the head is out there is no way to say it; an unfinished reply cuts the connection
            reply.note(error)
            return
        with contextlib.suppress(ClientLeft):
            await reply.error(error)

    async def _handle(self, scope: Any, receive: Receive, reply: ReplyWriter, visit: Visit) -> None:
        head = read_head(scope, self._trusted, self._max_head_bytes)
        visit.client_ip = head.client_ip
        body = RequestBody(
            receive,
            present=head.has_body,
            length=head.content_length,
            max_bytes=self._limits.max_body_bytes,
            idle_ms=self._limits.body_idle_timeout,
        )
        began = perf_counter()
        gate, caller = self._gate, self._admitter.presume(head)
        claimed, is_known = caller.subdomain, caller.is_known
        if is_known:
            visit.tenant = claimed
            gate.enter(claimed)
        else:
            self._check_failures(head.client_ip)
            gate.enter_stranger(claimed, has_key=bool(caller.digest))
        try:
            if not is_known:
                caller = await self._admitter.identify(caller)
                if not claimed:
                    gate.name_stranger(caller.subdomain)
                    claimed = caller.subdomain
            ticket = await self._admitter.admit(caller, head, body)
            if not is_known:
                gate.recognise(claimed, caller.subdomain)
                is_known = True
            visit.admission_ms = (perf_counter() - began) * 1_000
            visit.rule, visit.key_id = ticket.rule.info.id, ticket.key.info.id
            await self._forwarding.run(ticket, head, body, reply, visit)
        except (InvalidApiKey, UnknownTenant):
            self._failed_logins.note(head.client_ip)
            raise
        finally:
            if is_known:
                gate.leave(caller.subdomain)
            else:
                gate.leave_stranger(claimed)
            visit.bytes_in = body.received_bytes
            # only tenants that exist: the name becomes a label of the metrics
            visit.tenant = caller.subdomain if self._admitter.knows(caller) else ""

    def _check_failures(self, address: str) -> None:
        """Before the store is asked for a stranger. Raises RateLimited."""
        try:
            self._failed_logins.check(address)
        except RateLimited:
            self._metrics.failed_auth_refused.inc()
            raise

    async def _refuse_websocket(self, scope: Any, receive: Receive, send: Send) -> None:
        request_id = request_id_of(_header(scope, b"x-request-id"))
        status, headers, body = error_reply(WebSocketNotSupported(), request_id)
        await receive()
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body, "more_body": False})


def _header(scope: Any, wanted: bytes) -> str | None:
    values: list[bytes] = [value for name, value in scope["headers"] if name == wanted]
    return values[0].decode("latin-1") if len(values) == 1 else None
