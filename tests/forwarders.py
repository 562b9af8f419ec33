"""Forwarders that may reach loopback, and what is usually asked of them."""

import asyncio
import contextlib

from gateway.config import UpstreamSettings
from gateway.forwarder import Forwarder
from gateway.targets import Target

LOOPBACK = {"allowed_networks": "127.0.0.0/8"}


@contextlib.asynccontextmanager
async def a_forwarder(**given):
    forwarder = Forwarder(UpstreamSettings.model_validate(LOOPBACK | given))
    await forwarder.start()
    try:
        yield forwarder
    finally:
        await forwarder.stop()


async def relayed(reply):
    """The whole body, passed on in the turns of the event loop in which it comes."""
    parts = []

    def pass_on(chunk):
        parts.append(chunk)

    while chunk := await reply.next_chunk():
        parts.append(chunk)
        await reply.relay(pass_on)
    return b"".join(parts)


async def fetch(
    forwarder, base, path="/x", *, method="GET", query="", headers=(), body=None, retries=None, inner=True, relay=False
):
    target = Target(base.scheme, "127.0.0.1", base.port, "", inner) if not isinstance(base, Target) else base
    upstream = await forwarder.open(target, method, target.url(path, query), list(headers), body, retries)
    try:
        return upstream, await (relayed(upstream) if relay else upstream.read(1 << 20))
    finally:
        upstream.close()


def target_at(port):
    return Target("http", "127.0.0.1", port, "", True)


def idle_and_busy(forwarder):
    """How many connections wait in the pools, and how many are in use."""
    connectors = [pool.connector for pool in forwarder._pools.values()]
    return sum(len(held) for each in connectors for held in each._conns.values()), sum(
        len(each._acquired) for each in connectors
    )


class Recorder(asyncio.Protocol):
    """An upstream that keeps every piece it is given as it came, and answers each with the next of its answers."""

    def __init__(self, answers):
        self.answers = iter(answers)
        self.pieces = []
        self.lost = 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.pieces.append(data)
        answer = next(self.answers, None)
        if answer:
            self.transport.write(answer)

    def connection_lost(self, exc):
        self.lost += 1


@contextlib.asynccontextmanager
async def a_recorder(*answers):
    """Yields the upstream and its port."""
    found = Recorder(answers)
    server = await asyncio.get_running_loop().create_server(lambda: found, "127.0.0.1", 0)
    try:
        yield found, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if found.pieces:
            found.transport.abort()
        await server.wait_closed()
