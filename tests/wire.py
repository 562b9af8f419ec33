"""HTTP/1.1 by hand: a client that sends exactly what a test says, and an upstream that answers exactly what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
PATIENCE = 10.0

Fields = Mapping[str, str] | Iterable[tuple[str, str]]


def head_of(method: str, target: str, fields: Fields) -> bytes:
    """A request head."""
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass
class Message:
    """A parsed head, and the body once it is read."""

    start: str
    fields: list[tuple[str, str]]
    raw_head: bytes = b""
    body: bytes = b""

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def method(self) -> str:
        return self.start.split(" ")[0]

    @property
    def target(self) -> str:
        return self.start.split(" ")[1]

    @property
    def error(self) -> dict[str, Any]:
        """The gateway's error object."""
        return dict(json.loads(self.body)["error"])

    @property
    def code(self) -> str:
        return str(self.error["code"])

    def get(self, name: str) -> str | None:
        """The only value of this name."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name.lower()]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.fields}


class Cut(Exception):
    """The connection ended before the message did; ``message`` is what came of it."""

    def __init__(self, message: Message) -> None:
        super().__init__(f"cut after {message.body[-200:]!r}")
        self.message = message


async def read_head(reader: asyncio.StreamReader, patience: float | None = PATIENCE) -> Message:
    """Raises IncompleteReadError at the end of the connection."""
    raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), patience)
    start, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return Message(start, [(name.lower(), value.strip()) for name, _, value in pairs], raw)


async def body_parts(reader: asyncio.StreamReader, message: Message, *, until_close: bool) -> AsyncIterator[bytes]:
    """The parts of a body as they are framed or arrive. Raises IncompleteReadError if it is cut."""
    if message.get("transfer-encoding") == "chunked":
        while True:
            line = await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE)
            size = int(line.split(b";")[0], 16)
            data = await asyncio.wait_for(reader.readexactly(size + 2), PATIENCE)
            if not size:
                return
            yield data[:-2]
    length = message.get("content-length")
    if length is not None:
        left = int(length)
        while left:
            part = await asyncio.wait_for(reader.read(min(left, 1 << 16)), PATIENCE)
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(part)
            yield part
    elif until_close:
        while part := await asyncio.wait_for(reader.read(1 << 16), PATIENCE):
            yield part


class Wire:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Message:
        """The next head; informational ones are skipped."""
        while (message := await read_head(self.reader)).start.split(" ")[1][0] == "1":
            continue
        return message

    async def parts(self, message: Message) -> AsyncIterator[bytes]:
        async for part in body_parts(self.reader, message, until_close=True):
            yield part

    async def reply(self, method: str = "GET") -> Message:
        """The next whole reply. Raises Cut."""
        message = await self.head()
        if method != "HEAD" and message.status not in (204, 304):
            try:
                async for part in self.parts(message):
                    message.body += part
            except (asyncio.IncompleteReadError, ConnectionError):
                raise Cut(message) from None
        return message

    async def ask(self, method: str, target: str, fields: Fields, body: bytes = b"") -> Message:
        """One request with this head and body, and its reply. Sends all before it reads, as simple clients do."""
        await self.send(head_of(method, target, fields) + body)
        return await self.reply(method)

    async def is_closed(self, seconds: float = 2.0) -> bool:
        """Whether the other side ends the connection without sending more."""
        try:
            return await asyncio.wait_for(self.reader.read(1), seconds) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def abort(self) -> None:
        """Leave with a reset."""
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connected_to(port: int, **how: Any) -> AsyncIterator[Wire]:
    """A connection to loopback; ``how`` as asyncio takes it, such as ``ssl``."""
    reader, writer = await asyncio.open_connection(HOST, port, **how)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Returns once the condition holds. Raises TimeoutError if it never does."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of tests
            await asyncio.sleep(0.01)


# The other side


@dataclass
class Call:
    """A connection that reached an upstream, at the point where a request's head was read."""

    request: Message
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_body(self) -> bytes:
        async for part in body_parts(self.reader, self.request, until_close=False):
            self.request.body += part
        return self.request.body

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def answer(self, status: int = 200, fields: Fields = (), body: bytes = b"") -> None:
        pairs = fields.items() if isinstance(fields, Mapping) else fields
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in pairs), f"content-length: {len(body)}"]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)

    def reset(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()

    async def until_gone(self, seconds: float = PATIENCE) -> None:
        """Returns when the other side has closed or reset the connection."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(seconds):
                while await self.reader.read(1 << 16):
                    continue


Handler = Callable[[Call], Awaitable[None]]


@dataclass
class Upstream:
    """What reached it, how many connections were ever opened to it, and how many are open."""

    port: int
    requests: list[Message] = field(default_factory=list, repr=False)
    connections: int = 0
    open_connections: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{HOST}:{self.port}"

    @property
    def last(self) -> Message:
        return self.requests[-1]


async def ok(call: Call) -> None:
    """Read everything, answer 200."""
    await call.read_body()
    if call.request.method == "HEAD":
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\n")
    else:
        await call.answer(200, {"content-type": "text/plain"}, b"hello")


@contextlib.asynccontextmanager
async def an_upstream(handler: Handler = ok, *, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Upstream]:
    """Serve on loopback; the handler is called for each request of a connection until it closes it."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream.connections += 1
        upstream.open_connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while not writer.is_closing():
                message = await read_head(reader)
                upstream.requests.append(message)
                await handler(Call(message, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            upstream.open_connections -= 1
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, HOST, port, limit=1 << 20, ssl=tls)
    upstream = Upstream(server.sockets[0].getsockname()[1], scheme="http" if tls is None else "https")
    try:
        yield upstream
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
