"""Sends a request to a target and returns when the head of its reply is here."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import cast

import aiohttp
from aiohttp.connector import Connection

from gateway.config import UpstreamSettings
from gateway.errors import UpstreamTimeout, UpstreamUnreachable
from gateway.forwarder.names import Names
from gateway.forwarder.pool import Destination, Pool
from gateway.forwarder.protocol import BROKEN_EXCHANGE, TargetProtocol
from gateway.forwarder.reply import UpstreamReply, give_back
from gateway.forwarder.request_head import RequestHeads, UnsendableRequest
from gateway.forwarder.upload import Body, Upload
from gateway.headers import RawHeaders
from gateway.targets import AddressPolicy, Target

_LOG = logging.getLogger("gateway.forwarder")

JOINED_BYTES = 64 << 10
"""A body up to this size leaves together with its head; copying it costs less than another write."""

REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110 §9.2.2"""


DISCONNECTED = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)

OnOutage = Callable[[str], None]
"""Is told the owner of a target that is not asked for a while."""


class Forwarder:
    """Keeps connections to targets. One for each process; `start` and `stop` inside its event loop."""

    def __init__(self, settings: UpstreamSettings, on_outage: OnOutage = lambda _: None) -> None:
        self._settings = settings
        self._on_outage = on_outage
        self._first_byte_seconds = settings.first_byte_timeout / 1_000
        self._idle_seconds = settings.idle_timeout / 1_000
        self._total_seconds = settings.total_timeout / 1_000
        self._heads = RequestHeads()
        self._pools: dict[bool, Pool] = {}

    async def start(self) -> None:
        """Open the pools: one for targets on the Internet, one for those that may only be inside allowed networks."""
        self._loop = asyncio.get_running_loop()
        tls = ssl.create_default_context()
        names = Names()
        for inner in (False, True):
            policy = AddressPolicy.of(self._settings.allowed_networks, public=not inner)
            self._pools[inner] = Pool(self._settings, policy, tls, names)

    async def stop(self) -> None:
        """Close every connection. May be called twice."""
        for pool in self._pools.values():
            await pool.close()
        self._pools.clear()

    async def open(
        self,
        target: Target,
        method: str,
        url: str,
        headers: RawHeaders,
        body: bytes | Body | None,
        retries: int | None,
        *,
        owner: str = "",
    ) -> UpstreamReply:
        """Send a request and return when the reply's head is here.

        A failed connect is tried again, before any byte of the request was sent; a connection that breaks afterwards once,
        and only for methods that may be repeated (RFC 9110 §9.2.2) and a body that is here. Raises UpstreamUnreachable,
        UpstreamTimeout, and what ``body`` ran into. ``owner`` is whose target it is: whoever else has the same one is not
        concerned by what became of the requests of this one. Raises Overloaded if too many of them are under way.
        """
        origin = target.origin
        if not url.startswith(origin) or url[len(origin) : len(origin) + 1] != "/":
            raise UpstreamUnreachable from AssertionError("the URL left its target")
        pool = self._pools[target.inner]
        destination = pool.destination(target, owner)
        here = body is None or isinstance(body, bytes)
        try:
            head, length = self._heads.write(
                method,
                url[len(origin) :],
                destination.host_line,
                headers,
                length=len(body) if isinstance(body, bytes) else None,
                streamed=not here,
            )
        except UnsendableRequest as error:
            _LOG.warning("target %s: a request was not sent for its %s", origin, error)
            raise UpstreamUnreachable from error
        number = destination.enter(self._loop)
        breaker = destination.breaker
        ends_at = self._loop.time() + self._total_seconds
        may_repeat = here and method in REPEATABLE
        try:
            while True:
                try:
                    connection = await pool.connect(destination, self._settings.connect_retries if retries is None else retries)
                except (UpstreamUnreachable, UpstreamTimeout):
                    self._note_failure(destination, number, connecting=True)
                    raise
                if breaker.failures and breaker.connected():
                    self._note_recovery(destination)
                try:
                    reply = await self._exchange(connection, destination, method, head, length, body, ends_at)
                except (*BROKEN_EXCHANGE, UpstreamUnreachable) as error:
                    self._raise_cause(body, error)
                    if may_repeat and isinstance(error, DISCONNECTED) and destination.may_retry(self._loop.time()):
                        may_repeat = False
                        continue
                    self._note_failure(destination, number, connecting=False)
                    if isinstance(error, UpstreamUnreachable):
                        raise
                    if isinstance(error, TimeoutError):
                        raise UpstreamTimeout from error
                    _LOG.info("target %s: %s", origin, type(error).__name__)
                    raise UpstreamUnreachable from error
                if breaker.failures and breaker.succeeded():
                    self._note_recovery(destination)
                return reply
        except BaseException as error:
            destination.in_flight -= 1
            if not isinstance(error, (UpstreamUnreachable, UpstreamTimeout)):
                breaker.left(number, self._loop.time())
            raise

    def _note_failure(self, destination: Destination, number: int, *, connecting: bool) -> None:
        if destination.breaker.failed(number, self._loop.time(), connecting=connecting):
            _LOG.warning("target %s of %r is not asked for a while", destination.url.origin(), destination.owner)
            self._on_outage(destination.owner)

    def _note_recovery(self, destination: Destination) -> None:
        _LOG.warning("target %s of %r is asked again", destination.url.origin(), destination.owner)

    async def _exchange(
        self,
        connection: Connection,
        destination: Destination,
        method: str,
        head: bytes,
        length: int | None,
        body: bytes | Body | None,
        ends_at: float,
    ) -> UpstreamReply:
        """Raises BROKEN_EXCHANGE."""
        protocol = cast("TargetProtocol", connection.protocol)
        upload = None
        try:
            protocol.begin(without_body=method == "HEAD")
            if body is None or (isinstance(body, bytes) and len(body) <= JOINED_BYTES):
                protocol.write(head + body if body else head)
                protocol.give_until(min(self._loop.time() + self._first_byte_seconds, ends_at))
            else:
                protocol.write(head)
                upload = Upload(protocol, length, self._first_byte_seconds, ends_at)
                upload.start(body)
            message, content = await protocol.reply()
            if not 200 <= message.code <= 599:
                _LOG.info("a target answered with status %d", message.code)
                raise UpstreamUnreachable("The target of this route answered with a status that does not exist.")
        except BaseException:
            give_back(connection, complete=False, upload=upload)
            raise
        protocol.stop_clock()
        if upload is not None:
            upload.is_answered = True
        return UpstreamReply(
            connection, destination, message, content, upload, idle_seconds=self._idle_seconds, ends_at=ends_at
        )

    def _raise_cause(self, body: bytes | Body | None, error: BaseException) -> None:
        # a body that fails while it is sent reaches us as an error of the connection
        if body is not None and not isinstance(body, bytes) and body.error is not None:
            raise body.error from error
