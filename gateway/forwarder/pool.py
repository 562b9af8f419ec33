"""Connections to targets: kept while idle, and opened to allowed addresses only."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import itertools
import logging
import random
import socket
import ssl
from typing import Any, cast

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from yarl import URL

from gateway.config import UpstreamSettings
from gateway.errors import Overloaded, UpstreamTimeout, UpstreamUnreachable
from gateway.forwarder.breaker import MOST_SAVED_RETRIES, RETRY_SHARE, Breaker, RetryBudget
from gateway.forwarder.names import Names
from gateway.forwarder.protocol import TargetProtocol
from gateway.targets import AddressPolicy, Target

_LOG = logging.getLogger("gateway.forwarder")

FIRST_RETRY_MS = 50
MAX_DESTINATIONS = 10_000
LOOKED_AT = 32


_OWN_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class ForbiddenAddress(OSError):
    """A target's name leads to an address that no connection may reach."""


class Destination:
    """A target as one owner sees it, and as aiohttp's connector wants to be asked for it, prepared once.

    Owners share nothing: not what is known of its failures, since others may well reach it, and no connections unless the
    configuration says so, since a target that mixes up its replies must not answer one with what another has asked.
    """

    __slots__ = (
        "breaker",
        "budget",
        "connection_key",
        "host",
        "host_line",
        "in_flight",
        "is_name",
        "most",
        "owner",
        "port",
        "url",
    )

    proxy = None
    proxy_headers = None
    server_hostname = None
    ssl = True

    def __init__(self, target: Target, owner: str, settings: UpstreamSettings) -> None:
        self.owner = owner
        self.url = URL(f"{target.origin}/", encoded=True)
        self.host = self.url.raw_host or ""
        self.port = target.port
        self.is_name = not _is_address(target.host)
        # the last field is of a proxy, of which there is none: it keeps apart what belongs to different owners
        kept_apart = None if settings.share_connections else cast("int", owner)
        self.connection_key = ConnectionKey(self.host, self.port, self.is_ssl(), True, None, None, kept_apart)
        self.host_line = b"host: " + target.origin.partition("://")[2].encode()
        self.breaker = Breaker(settings.breaker_failures, settings.breaker_pause / 1_000)
        self.budget = RetryBudget()
        self.most = settings.most_per_target
        self.in_flight = 0

    def enter(self, loop: asyncio.AbstractEventLoop) -> int:
        """A request begins; it ends where ``in_flight`` is lowered again. Returns the breaker's number for it.

        Raises BreakerOpen, and Overloaded if too many are under way.
        """
        if self.in_flight >= self.most:
            raise Overloaded("Too many requests to the target of this route are under way; try again.")
        breaker, budget = self.breaker, self.budget
        number = breaker.enter(loop.time()) if breaker.is_open else breaker.number
        if budget.saved < MOST_SAVED_RETRIES:
            budget.saved += RETRY_SHARE
        self.in_flight += 1
        return number

    def may_retry(self, now: float) -> bool:
        """Whether the target can take one more request for one that failed."""
        return not self.breaker.is_open and self.budget.take(now)

    def is_ssl(self) -> bool:
        """Whether it speaks TLS."""
        return self.url.scheme == "https"


class Connector(aiohttp.TCPConnector):
    """Gives a try to connect its time as a whole, whatever the number of addresses, and who waits for a place too."""

    def __init__(self, names: Names, *, try_seconds: float, wait_seconds: float, **options: Any) -> None:
        super().__init__(resolver=names, use_dns_cache=False, **options)
        self._names = names
        self._try_seconds = try_seconds
        self._wait_seconds = wait_seconds

    async def _create_connection(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:  # noqa: ASYNC109
        async with asyncio.timeout(self._try_seconds):
            if req.is_name:
                try:
                    await self._names.look_up(req.host, req.owner)
                except OSError as error:
                    if isinstance(error, TimeoutError):
                        raise
                    raise aiohttp.ClientConnectorDNSError(req.connection_key, error) from error
            return await super()._create_connection(req, traces, timeout)

    async def _wait_for_available_connection(self, key: ConnectionKey, traces: Any) -> None:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await super()._wait_for_available_connection(key, traces)
        except TimeoutError as error:
            raise Overloaded("The gateway has no connection left for this request; try again.") from error


class Pool:
    """The connections under one policy of addresses. Made inside the event loop that uses it."""

    def __init__(self, settings: UpstreamSettings, policy: AddressPolicy, tls: ssl.SSLContext, names: Names) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        longest = min(settings.first_byte_timeout, settings.total_timeout) / 1_000
        self._timeout = aiohttp.ClientTimeout(total=None)
        self.connector = Connector(
            names,
            try_seconds=min(settings.connect_timeout / 1_000, longest),
            wait_seconds=min(settings.connect_timeout / 1_000, longest),
            limit=settings.pool_size,
            keepalive_timeout=settings.keep_alive / 1_000,
            ssl=tls,
            socket_factory=functools.partial(_guarded_socket, policy),
            happy_eyeballs_delay=0.25,
        )
        self.connector._factory = functools.partial(TargetProtocol, loop=self._loop)  # type: ignore[assignment]
        self._destinations: dict[tuple[str, str], Destination] = {}

    async def close(self) -> None:
        """Close every connection. May be called twice."""
        await self.connector.close()

    def destination(self, target: Target, owner: str) -> Destination:
        """What to ask this pool for."""
        known = (owner, target.origin)
        found = self._destinations.get(known)
        if found is None:
            if len(self._destinations) >= MAX_DESTINATIONS:
                self._make_room()
            found = self._destinations[known] = Destination(target, owner, self._settings)
        return found

    def _make_room(self) -> None:
        oldest = list(itertools.islice(self._destinations.items(), LOOKED_AT))
        idle = (known for known, each in oldest if not each.in_flight and not each.breaker.failures)
        del self._destinations[next(idle, oldest[0][0])]

    async def connect(self, destination: Destination, retries: int) -> Connection:
        """An idle connection that is still good, else a new one, tried again so often if the target's budget of retries allows.

        Raises UpstreamUnreachable, UpstreamTimeout, and Overloaded if there is no place for it.
        """
        for attempt in range(1 + retries):
            try:
                while True:
                    connection = await self.connector.connect(cast("Any", destination), [], self._timeout)
                    if cast("TargetProtocol", connection.protocol).is_usable():
                        return connection
                    connection.close()
            except aiohttp.ClientConnectorError as error:
                if error.os_error.errno in _OWN_FAULT:
                    raise Overloaded("The gateway has no connection left for this request; try again.") from error
                forbidden = isinstance(error.os_error, ForbiddenAddress)
                hopeless = forbidden or isinstance(error, aiohttp.ClientConnectorCertificateError)
                if hopeless or attempt == retries or not destination.may_retry(self._loop.time()):
                    _LOG.log(
                        logging.WARNING if forbidden else logging.INFO,
                        "target %s: %s", destination.url.origin(), error.os_error if forbidden else error,
                    )  # fmt: skip
                    raise UpstreamUnreachable from error
            except TimeoutError as error:
                if attempt == retries or not destination.may_retry(self._loop.time()):
                    raise UpstreamTimeout from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                _LOG.info("target %s: %s", destination.url.origin(), type(error).__name__)
                raise UpstreamUnreachable from error
            # full jitter, so that replicas do not come back all at once
            await asyncio.sleep(random.uniform(0, FIRST_RETRY_MS << attempt) / 1_000)  # noqa: S311 - not a secret
        raise AssertionError("unreachable")


def _guarded_socket(policy: AddressPolicy, info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = info
    if not policy.is_allowed(ipaddress.ip_address(str(address[0]).partition("%")[0])):
        raise ForbiddenAddress(f"{address[0]} is neither public nor in upstream.allowed_networks")
    return socket.socket(family, kind, protocol)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
