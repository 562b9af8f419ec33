"""An app that shows what an engine makes of a request, and misbehaves on demand."""

import asyncio
import contextlib
import json
import ssl
from contextlib import asynccontextmanager

from gateway.config import ServerSettings
from gateway.serving import Listener, serve
from tests.wire import eventually

REST = "Host: x\r\n\r\n"


class WireApp:
    """Answers what it was asked as JSON; ``paths`` are coroutine functions for paths that do something else."""

    def __init__(self, **paths):
        self.paths = paths

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.http.response.start", "status": 501, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"no websockets"})
        elif scope["path"].strip("/") in self.paths:
            await self.paths[scope["path"].strip("/")](receive, send)
        else:
            body, kind = b"", ""
            while not kind:
                message = await receive()
                body += message.get("body", b"")
                kind = "" if message.get("more_body") else message["type"]
            text = {name: scope[name].decode("latin-1") for name in ("raw_path", "query_string")}
            headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
            seen = {"headers": headers, **{name: scope[name] for name in ("method", "path", "http_version", "scheme")}}
            await answer(send, json.dumps({**text, **seen, "body": body.decode(), "ended_by": kind}).encode())


class Endless:
    """A path whose answer never ends, in pieces of this size."""

    def __init__(self, piece):
        self.piece, self.sent = piece, 0

    async def __call__(self, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(self.piece), "more_body": True})
            self.sent += self.piece
            await asyncio.sleep(0)

    async def held_back(self):
        """How much it has sent when it can send no more."""
        await eventually(lambda: self.sent)
        before = -1
        async with asyncio.timeout(20):
            while before != self.sent:
                before = self.sent
                await asyncio.sleep(0.3)
        return self.sent


async def answer(send, body, status=200, headers=()):
    fields = [(b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(app, engine, *, name="proxy", **settings):
    """Its address."""
    bound, shutdown = asyncio.get_running_loop().create_future(), asyncio.Event()
    configured = ServerSettings(**{"engine": engine, "drain_timeout": "1s", **settings})
    listener = Listener(app, "127.0.0.1", 0, name)
    task = asyncio.create_task(serve([listener], configured, shutdown, ready=bound.set_result, cleanup_ms=500))
    await asyncio.wait([task, bound], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield bound.result()[name]
    finally:
        shutdown.set()
        await task


async def exchange(address, request, *, until=b"", **how):
    """What comes back until the server closes, or until it has said so much; ``how`` to connect, such as ``ssl``."""
    reader, writer = await asyncio.open_connection(*address, **how)
    try:
        writer.write(request if isinstance(request, bytes) else request.encode("latin-1"))
        reply = b""
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                while not (until and until in reply) and (chunk := await reader.read(1 << 16)):
                    reply += chunk
        return reply
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def seen_of(address, request, **how):
    """What the app saw of a request that it answered."""
    reply = await exchange(address, request.replace(REST, "Connection: close\r\n" + REST), **how)
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")), head
    return json.loads(body)


def status_of(reply):
    return int(reply.split(b" ", 2)[1])


def settings_of(files):
    """What `serving` takes to speak TLS."""
    return {"tls_certificate": files.certificate, "tls_key": files.key}


def unverified():
    """The context of a client that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def trusting(files):
    """How a client connects that knows the authority."""
    return {"ssl": ssl.create_default_context(cafile=str(files.authority)), "server_hostname": "localhost"}
