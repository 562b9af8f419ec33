"""Calls of many callers over one connection to each primary of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from gateway.store.breaker import Breaker
from gateway.store.cluster import REDIRECTIONS, ClusterClient, is_lost
from gateway.store.link import Word, pack
from gateway.store.multiplexed import MultiplexedConnection

MakeConnection = Callable[[str, int], AbstractConnection]


@dataclass(frozen=True, slots=True)
class _Node:
    host: str
    port: int
    connect_to: MakeConnection
    client: ClusterClient

    def make_connection(self) -> AbstractConnection:
        return self.connect_to(self.host, self.port)

    def is_current(self, connection: AbstractConnection) -> bool:  # noqa: ARG002  # MOVED says when it is not
        return True

    async def is_needed(self) -> bool:
        """Another node may have got its slots, and nobody calls to learn of it."""
        self.client.forget_topology()
        with contextlib.suppress(Exception):  # as it was known, then
            await self.client.ask_topology()
        return self.client.has_primary(self.host, self.port)


class MultiplexedCluster:
    """Sends each call to the primary of its first key, by the topology that the cluster client knows.

    A call is sent again only after MOVED or ASK, which say that it did not run. After a node was lost the topology is asked for
    while calls go on by the old one: those of other nodes do not wait. Each node has a breaker of its own.
    """

    def __init__(self, client: ClusterClient, connect_to: MakeConnection, timeout: float) -> None:
        self._client = client
        self._connect_to = connect_to
        self._timeout = timeout
        self._connections: dict[tuple[str, int], MultiplexedConnection] = {}
        client.is_refused = self._is_refused

    async def call(self, *words: Word) -> Any:
        """As in `Commands`."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        packed = pack(words)
        try:
            if self._client.is_stale:
                async with asyncio.timeout_at(deadline):
                    await self._client.know_topology()
            try:
                return await self._to(*self._client.primary_of(_slot(words))).send(packed)
            except AskError as redirection:  # MovedError is one
                async with asyncio.timeout_at(deadline):
                    return await self._redirected(packed, redirection)
        except Exception as error:
            if is_lost(error):
                self._client.forget_topology()
            raise

    def breakers(self) -> Sequence[Breaker]:
        """As in `Commands`."""
        return [connection.breaker for connection in self._connections.values()]

    async def aclose(self) -> None:
        """As in `Commands`."""
        await asyncio.gather(*(connection.aclose() for connection in self._connections.values()))

    async def _redirected(self, packed: bytes, redirection: AskError) -> Any:
        for _ in range(REDIRECTIONS):
            try:
                if isinstance(redirection, MovedError):
                    return await self._to(*await self._client.moved(redirection)).send(packed)
                return await self._to(redirection.host, redirection.port).send(packed, asks=True)
            except AskError as again:
                redirection = again
        raise redirection

    def _to(self, host: str, port: int) -> MultiplexedConnection:
        connection = self._connections.get((host, port))
        if connection is None:
            node = _Node(host, port, self._connect_to, self._client)
            connection = MultiplexedConnection(node, f"{host}:{port}", self._timeout)
            self._connections[host, port] = connection
        return connection

    def _is_refused(self, host: str, port: int) -> bool:
        connection = self._connections.get((host, port))
        return connection is not None and connection.breaker.is_open


def _slot(words: tuple[Word, ...]) -> int:
    if words[0] == "GET":
        key = words[1]
    elif words[2]:
        key = words[3]
    else:  # no keys: any server will do
        return 0
    return key_slot(key if isinstance(key, bytes) else str(key).encode())
