"""What every engine does alike on the wire."""

import asyncio
import gc
import resource
import socket
import sys
import weakref

import pytest

from gateway.errors import ConfigurationError
from gateway.serving import engine as engines
from tests.unit.serving.wire_app import REST, WireApp, answer, exchange, seen_of, serving, status_of

CHUNK = bytes(64 << 10)


@pytest.fixture(params=["hypercorn", "granian", "uvicorn"])
def engine(request):
    return request.param


class Mark:
    """Goes with the request that it was put into."""


async def test_nothing_is_left_of_a_request_that_has_ended(engine):
    app, marks = WireApp(), []

    async def marking(scope, receive, send):
        if scope["type"] == "http":
            mark = scope["mark"] = Mark()
            marks.append(weakref.ref(mark))
        await app(scope, receive, send)

    get = "GET /a HTTP/1.1\r\n"
    async with serving(marking, engine) as address:
        post = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        for _ in range(5):
            await exchange(address, get + REST + post + get + "Connection: close\r\n" + REST)
        assert len(marks) == 15
        async with asyncio.timeout(5):
            while any(mark() for mark in marks):
                await asyncio.sleep(0.05)
                gc.collect()


async def test_path_and_query_reach_the_app_byte_for_byte_and_names_in_lower_case(engine):
    async with serving(WireApp(), engine) as address:
        seen = await seen_of(address, "GET /a%2Fb//c;d?x=%20&&y=+ HTTP/1.1\r\nX-One: 1\r\nx-TWO: \xe9\r\n" + REST)
        assert (seen["raw_path"], seen["query_string"], seen["method"]) == ("/a%2Fb//c;d", "x=%20&&y=+", "GET")
        assert seen["path"] == "/a/b//c;d"
        assert {("x-one", "1"), ("x-two", "\xe9"), ("host", "x")} <= {(name, value) for name, value in seen["headers"]}
        assert seen["http_version"] == "1.1"


async def test_http_1_0_is_told_as_such_and_a_missing_host_is_missing(engine):
    async with serving(WireApp(), engine) as address:
        reply = await exchange(address, "GET /a HTTP/1.0\r\n\r\n")
        assert b'"http_version": "1.0"' in reply
        assert b'"host"' not in reply


@pytest.mark.parametrize(
    "framing", ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]
)
async def test_a_body_comes_whole_and_tells_its_end(engine, framing):
    async with serving(WireApp(), engine) as address:
        reply = await exchange(address, f"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{framing}")
        assert b'"body": "hello", "ended_by": "http.request"' in reply


async def test_a_connection_serves_several_requests_with_bodies(engine):
    one = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    async with serving(WireApp(), engine) as address:
        last = one.replace("Host", "Connection: close\r\nHost")
        assert (await exchange(address, one * 3 + last)).count(b'"body": "hello"') == 4


async def test_replies_have_a_date_and_no_name_of_the_server(engine):
    async with serving(WireApp(), engine) as address:
        head = (await exchange(address, "GET /a HTTP/1.1\r\nConnection: close\r\n" + REST)).partition(b"\r\n\r\n")[0].lower()
        assert b"\r\ndate: " in head
        assert b"granian" not in head
        assert b"hypercorn" not in head


@pytest.mark.parametrize("engine", ["hypercorn", "uvicorn"])
async def test_the_head_of_a_reply_and_what_follows_at_once_are_one_write(engine, monkeypatch):
    written = []
    original = socket.socket.send

    def noted(self, data, *flags):
        if b"HTTP/1.1 200" in bytes(data) or b"part" in bytes(data):
            written.append(bytes(data))
        return original(self, data, *flags)

    async def parts(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % (10 + len(CHUNK)))]})
        await send({"type": "http.response.body", "body": b"part1", "more_body": True})
        await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": b"part2"})

    async def late(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"part3"})

    monkeypatch.setattr(socket.socket, "send", noted)
    async with serving(WireApp(parts=parts, late=late), engine) as address:
        await exchange(address, "GET /parts HTTP/1.1\r\nConnection: close\r\n" + REST)
        assert [piece[-5:] for piece in written if piece.startswith(b"HTTP")] == [b"part1"]
        written.clear()
        # a head is not kept until there is more to say
        await exchange(address, "GET /late HTTP/1.1\r\nConnection: close\r\n" + REST)
        assert [piece.endswith(b"part3") for piece in written] == [False, True]


@pytest.mark.parametrize("status", [204, 304])
async def test_a_reply_without_a_body_keeps_the_connection(engine, status):
    async def bodiless(receive, send):
        await send({"type": "http.response.start", "status": status, "headers": [(b"etag", b"x")]})
        await send({"type": "http.response.body", "body": b""})

    async with serving(WireApp(bodiless=bodiless), engine) as address:
        request = "GET /bodiless HTTP/1.1\r\n"
        reply = await exchange(address, request + REST + request + "Connection: close\r\n" + REST)
        assert reply.count(f"HTTP/1.1 {status}".encode()) == 2
        assert b"transfer-encoding" not in reply.lower()


async def test_a_reply_to_head_has_its_length_and_no_body(engine):
    async with serving(WireApp(), engine) as address:
        head, _, body = (await exchange(address, "HEAD /a HTTP/1.1\r\nConnection: close\r\n" + REST)).partition(b"\r\n\r\n")
        assert b"content-length: " in head.lower()
        assert body == b""


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"100")], [(b"content-type", b"text/event-stream")]])
@pytest.mark.parametrize("body", [b"", b"first part"])
async def test_a_reply_without_its_end_is_cut(engine, headers, body):
    async def unfinished(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async with serving(WireApp(unfinished=unfinished), engine) as address:
        reply = await exchange(address, "GET /unfinished HTTP/1.1\r\n" + REST)
        assert status_of(reply) == 200
        assert body in reply
        assert not reply.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_an_app_without_a_reply_is_answered_500_and_closed(engine, how, caplog):
    async def silent(receive, send):
        if how == "raises":
            raise ValueError("a bug")

    async with serving(WireApp(silent=silent), engine) as address:
        reply = await exchange(address, "GET /silent HTTP/1.1\r\n" + REST)
        assert (status_of(reply), reply.partition(b"\r\n\r\n")[2]) == (500, b"")
    assert ("a bug" in caplog.text) == (how == "raises")


@pytest.mark.parametrize("body", ["none", "length", "chunks"])
@pytest.mark.parametrize("when", ["before the reply", "within the reply"])
async def test_a_client_that_leaves_is_noticed(engine, body, when):
    waiting, left = asyncio.Event(), asyncio.Event()

    async def patient(receive, send):
        while (await receive()).get("more_body"):
            pass
        if when == "within the reply":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    framing = {"none": "\r\n", "length": "Content-Length: 2\r\n\r\nhi", "chunks": "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}
    async with serving(WireApp(patient=patient), engine) as address, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(*address)
        writer.write(f"POST /patient HTTP/1.1\r\nHost: x\r\n{framing[body]}".encode())
        await waiting.wait()
        assert not left.is_set()
        writer.close()
        await left.wait()
        await writer.wait_closed()


async def test_a_body_that_breaks_off_is_a_disconnect(engine):
    ends = asyncio.get_running_loop().create_future()

    async def upload(receive, send):
        while (message := await receive()).get("more_body"):
            pass
        ends.set_result(message["type"])

    async with serving(WireApp(upload=upload), engine) as address, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhello")
        await asyncio.sleep(0.05)
        writer.close()
        assert await ends == "http.disconnect"
        await writer.wait_closed()


async def test_who_expects_100_gets_it_once_the_app_reads(engine):
    request = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    async with serving(WireApp(), engine) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"hello")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()


async def test_a_slow_reader_holds_the_app_back(engine):
    sent, paused = 0, asyncio.Event()

    async def firehose(receive, send):
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while sent < 64 << 20:
            try:
                async with asyncio.timeout(1):
                    await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            except TimeoutError:
                paused.set()
                raise asyncio.CancelledError from None
            sent += len(CHUNK)

    async with serving(WireApp(firehose=firehose), engine) as address:
        with socket.create_connection(address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            client.sendall(b"GET /firehose HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(20):
                await paused.wait()
    assert sent < 32 << 20


async def test_a_fast_sender_is_held_back_by_a_slow_app_in_bounded_memory(engine):
    gate, total = asyncio.Event(), 200 << 20
    got = 0

    async def slow(receive, send):
        nonlocal got
        message = await receive()
        got += len(message["body"])
        await gate.wait()
        while message["more_body"]:
            message = await receive()
            got += len(message["body"])
        await answer(send, b"done", headers=[(b"connection", b"close")])

    async with serving(WireApp(slow=slow), engine) as address, asyncio.timeout(90):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: {total}\r\n\r\n".encode())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for sent in range(0, total, 1 << 20):
            writer.write(bytes(1 << 20))
            if sent == 32 << 20:
                gate.set()
            elif sent < 32 << 20:
                try:
                    async with asyncio.timeout(0.3):
                        await writer.drain()
                    continue
                except TimeoutError:
                    gate.set()
            await writer.drain()
        assert status_of(await reader.read()) == 200
        assert got == total
        writer.close()
        await writer.wait_closed()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_an_engine_that_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gateway.serving.granian_engine", None)
    with pytest.raises(
        ConfigurationError, match=r"^server\.engine: granian is missing, .*pip install 'ai-gateway\[granian\]'$"
    ):
        engines.load_engine("granian")
