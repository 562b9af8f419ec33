"""The only user of aiohttp: reaches targets, and nothing but targets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import random
import socket
import ssl
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gateway.config import UpstreamSettings
from gateway.errors import GatewayError, UpstreamTimeout, UpstreamUnreachable
from gateway.headers import RawHeaders
from gateway.targets import AddressPolicy, Target

_LOG = logging.getLogger("gateway.forwarder")

READ_BUFFER_BYTES = 64 << 10
MAX_HEAD_BYTES = 64 << 10
FIRST_RETRY_MS = 50
_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class ForbiddenAddress(OSError):
    """A target's name leads to an address that no connection may reach."""


class BodyBroken(Exception):
    """The upstream's body ended before it was complete, or paused for too long. The head was sent already."""


class Body(Protocol):
    """A request body that is still arriving."""

    @property
    def error(self) -> Exception | None:
        """What went wrong while it was read, if anything did."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Its parts as they come; may be called once."""


class _Protocol(ResponseHandler):
    """aiohttp 3.14 lets the reader of a body wait for ever when a later part of it is framed wrongly."""

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Tell the reader of the body as well."""
        body = self._payload
        super().set_exception(exc, exc_cause or exc)
        if isinstance(exc, HttpProcessingError) and body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError(type(exc).__name__), exc)


class UpstreamReply:
    """The live reply of a target: the head is here, the body is not."""

    def __init__(self, response: aiohttp.ClientResponse, idle_seconds: float) -> None:
        self._response = response
        self._idle = idle_seconds
        self.status = response.status

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """As received."""
        return self._response.raw_headers

    @property
    def is_complete(self) -> bool:
        """True once all of the body has been taken."""
        return self._response.content.at_eof()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, undecoded. Raises BodyBroken."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except TimeoutError as error:
            raise BodyBroken(f"no data for {self._idle:g} s") from error
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise BodyBroken(type(error).__name__) from error

    async def read(self, limit_bytes: int) -> bytes | None:
        """The whole body, or None if it is longer than the limit. Raises BodyBroken."""
        parts: list[bytes] = []
        size = 0
        async with contextlib.aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit_bytes:
                    return None
                parts.append(chunk)
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it. May be called twice.

        One whose request was not sent to its end is dropped by aiohttp.
        """
        if self._response.content.is_eof() and not self._response.closed:
            self._response.release()
        else:
            self._response.close()


class Forwarder:
    """Keeps connections to targets. One for each process; `start` and `stop` inside its event loop."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._settings = settings
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def start(self) -> None:
        """Open the pools: one for targets on the Internet, one for those that may only be inside allowed networks."""
        tls = ssl.create_default_context()
        for inner in (False, True):
            policy = AddressPolicy.of(self._settings.allowed_networks, public=not inner)
            self._sessions[inner] = self._session(policy, tls)

    async def stop(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def open(
        self, target: Target, method: str, url: str, headers: RawHeaders, body: bytes | Body | None, retries: int | None
    ) -> UpstreamReply:
        """Send a request and return when the reply's head is here.

        A failed connect is tried again, before any byte of the request was sent; a connection that breaks afterwards once,
        and only for methods that may be repeated (RFC 9110 §9.2.2; aiohttp does that). Raises UpstreamUnreachable,
        UpstreamTimeout, and what ``body`` ran into.
        """
        attempts = 1 + (self._settings.connect_retries if retries is None else retries)
        destination = URL(url, encoded=True)
        if not url.startswith(f"{target.origin}/") or destination.raw_host != target.host:
            raise UpstreamUnreachable from AssertionError("the URL left its target")
        for attempt in range(attempts):
            try:
                return await self._try(self._sessions[target.inner], method, destination, headers, body)
            except aiohttp.ClientConnectorError as error:
                if isinstance(error.os_error, ForbiddenAddress):
                    _LOG.warning("target %s: %s", target.origin, error.os_error)
                    raise UpstreamUnreachable from error
                if attempt + 1 == attempts or isinstance(error, aiohttp.ClientConnectorCertificateError):
                    _LOG.info("target %s: %s", target.origin, error)
                    raise UpstreamUnreachable from error
            except aiohttp.ConnectionTimeoutError as error:
                if attempt + 1 == attempts:
                    raise UpstreamTimeout from error
            # full jitter, so that replicas do not come back all at once
            await asyncio.sleep(random.uniform(0, FIRST_RETRY_MS << attempt) / 1_000)  # noqa: S311 - not a secret
        raise AssertionError("unreachable")

    async def _try(
        self, session: aiohttp.ClientSession, method: str, url: URL, headers: RawHeaders, body: bytes | Body | None
    ) -> UpstreamReply:
        seconds = self._settings.first_byte_timeout / 1_000
        fields = [(name.decode(), _text(value)) for name, value in headers]
        try:
            async with asyncio.timeout(seconds) as deadline:
                streamed = body is not None and not isinstance(body, bytes)
                data: Any = _pausing(body, deadline, seconds) if streamed else body  # type: ignore[arg-type]
                response = await session.request(method, url, headers=fields, data=data, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            self._raise_cause(body, error)
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout from error
            _LOG.info("target %s: %s", url.origin(), type(error).__name__)
            raise UpstreamUnreachable from error
        if not 200 <= response.status <= 599:
            response.close()
            _LOG.info("target %s answered with status %d", url.origin(), response.status)
            raise UpstreamUnreachable("The target of this route answered with a status that does not exist.")
        return UpstreamReply(response, self._settings.idle_timeout / 1_000)

    def _raise_cause(self, body: bytes | Body | None, error: BaseException) -> None:
        # a body that fails while it is sent reaches us as an error of the connection
        if body is not None and not isinstance(body, bytes) and body.error is not None:
            raise body.error from error
        if isinstance(error, GatewayError):
            raise error

    def _session(self, policy: AddressPolicy, tls: ssl.SSLContext) -> aiohttp.ClientSession:
        def guarded_socket(info: tuple[Any, ...]) -> socket.socket:
            family, kind, protocol, _, address = info
            if not policy.is_allowed(ipaddress.ip_address(str(address[0]).partition("%")[0])):
                raise ForbiddenAddress(f"{address[0]} is neither public nor in upstream.allowed_networks")
            return socket.socket(family, kind, protocol)

        settings = self._settings
        connector = aiohttp.TCPConnector(
            limit=settings.pool_size,
            keepalive_timeout=settings.keep_alive / 1_000,
            ssl=tls,
            socket_factory=guarded_socket,
            happy_eyeballs_delay=0.25,
        )
        connector._factory = functools.partial(_Protocol, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        timeout = aiohttp.ClientTimeout(
            total=settings.total_timeout / 1_000,
            connect=None,
            sock_connect=settings.connect_timeout / 1_000,
            sock_read=settings.idle_timeout / 1_000,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_AUTOMATIC,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEAD_BYTES // 4,
            max_field_size=MAX_HEAD_BYTES // 4,
        )


async def _pausing(body: Body, deadline: asyncio.Timeout, seconds: float) -> AsyncGenerator[bytes, None]:
    """The body's parts. The deadline of the reply's head runs while the upstream has to act, not while the client has to."""

    def due(when: float | None) -> None:
        # the head may be here already: an upstream can answer before it has read everything
        with contextlib.suppress(RuntimeError):
            deadline.reschedule(when)

    loop = asyncio.get_running_loop()
    async with contextlib.aclosing(body.chunks()) as chunks:
        while True:
            due(None)
            chunk = await anext(chunks, None)
            due(loop.time() + seconds)
            if chunk is None:
                return
            yield chunk


def _text(value: bytes) -> str:
    """As aiohttp must be given it to send these bytes: it writes UTF-8. What is not UTF-8 is taken for Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
