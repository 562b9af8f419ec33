"""Replies cut into two at every byte, and cut off at every byte: the same reply, or a failure, never half of one."""

import asyncio

import pytest
import uvloop

from gateway.errors import UpstreamUnreachable
from gateway.forwarder import BodyBroken
from tests.forwarders import a_forwarder, fetch, idle_and_busy, target_at

LENGTH = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nx-trailer: 1\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\nx-a: 1\r\n\r\nhello world"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\netag: x\r\ncontent-length: 11\r\n\r\n"
OLD = b"HTTP/1.0 200 OK\r\ncontent-length: 11\r\n\r\nhello world"
CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 11\r\n\r\nhello world"

# method, reply, status, body, whether the connection is used again
REPLIES = {
    "length": ("GET", LENGTH, 200, b"hello world", True),
    "chunks": ("GET", CHUNKS, 200, b"hello world", True),
    "to the end": ("GET", TO_THE_END, 200, b"hello world", False),
    "interim": ("POST", INTERIM + LENGTH, 200, b"hello world", True),
    "no content": ("GET", NO_CONTENT, 204, b"", True),
    "not modified": ("GET", NOT_MODIFIED, 304, b"", True),
    "head": ("HEAD", LENGTH[:-11], 200, b"", True),
    "head of chunks": ("HEAD", CHUNKS.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", 200, b"", True),
    "1.0": ("GET", OLD, 200, b"hello world", False),
    "close": ("GET", CLOSING, 200, b"hello world", False),
}
SECOND = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond"


class Cutting(asyncio.Protocol):
    """Answers with the reply in two pieces, or with its beginning and an end; then with the second reply."""

    def __init__(self, reply, place, *, ends, breaks_off):
        self.first = [reply[:place]] if breaks_off else [reply[:place], reply[place:]]
        self.ends = ends or breaks_off

    def connection_made(self, transport):
        self.transport = transport
        self.answered = False

    def data_received(self, data):
        if self.answered:
            self.transport.write(SECOND)
            return
        self.answered = True
        self.next()

    def next(self):
        if self.first:
            self.transport.write(self.first.pop(0))
            asyncio.get_running_loop().call_later(0.001, self.next)
        elif self.ends:
            self.transport.close()


async def exchanges(forwarder, method, reply, place, *, relay, ends=False, breaks_off=False):
    """What came of the reply, and of a request after it."""
    peers: list[Cutting] = []

    def factory():
        peers.append(Cutting(reply if not peers else SECOND, place if not peers else 0, ends=ends, breaks_off=breaks_off))
        return peers[-1]

    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    try:
        target = target_at(server.sockets[0].getsockname()[1])
        # a method that is not repeated, so that a failure shows
        async with asyncio.timeout(10):
            sent = None if method == "HEAD" else b"x"
            headers, body = await fetch(forwarder, target, method=method, body=sent, relay=relay)
            if not breaks_off:
                assert (await fetch(forwarder, target))[1] == b"second"
        return headers.status, body, len(peers) == 1
    finally:
        server.close()
        for peer in peers:
            peer.transport.abort()
        await server.wait_closed()


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relayed"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_is_the_same_wherever_it_is_cut_into_two(run, case, relay):
    method, reply, status, body, again = REPLIES[case]

    async def main():
        ends = case == "to the end"
        async with a_forwarder() as forwarder:
            for start in range(1, len(reply) + 1, 20):
                places = range(start, min(start + 20, len(reply) + 1))
                found = await asyncio.gather(
                    *(exchanges(forwarder, method, reply, place, relay=relay, ends=ends) for place in places)
                )
                assert found == [(status, body, again)] * len(places)
            assert idle_and_busy(forwarder)[1] == 0

    run(main())


@pytest.mark.parametrize("relay", [False, True], ids=["read", "relayed"])
@pytest.mark.parametrize("case", ["length", "chunks", "interim", "1.0", "close"])
async def test_a_reply_that_ends_too_early_is_never_taken_for_whole(case, relay):
    _, reply, *_ = REPLIES[case]
    async with a_forwarder() as forwarder:
        for start in range(0, len(reply), 20):
            places = range(start, min(start + 20, len(reply)))
            found = await asyncio.gather(
                *(exchanges(forwarder, "POST", reply, place, relay=relay, breaks_off=True) for place in places),
                return_exceptions=True,
            )
            for place, outcome in zip(places, found, strict=True):
                assert isinstance(outcome, (BodyBroken, UpstreamUnreachable)), (place, outcome)
        assert idle_and_busy(forwarder) == (0, 0)
