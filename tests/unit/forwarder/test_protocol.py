"""Connections: when they are used again, when their time is over, what may be read from them."""

import asyncio
import socket
import ssl
import threading
import time

import pytest
import uvloop

from gateway.errors import UpstreamTimeout, UpstreamUnreachable
from gateway.forwarder import BodyBroken
from gateway.targets import Target
from tests.forwarders import a_forwarder, a_recorder, fetch, idle_and_busy, target_at
from tests.servers import make_certificates
from tests.wire import an_upstream, eventually, ok

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
on_both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def opened(forwarder, port, path="/"):
    target = target_at(port)
    return forwarder.open(target, "GET", target.url(path, ""), [], None, 0)


@on_both_loops
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_an_upstream_says_unasked_is_nobody_s_reply(run, method):
    """A second reply after the first, or one on an idle connection, would answer whoever comes next."""
    stray = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nSTOLEN"

    async def main():
        for together in (True, False):
            async with a_recorder(OK + stray if together else OK, OK, OK) as (upstream, port), a_forwarder() as forwarder:
                assert (await fetch(forwarder, target_at(port), method=method))[1] == b"ok"
                if not together:
                    upstream.transport.write(stray)
                    await asyncio.sleep(0.05)
                assert (await fetch(forwarder, target_at(port), method=method))[1] == b"ok"
                assert upstream.lost == 1

    run(main())


@on_both_loops
def test_a_connection_that_was_closed_while_the_loop_was_busy_does_not_carry_a_post(run):
    """Its end is in the kernel, the loop has not seen it yet: a POST that was sent on it could not be repeated."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        close, closed = threading.Event(), threading.Event()

        def serve():
            for number in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(OK)
                    if not number:
                        close.wait(5)
                closed.set()

        thread = threading.Thread(target=serve)
        thread.start()

        async def main():
            async with a_forwarder() as forwarder:
                target = target_at(server.getsockname()[1])
                await fetch(forwarder, target)
                close.set()
                closed.wait(5)
                time.sleep(0.05)  # noqa: ASYNC251 - this is the busy loop
                assert (await fetch(forwarder, target, method="POST", body=b"x"))[1] == b"ok"

        run(main())
        thread.join(5)


async def test_the_next_deadline_may_be_earlier_or_later_than_the_one_before():
    async def slow(call):
        if call.request.target == "/slow":
            await asyncio.sleep(0.6)
        if call.request.target == "/halting":
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
            await call.until_gone()
        await ok(call)

    async with an_upstream(slow) as upstream, a_forwarder(first_byte_timeout="1s") as forwarder:
        await fetch(forwarder, upstream)
        await asyncio.sleep(0.6)
        # later: the timer of the first request rings while this one has still time
        await fetch(forwarder, upstream, "/slow")
        assert upstream.connections == 1
    async with an_upstream(slow) as upstream, a_forwarder(first_byte_timeout="30s", idle_timeout="100ms") as forwarder:
        started = time.monotonic()
        with pytest.raises(BodyBroken, match=r"0\.1 s"):
            await fetch(forwarder, upstream, "/halting")
        assert time.monotonic() - started < 5
    async with an_upstream(slow) as upstream, a_forwarder(first_byte_timeout="30s", total_timeout="200ms") as forwarder:
        with pytest.raises(UpstreamTimeout):
            await fetch(forwarder, upstream, "/slow", method="POST")


async def test_the_timer_of_a_connection_is_set_once_and_looks_at_the_deadline():
    async with an_upstream() as upstream, a_forwarder(first_byte_timeout="1s", idle_timeout="1s") as forwarder:
        started = time.monotonic()
        alarms = set()
        while time.monotonic() - started < 2.2:
            reply = await opened(forwarder, upstream.port)
            alarms.add(reply._connection.protocol._alarm)
            assert await reply.read(10) == b"hello"
            reply.close()
            await asyncio.sleep(0.01)
        assert upstream.connections == 1
        assert len(alarms) <= 4
        await asyncio.sleep(1.1)  # it rings while the connection is idle, and that harms nobody
        await fetch(forwarder, upstream)
        assert upstream.connections == 1


async def test_an_exchange_has_its_time_however_steadily_the_reply_drips():
    async def dripping(call):
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        for _ in range(200):
            await call.send(b"x")
            await asyncio.sleep(0.02)

    async with an_upstream(dripping) as upstream, a_forwarder(total_timeout="200ms") as forwarder:
        with pytest.raises(BodyBroken, match="too long"):
            await fetch(forwarder, upstream)
        assert idle_and_busy(forwarder) == (0, 0)


async def test_a_slow_reader_does_not_use_up_the_time_of_the_upstream():
    async def quick(call):
        await call.answer(200, body=b"x" * 300_000)

    async with an_upstream(quick) as upstream, a_forwarder(idle_timeout="100ms") as forwarder:
        reply = await opened(forwarder, upstream.port)
        size = 0
        async for chunk in reply.chunks():
            await asyncio.sleep(0.15)
            size += len(chunk)
        reply.close()
        assert size == 300_000


@on_both_loops
def test_a_reply_that_nobody_reads_is_held_back_and_then_read_whole(run):
    """Also in many small chunks: aiohttp pauses for their number, in places where its parser cannot stop at once."""
    size = 40_000_000
    small = b"1\r\nx\r\n"

    async def main():
        sent = 0

        async def large(call):
            nonlocal sent
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            while sent < size:
                await call.send(bytes(1_000_000))
                sent += 1_000_000

        async def chunked(call):
            await call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + small * 4_097)
            if call.request.target == "/twice":
                await asyncio.sleep(0.2)
                await call.send(small * 100 + b"0\r\n\r\n")
                return
            await asyncio.sleep(0.1)
            for count in (1, 5_000, 4_096, 3, 20_000):
                await call.send(small * count)
                await asyncio.sleep(0.01)
            await call.send(b"0\r\n\r\n")

        async def length(reply):
            found = 0
            async for chunk in reply.chunks():
                found += len(chunk)
            reply.close()
            return found

        async with an_upstream(large) as upstream, a_forwarder() as forwarder:
            reply = await opened(forwarder, upstream.port)
            await asyncio.sleep(0.3)
            assert sent < size // 2
            assert await asyncio.wait_for(length(reply), 20) == size
        async with an_upstream(chunked) as upstream, a_forwarder() as forwarder:
            for pause in (0, 0.05, 0.3):
                reply = await opened(forwarder, upstream.port)
                await asyncio.sleep(pause)
                assert await asyncio.wait_for(length(reply), 20) == 4_097 + 1 + 5_000 + 4_096 + 3 + 20_000
            reply = await opened(forwarder, upstream.port, path="/twice")
            await asyncio.sleep(0.1)
            assert await asyncio.wait_for(length(reply), 20) == 4_097 + 100
            assert upstream.connections == 1

    run(main())


async def test_a_body_that_lasts_as_long_as_its_connection_is_whole_only_if_that_was_closed():
    async def until_the_end(call):
        await call.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        if call.request.target == "/closed":
            call.writer.close()
        else:
            # a reset, not an end
            call.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            call.reset()

    async with an_upstream(until_the_end) as upstream, a_forwarder() as forwarder:
        assert (await fetch(forwarder, upstream, "/closed"))[1] == b"half"
        with pytest.raises(BodyBroken):
            await fetch(forwarder, upstream, "/reset")


async def test_what_came_before_a_break_is_delivered_before_it_is_told():
    async def breaking(call):
        await call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.05)
        await call.send(b"5\r\nfirst\r\nZZ\r\n")
        await call.until_gone()

    async with an_upstream(breaking) as upstream, a_forwarder() as forwarder:
        reply = await opened(forwarder, upstream.port)
        await asyncio.sleep(0.2)
        chunks = reply.chunks()
        assert await anext(chunks) == b"first"
        with pytest.raises(BodyBroken):
            await anext(chunks)
        reply.close()


async def test_interim_replies_are_skipped_and_their_number_is_bounded():
    async def interim(call):
        count = int(call.request.target[1:])
        await call.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * count)
        await ok(call)

    async with an_upstream(interim) as upstream, a_forwarder() as forwarder:
        reply, body = await fetch(forwarder, upstream, "/3")
        assert (reply.status, body) == (200, b"hello")
        await fetch(forwarder, upstream, "/3")
        assert upstream.connections == 1
        with pytest.raises(UpstreamUnreachable):
            await fetch(forwarder, upstream, "/1000", method="POST")
        assert idle_and_busy(forwarder) == (0, 0)


async def test_a_reply_may_be_closed_twice_and_the_forwarder_stopped_twice():
    async with an_upstream() as upstream, a_forwarder() as forwarder:
        reply = await opened(forwarder, upstream.port)
        assert reply.take() == b"hello"
        reply.close()
        reply.close()
        assert idle_and_busy(forwarder) == (1, 0)
        await forwarder.stop()
        await forwarder.stop()
        await eventually(lambda: not forwarder._pools)


async def test_a_body_is_taken_only_when_all_of_it_has_come():
    may_go_on = asyncio.Event()

    async def halting(call):
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await may_go_on.wait()
        await call.send(b"world")

    async with an_upstream(halting) as upstream, a_forwarder() as forwarder:
        reply = await opened(forwarder, upstream.port)
        assert reply.take() is None
        may_go_on.set()
        assert await reply.read(10) == b"helloworld"
        reply.close()


@on_both_loops
def test_connections_with_tls_are_used_again_and_carry_bodies_of_any_size(run, tmp_path, monkeypatch):
    """What TLS itself says on an idle connection (tickets for later sessions) is no reason to give it up."""
    files = make_certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(files.authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)

    async def main():
        async with an_upstream(tls=context) as upstream, a_forwarder() as forwarder:
            target = Target("https", "127.0.0.1", upstream.port, "", True)
            for size in (0, 10, 70_000, 3_000_000):
                await fetch(forwarder, target, method="POST", body=bytes(size))
                assert len(upstream.last.body) == size
            assert upstream.connections == 1

    run(main())
