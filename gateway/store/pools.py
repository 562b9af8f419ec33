"""redis-py's connections and pools, changed where they do not fit."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, UnixDomainSocketConnection
from redis.asyncio import Connection as TcpConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection

from gateway.store.breaker import Breaker, NotSent

_ASK_SENTINEL_EVERY_S = 1.0


class _Recycled:
    """A connection that a demoted primary answers READONLY is not used again: behind a DNS name waits the new one."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except redis_errors.ReadOnlyError:
            self.mark_for_reconnect()  # type: ignore[attr-defined]
            raise


class _SharedTls:
    """Takes a ready TLS context: redis-py makes one for each connection, which blocks the loop for some 45 ms."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        self._tls = tls
        super().__init__(**options)

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments: Mapping[str, Any] = super()._connection_arguments()  # type: ignore[misc]
        return {**arguments, "ssl": self._tls} if self._tls else arguments


class Tcp(_SharedTls, _Recycled, TcpConnection):
    """Over TCP, with TLS or without."""


class Unix(_Recycled, UnixDomainSocketConnection):
    """Over a socket of the file system."""


class Managed(_SharedTls, SentinelManagedConnection):
    """To the primary that Sentinel names."""


class Pool(BlockingConnectionPool):
    """Tells "all connections are in use" apart from "no connection". While the ``breaker`` is open it gives none."""

    breaker: Breaker | None = None

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:  # noqa: ARG002
        """Raises MaxConnectionsError if none is free in time."""
        if self.breaker is not None and self.breaker.is_open:
            raise NotSent("the server does not answer")
        try:
            return await super().get_connection()  # type: ignore[no-untyped-call]
        except redis_errors.ConnectionError as error:
            if isinstance(error.__cause__, TimeoutError):  # asyncio's; a slow connect is redis-py's own TimeoutError
                raise redis_errors.MaxConnectionsError("all connections are in use") from error
            raise

    def is_current(self, connection: AbstractConnection) -> bool:  # noqa: ARG002
        """Whether a connection leads to the server that the pool is for."""
        return True

    async def is_needed(self) -> bool:
        """It always is."""
        return True


class SentinelPool(SentinelConnectionPool, Pool):
    """Asks who the primary is while it is used, too, and not only when it connects.

    In a failover that somebody asks for, the old primary goes on for some ten seconds, and what it is told then is lost.
    """

    _asked = float("-inf")
    _asking: asyncio.Task[None] | None = None

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """As above."""
        self._ask_sometimes()
        return await super().get_connection(command_name, *keys, **options)

    def is_current(self, connection: Any) -> bool:
        """Whether a connection leads to the primary that Sentinel has named last."""
        self._ask_sometimes()
        return self._leads(connection)

    def _leads(self, connection: Any) -> bool:
        return bool((connection.host, connection.port) == self.master_address)

    def _ask_sometimes(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._asked > _ASK_SENTINEL_EVERY_S and (self._asking is None or self._asking.done()):
            self._asked = now
            self._asking = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        with suppress(redis_errors.RedisError, OSError):  # whoever needs a new connection is told
            await self.get_master_address()  # type: ignore[no-untyped-call]  # closes those that nobody uses

    async def release(self, connection: Any) -> None:
        """One to a former primary is not used again."""
        if not self._leads(connection):
            connection.mark_for_reconnect()
        await super().release(connection)

    async def aclose(self) -> None:
        """Also stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await super().aclose()
