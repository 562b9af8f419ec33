"""Callers who never stop: short requests on connections that are kept, and streams; what went wrong is written down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.wire import Cut, Message, connected_to

LOST = (OSError, asyncio.IncompleteReadError, Cut, TimeoutError)
PAUSE_S = 0.03
CHUNKS, CHUNK_MS = 20, 40
BODY = {"model": "demo-small", "messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class Callers:
    """Of one tenant, at one port. ``told`` counts statuses and what was lost; ``failures`` are all that was not 200."""

    port: int
    host: str
    key: str
    told: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    whole_streams: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def at_work(self, short: int, streaming: int) -> AsyncIterator[None]:
        """So many of each, until the context ends; then their last requests are answered."""
        async with asyncio.TaskGroup() as group:
            for number in range(short):
                group.create_task(self._ask_on(random.Random(number)))
            for _ in range(streaming):
                group.create_task(self._stream_on())
            try:
                yield
            finally:
                self.stop.set()

    def fields(self, body: bytes, *more: tuple[str, str]) -> list[tuple[str, str]]:
        """The header fields of a request."""
        return [
            ("host", self.host),
            ("authorization", f"Bearer {self.key}"),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            *more,
        ]

    async def _ask_on(self, chance: random.Random) -> None:
        body = json.dumps(BODY).encode()
        while not self.stop.is_set():
            try:
                await self._ask_on_one_connection(chance, body)
            except LOST as error:
                self._lost("a request", error)

    async def _ask_on_one_connection(self, chance: random.Random, body: bytes) -> None:
        async with connected_to(self.port) as wire:
            while not self.stop.is_set() and not wire.reader.at_eof():
                reply = await wire.ask("POST", "/v1/chat/completions", self.fields(body), body)
                self._note(reply)
                if reply.get("connection") == "close":
                    return
                await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))

    async def _stream_on(self) -> None:
        body = json.dumps(BODY | {"stream": True}).encode()
        slow = [("x-demo-chunks", str(CHUNKS)), ("x-demo-chunk-delay-ms", str(CHUNK_MS))]
        while not self.stop.is_set():
            try:
                async with connected_to(self.port) as wire:
                    reply = await wire.ask("POST", "/v1/chat/completions", self.fields(body, *slow), body)
            except LOST as error:
                self._lost("a stream", error)
                continue
            self._note(reply)
            if reply.status == 200:
                if reply.body.rstrip().endswith(b"data: [DONE]"):
                    self.whole_streams += 1
                else:
                    self.failures.append(f"a stream ended with {reply.body[-80:]!r}")

    def _note(self, reply: Message) -> None:
        self.told[str(reply.status)] += 1
        if reply.status != 200:
            self.failures.append(f"{reply.status} {reply.body[:120]!r}")

    def _lost(self, what: str, error: BaseException) -> None:
        self.told["lost"] += 1
        self.failures.append(f"{what} at {time.monotonic():.3f}: {error!r}")
