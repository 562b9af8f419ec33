"""Bodies on their way to a target: framed as announced, no faster than they are taken, and stopped when nobody wants them."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.errors import RequestTimeout, UpstreamTimeout, UpstreamUnreachable
from tests.forwarders import a_forwarder, a_recorder, fetch, idle_and_busy, target_at
from tests.wire import an_upstream, eventually

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
on_both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class Parts:
    """A client's body; ``fault`` is raised after its parts."""

    def __init__(self, *parts, fault=None, hangs=False):
        self.parts, self.fault, self.hangs = parts, fault, hangs
        self.error = None
        self.given = 0
        self.closed = False

    async def chunks(self):
        try:
            for part in self.parts:
                await asyncio.sleep(0)
                self.given += 1
                yield part
            if self.hangs:
                await asyncio.Event().wait()
            if self.fault is not None:
                self.error = self.fault
                raise self.fault
        finally:
            self.closed = True


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def announced(length):
    return [(b"content-length", b"%d" % length)]


@on_both_loops
def test_bodies_arrive_whole_in_the_framing_that_was_announced(run):
    parts = [b"a", b"b" * 70_000, b"c" * 300_000, b"d"]
    whole = b"".join(parts)

    async def main():
        async with an_upstream() as upstream, a_forwarder() as forwarder:
            for body, fields, framing in (
                (Parts(*parts), [], "transfer-encoding"),
                (Parts(*parts), announced(len(whole)), "content-length"),
                (Parts(), [], "transfer-encoding"),
                (Parts(), announced(0), "content-length"),
                (whole, [], "content-length"),
                (whole[: 64 << 10], [], "content-length"),
                (b"", [], "content-length"),
            ):
                await fetch(forwarder, upstream, method="POST", headers=fields, body=body)
                sent = body if isinstance(body, bytes) else b"".join(body.parts)
                assert upstream.last.body == sent
                assert {framing} == upstream.last.names & {"transfer-encoding", "content-length"}
            assert upstream.connections == 1

    run(main())


async def test_the_bytes_of_a_chunked_upload():
    async with a_recorder() as (upstream, port), a_forwarder() as forwarder:

        async def answer():
            await eventually(lambda: b"".join(upstream.pieces).endswith(b"0\r\n\r\n"))
            upstream.transport.write(OK)

        answering = asyncio.create_task(answer())
        await fetch(forwarder, target_at(port), "/v1/x", method="PUT", body=Parts(b"hello", b"x" * 17))
        await answering
    head = b"PUT /v1/x HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ntransfer-encoding: chunked\r\n\r\n" % port
    assert b"".join(upstream.pieces) == head + b"5\r\nhello\r\n11\r\n" + b"x" * 17 + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize(("parts", "length"), [([b"12345", b"6"], 5), ([b"123456"], 5), ([b"1234"], 5)])
async def test_a_body_of_another_length_than_announced_is_never_passed_off_as_one(parts, length):
    """What is too much would be read as the next request, what is missing would be taken from it."""
    async with a_recorder() as (upstream, port), a_forwarder() as forwarder:
        with pytest.raises(UpstreamUnreachable):
            await fetch(forwarder, target_at(port), method="POST", headers=announced(length), body=Parts(*parts))
        await eventually(lambda: upstream.lost)
        assert len(b"".join(upstream.pieces).partition(b"\r\n\r\n")[2]) <= 5
        assert idle_and_busy(forwarder) == (0, 0)


@pytest.mark.parametrize("fields", [[], announced(100)])
async def test_a_body_s_own_error_is_what_is_told(fields):
    fault = RequestTimeout()
    async with an_upstream() as upstream, a_forwarder() as forwarder:
        body = Parts(b"hello", fault=fault)
        with pytest.raises(RequestTimeout) as raised:
            await fetch(forwarder, upstream, method="POST", headers=fields, body=body)
        assert raised.value is fault
        assert body.closed
        await eventually(lambda: idle_and_busy(forwarder) == (0, 0))


@on_both_loops
@pytest.mark.parametrize("large", [True, False], ids=["a body that is here", "a stream"])
def test_an_upstream_that_takes_nothing_is_given_up_and_let_go(run, large):
    async def deaf(call):
        await asyncio.sleep(60)

    async def main():
        body: Any = bytes(50_000_000) if large else Parts(*[bytes(1 << 16)] * 800)
        async with an_upstream(deaf) as upstream, a_forwarder(first_byte_timeout="300ms") as forwarder:
            started, files = time.monotonic(), open_files()
            with pytest.raises(UpstreamTimeout):
                await fetch(forwarder, upstream, method="PUT", body=body)
            assert time.monotonic() - started < 20
            assert idle_and_busy(forwarder) == (0, 0)
            if not large:
                assert body.given < 400
                await eventually(lambda: body.closed)
            # closed, though the other side, whose end is the one file more, has not taken what was sent
            await eventually(lambda: open_files() == files + 1)

    run(main())


@pytest.mark.parametrize("large", [True, False], ids=["a body that is here", "a stream"])
async def test_after_an_early_answer_the_rest_is_not_sent_and_the_connection_not_used_again(large):
    async def early(call):
        await call.answer(413, body=b"too large")
        await call.until_gone()

    async with an_upstream(early) as upstream, a_forwarder() as forwarder:
        body: Any = bytes(50_000_000) if large else Parts(*[bytes(1 << 16)] * 800)
        reply, answer = await fetch(forwarder, upstream, method="POST", body=body)
        assert (reply.status, answer) == (413, b"too large")
        assert idle_and_busy(forwarder) == (0, 0)
        if not large:
            await eventually(lambda: body.closed)
            assert body.given < 800
            waiting = Parts(b"x", hangs=True)
            assert (await fetch(forwarder, upstream, method="POST", body=waiting))[0].status == 413
            await eventually(lambda: waiting.closed)
        connections = upstream.connections
        await fetch(forwarder, upstream)
        assert upstream.connections == connections + 1


async def test_a_large_body_that_is_here_is_sent_again_only_where_the_method_allows_it():
    async def breaks(call):
        await call.read_body()
        call.reset()

    for method, times in (("POST", 1), ("PUT", 2)):
        async with an_upstream(breaks) as upstream, a_forwarder() as forwarder:
            with pytest.raises(UpstreamUnreachable):
                await fetch(forwarder, upstream, method=method, body=bytes(300_000), retries=5)
            assert [len(each.body) for each in upstream.requests] == [300_000] * times
