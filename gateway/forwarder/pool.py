"""Connections to targets: kept while idle, and opened to allowed addresses only."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
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
from gateway.errors import UpstreamTimeout, UpstreamUnreachable
from gateway.forwarder.protocol import TargetProtocol
from gateway.targets import AddressPolicy, Target

_LOG = logging.getLogger("gateway.forwarder")

FIRST_RETRY_MS = 50
MAX_DESTINATIONS = 10_000


class ForbiddenAddress(OSError):
    """A target's name leads to an address that no connection may reach."""


class Destination(aiohttp.ClientRequest):
    """A target as aiohttp's connector wants to be asked for it, prepared once and never sent."""

    def __init__(self, target: Target, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__("GET", URL(f"{target.origin}/", encoded=True), loop=loop)
        self.host_line = b"host: " + target.origin.partition("://")[2].encode()

    @functools.cached_property
    def connection_key(self) -> ConnectionKey:
        """Which connections lead there."""
        return super().connection_key


class Pool:
    """The connections under one policy of addresses. Made inside the event loop that uses it."""

    def __init__(self, settings: UpstreamSettings, policy: AddressPolicy, tls: ssl.SSLContext) -> None:
        self._loop = asyncio.get_running_loop()
        self._first_byte_seconds = settings.first_byte_timeout / 1_000
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            connect=min(settings.first_byte_timeout, settings.total_timeout) / 1_000,
            sock_connect=settings.connect_timeout / 1_000,
        )
        self.connector = aiohttp.TCPConnector(
            limit=settings.pool_size,
            keepalive_timeout=settings.keep_alive / 1_000,
            ssl=tls,
            socket_factory=functools.partial(_guarded_socket, policy),
            happy_eyeballs_delay=0.25,
        )
        self.connector._factory = functools.partial(TargetProtocol, loop=self._loop)  # type: ignore[assignment]
        self._destinations: dict[str, Destination] = {}

    async def close(self) -> None:
        """Close every connection. May be called twice."""
        await self.connector.close()

    def destination(self, target: Target) -> Destination:
        """What to ask this pool for."""
        found = self._destinations.get(target.origin)
        if found is None:
            if len(self._destinations) >= MAX_DESTINATIONS:
                self._destinations.clear()
            found = self._destinations[target.origin] = Destination(target, self._loop)
        return found

    async def connect(self, destination: Destination, attempts: int) -> Connection:
        """An idle connection that is still good, else a new one, tried for so many times.

        Raises UpstreamUnreachable and UpstreamTimeout.
        """
        for attempt in range(attempts):
            last = attempt + 1 == attempts
            started = self._loop.time()
            try:
                while True:
                    connection = await self.connector.connect(destination, [], self._timeout)
                    if cast("TargetProtocol", connection.protocol).is_usable():
                        return connection
                    connection.close()
            except aiohttp.ClientConnectorError as error:
                forbidden = isinstance(error.os_error, ForbiddenAddress)
                if forbidden or last or isinstance(error, aiohttp.ClientConnectorCertificateError):
                    _LOG.log(
                        logging.WARNING if forbidden else logging.INFO,
                        "target %s: %s", destination.url.origin(), error.os_error if forbidden else error,
                    )  # fmt: skip
                    raise UpstreamUnreachable from error
            except TimeoutError as error:
                # the longer time covers waiting for a place in the pool, too: it is over for good
                if last or self._loop.time() - started >= self._first_byte_seconds:
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
