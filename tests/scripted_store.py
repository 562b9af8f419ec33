"""A server that answers scripts with their last argument, and does what a test tells it. In the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import hiredis


class ScriptedStore:
    """Speaks as much of the protocol as redis-py needs to connect. ``answer`` is sent in the place of scripts' replies."""

    def __init__(self) -> None:
        self.url = ""
        self.accepted = 0
        self.asked: list[str] = []
        self.silent = False
        self.answer: bytes | None = None
        self.greets_after_s = 0.0  # each reply to a command that is no script
        self._held: list[tuple[_Client, bytes]] = []
        self._clients: set[_Client] = set()

    @property
    def connected(self) -> int:
        """Clients that are connected."""
        return len(self._clients)

    def speak(self) -> None:
        """Send the replies that were held back while it was silent, and be so no longer."""
        self.silent = False
        held, self._held = self._held, []
        for client, reply in held:
            client.transport.write(reply)

    def stop_reading(self) -> None:
        """Those that are connected are not read any more."""
        for client in self._clients:
            client.transport.pause_reading()

    def read_again(self) -> None:
        """They are."""
        for client in self._clients:
            client.transport.resume_reading()

    def cut(self) -> None:
        """End every connection."""
        for client in list(self._clients):
            client.transport.abort()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that happens here."""
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110  # on this very loop, at whatever a test looks at
                await asyncio.sleep(0.005)

    def reply(self, client: _Client, words: list[bytes]) -> None:
        """To one command."""
        if words[0] == b"HELLO":
            self._greet(client, b"%1\r\n$5\r\nproto\r\n:3\r\n")
        elif not words[0].startswith(b"EVAL"):
            self._greet(client, b"+OK\r\n")
        else:
            self.asked.append(words[-1].decode())
            reply = self.answer or b"*1\r\n$%d\r\n%b\r\n" % (len(words[-1]), words[-1])
            if self.silent:
                self._held.append((client, reply))
            else:
                client.transport.write(reply)

    def _greet(self, client: _Client, reply: bytes) -> None:
        asyncio.get_running_loop().call_later(self.greets_after_s, client.transport.write, reply)


class _Client(asyncio.Protocol):
    def __init__(self, store: ScriptedStore) -> None:
        self._store = store
        self._reader = hiredis.Reader()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._store.accepted += 1
        self._store._clients.add(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (words := self._reader.gets()) is not False:
            self._store.reply(self, words)

    def connection_lost(self, exc: Exception | None) -> None:
        self._store._clients.discard(self)


@contextlib.asynccontextmanager
async def scripted_store() -> AsyncIterator[ScriptedStore]:
    """Listens on a free port of loopback."""
    store = ScriptedStore()
    listener = await asyncio.get_running_loop().create_server(lambda: _Client(store), "127.0.0.1", 0)
    store.url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield store
    finally:
        store.cut()
        listener.close()
        await asyncio.sleep(0)
