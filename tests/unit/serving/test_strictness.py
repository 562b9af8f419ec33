"""What is no request as RFC 9112 has them: refused by each engine with the connection closed, whatever app is behind it.

What an engine takes nevertheless is harmless and has its line in docs/servers.md.
"""

import asyncio
import contextlib
import re

import pytest

from tests.unit.serving.wire_app import REST, WireApp, answer, exchange, serving

GET = "GET /a HTTP/1.1\r\n"
POST = "POST /a HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + "Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = "GET /smuggled HTTP/1.1\r\n" + REST

MALFORMED = {
    "a length besides chunks": POST + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks besides a length": POST + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "one length twice": POST + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "one length twice in a field": POST + "Content-Length: 5, 5\r\n\r\nhello",
    "two lengths": POST + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a length with a sign": POST + "Content-Length: +5\r\n\r\nhello",
    "a negative length": POST + "Content-Length: -5\r\n\r\nhello",
    "a length in hexadecimal": POST + "Content-Length: 0x5\r\n\r\nhello",
    "a length with a space inside": POST + "Content-Length: 5 5\r\n\r\nhello",
    "a length without digits": POST + "Content-Length:\r\n\r\nhello",
    "a length of 30 digits": POST + f"Content-Length: {'9' * 30}\r\n\r\nhello",
    "another coding": POST + "Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "another coding before chunks": POST + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks before another coding": POST + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks that are none": POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks behind a vertical tab": POST + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded field": GET + "X-A: 1\r\n 2\r\n" + REST,
    "a field folded with a tab": GET + "X-A: 1\r\n\t2\r\n" + REST,
    "a space before the first field": GET + " X-A: 1\r\n" + REST,
    "a field line without a colon": GET + "X-A\r\n" + REST,
    "an empty name": GET + ": 1\r\n" + REST,
    "a name with a space": GET + "X A: 1\r\n" + REST,
    "a name with a bracket": GET + "X(A: 1\r\n" + REST,
    "a name beyond ASCII": GET + "X-\xe4: 1\r\n" + REST,
    "a CR alone in a value": GET + "X-A: 1\r2\r\n" + REST,
    "a CR alone before a field": GET + "X-A: 1\rX-B: 2\r\n" + REST,
    "two CR at the end of a line": GET + "X-A: 1\r\r\n" + REST,
    "an LF alone after the request line": "GET /a HTTP/1.1\n" + REST,
    "an LF alone after a field": GET + "X-A: 1\n" + REST,
    "LF alone everywhere": "GET /a HTTP/1.1\nHost: x\n\n",
    "an LF alone as the last line": GET + "Host: x\r\n\n",
    "NUL in a value": GET + "X-A: 1\x002\r\n" + REST,
    "a control character in a value": GET + "X-A: 1\x012\r\n" + REST,
    "DEL in a value": GET + "X-A: 1\x7f2\r\n" + REST,
    "NUL in a name": GET + "X\x00A: 1\r\n" + REST,
    "NUL in the target": "GET /a\x00b HTTP/1.1\r\n" + REST,
    "a tab in the target": "GET /a\tb HTTP/1.1\r\n" + REST,
    "a space in the target": "GET /a b HTTP/1.1\r\n" + REST,
    "two spaces before the target": "GET  /a HTTP/1.1\r\n" + REST,
    "a tab before the target": "GET\t/a HTTP/1.1\r\n" + REST,
    "two spaces before the version": "GET /a  HTTP/1.1\r\n" + REST,
    "a space after the version": "GET /a HTTP/1.1 \r\n" + REST,
    "a space before the method": " GET /a HTTP/1.1\r\n" + REST,
    "a method with a bracket": "GE(T /a HTTP/1.1\r\n" + REST,
    "no target": "GET HTTP/1.1\r\n" + REST,
    "no version": "GET /a\r\n" + REST,
    "a version in lower case": "GET /a http/1.1\r\n" + REST,
    "HTTP/0.9": "GET /a HTTP/0.9\r\n" + REST,
    "HTTP/1.2": "GET /a HTTP/1.2\r\n" + REST,
    "HTTP/2.0": "GET /a HTTP/2.0\r\n" + REST,
    "HTTP/11": "GET /a HTTP/11\r\n" + REST,
    "HTTP/1.10": "GET /a HTTP/1.10\r\n" + REST,
    "HTTP/1,1": "GET /a HTTP/1,1\r\n" + REST,
    "another protocol": "GET /a ICAP/1.1\r\n" + REST,
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x00" * 50 + "\r\n\r\n",
}
"""Heads that are no heads."""

BROKEN_BODIES = {
    "a chunk's size with a sign": CHUNKED + "+5\r\nhello\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + "-5\r\nhello\r\n0\r\n\r\n",
    "a chunk's size with 0x": CHUNKED + "0x5\r\nhello\r\n0\r\n\r\n",
    "a space before a chunk's size": CHUNKED + " 5\r\nhello\r\n0\r\n\r\n",
    "a space after a chunk's size": CHUNKED + "5 \r\nhello\r\n0\r\n\r\n",
    "an underscore in a chunk's size": CHUNKED + "0_5\r\nhello\r\n0\r\n\r\n",
    "a chunk without a size": CHUNKED + "\r\nhello\r\n0\r\n\r\n",
    "an extension without a size": CHUNKED + ";a\r\nhello\r\n0\r\n\r\n",
    "a chunk larger than 64 bits": CHUNKED + "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer": CHUNKED + "4\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends with LF": CHUNKED + "5\r\nhello\n0\r\n\r\n",
    "a chunk's size that ends with LF": CHUNKED + "5\nhello\r\n0\r\n\r\n",
    "an extension with LF": CHUNKED + "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "an extension with CR": CHUNKED + "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "an extension with NUL": CHUNKED + "5;a=\x00\r\nhello\r\n0\r\n\r\n",
    "a trailer with LF": CHUNKED + "5\r\nhello\r\n0\r\nX-A: 1\n\r\n",
    "a trailer without a colon": CHUNKED + "5\r\nhello\r\n0\r\nX-A\r\n\r\n",
    "a folded trailer": CHUNKED + "5\r\nhello\r\n0\r\nX-A: 1\r\n 2\r\n\r\n",
}
"""Bodies that break off; the head was good, so the app knows of the request, but never of its end."""

TAKEN = {
    "granian": {
        "a length besides chunks",  # the chunks count, and the connection closes
        "chunks besides a length",
        "one length twice",  # counts once
        "an LF alone after the request line",  # ends the line
        "an LF alone after a field",
        "LF alone everywhere",
        "an LF alone as the last line",
        "a space after a chunk's size",  # dropped, as extensions and trailers are
        "an extension with NUL",
        "a trailer with LF",
    },
    "uvicorn": {"two spaces before the target", "two spaces before the version"},  # count as one
}


@pytest.fixture(params=["hypercorn", "granian", "uvicorn"])
def engine(request):
    return request.param


class Noting(WireApp):
    """What the app was called with, and the bodies that came to their end."""

    def __init__(self):
        super().__init__()
        self.called, self.whole = [], []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            self.called.append(scope["path"])
            whole = receive

            async def receive():
                message = await whole()
                if message["type"] == "http.request" and not message.get("more_body"):
                    self.whole.append(scope["path"])
                return message

        await super().__call__(scope, receive, send)


async def replies_to(address, request):
    """The statuses of what comes back until the server closes; None if it does not."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request.encode("latin-1"))
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", await reader.read())]
        return []
    except TimeoutError:
        return None
    finally:
        writer.transport.abort()


async def test_what_is_no_request_is_refused_and_nothing_after_it_is_one(engine):
    names = [name for name in MALFORMED if name not in TAKEN.get(engine, ())]
    app = Noting()
    async with serving(app, engine) as address:
        replies = await asyncio.gather(*(replies_to(address, MALFORMED[name] + SMUGGLED) for name in names))
    allowed = [[400], [505]] if engine != "granian" else [[400], []]
    assert {name: reply for name, reply in zip(names, replies, strict=True) if reply not in allowed} == {}
    assert app.called == []


@pytest.mark.parametrize("request_head", ["GET /a HTTP/1.1\nHost: x\n\n", "GET /a HTTP/1.1\rHost: x\r\r"])
async def test_whoever_ends_lines_otherwise_is_told_so_without_sending_more(request_head):
    for engine in ("hypercorn", "uvicorn"):  # granian takes the first, and gives the second the time of a head
        async with serving(WireApp(), engine, first_header_timeout="60s") as address:
            assert await replies_to(address, request_head) == [400], engine


async def test_a_broken_body_never_ends_and_nothing_after_it_is_a_request(engine):
    names = [name for name in BROKEN_BODIES if name not in TAKEN.get(engine, ())]
    app = Noting()
    async with serving(app, engine) as address:
        replies = await asyncio.gather(*(replies_to(address, BROKEN_BODIES[name] + SMUGGLED) for name in names))
    assert {name: reply for name, reply in zip(names, replies, strict=True) if reply is None or len(reply) > 1} == {}
    assert app.whole == []
    assert "/smuggled" not in app.called


@pytest.mark.parametrize("request_head", [GET, "POST /a HTTP/1.1\r\nContent-Length: 5\r\n", GET + "X: y\r\n", ""])
async def test_a_head_that_comes_slowly_has_the_time_of_a_first_head(request_head):
    for engine in ("hypercorn", "granian", "uvicorn"):
        async with serving(WireApp(), engine, first_header_timeout="300ms") as address, asyncio.timeout(20):
            assert await exchange(address, request_head) == b""


async def test_a_connection_that_has_had_a_request_may_be_idle_for_longer():
    async with serving(WireApp(), "granian", first_header_timeout="300ms", keep_alive="30s") as address, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(2):  # the first time before anybody has looked which connections there are
            writer.write(("POST /a HTTP/1.1\r\nContent-Length: 0\r\n" + REST).encode())
            assert b"200" in await reader.readuntil(b'"ended_by": "http.request"}')
            await asyncio.sleep(1.3)
        assert not reader.at_eof()
        writer.close()
        await writer.wait_closed()


async def test_a_later_head_has_it_from_its_first_byte_and_may_begin_late():
    for engine in ("hypercorn", "uvicorn"):
        async with serving(WireApp(), engine, first_header_timeout="300ms", keep_alive="30s") as address, asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(2):
                writer.write(("POST /a HTTP/1.1\r\nContent-Length: 0\r\n" + REST).encode())
                assert b"200" in await reader.readuntil(b'"ended_by": "http.request"}')
                await asyncio.sleep(0.6)
            assert not reader.at_eof()
            writer.write((GET + "Host").encode())
            with contextlib.suppress(ConnectionError):
                while not (reader.at_eof() or reader.exception()):  # dribbling gains nothing
                    await asyncio.sleep(0.05)
                    writer.write(b"x")
                assert await reader.read() == b""
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_a_pipelined_head_that_stays_half_is_not_waited_for():
    for engine in ("hypercorn", "uvicorn"):
        async with serving(WireApp(), engine, first_header_timeout="300ms", keep_alive="30s") as address, asyncio.timeout(20):
            assert (await exchange(address, GET + REST + GET)).count(b"HTTP/1.1 200") == 1


async def test_heads_byte_by_byte_and_fields_of_every_allowed_kind_are_taken(engine):
    request = (
        "POST /a%20b;c=1?d=e HTTP/1.1\r\nhOsT:x\r\nX-Empty:\r\nX-Tab:\ta\tb \t\r\nX-Wide: \xe4\xff\r\n!#$%&'*+-.^_`|~: 1\r\n"
        'transfer-encoding: CHUNKED\r\nConnection: close\r\n\r\n5;a="b";c\r\nhello\r\n000\r\nX-Trailer: 1\r\n\r\n'
    ).encode("latin-1")
    async with serving(WireApp(), engine) as address:
        reader, writer = await asyncio.open_connection(*address)
        for place in range(len(request)):
            writer.write(request[place : place + 1])
            await asyncio.sleep(0)
        reply = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert b'"body": "hello"' in reply
    assert b"trailer" not in reply


async def test_what_follows_the_last_request_is_dropped_and_its_answer_is_not_lost(engine):
    app = Noting()
    async with serving(app, engine) as address:
        for last in ("GET /a HTTP/1.1\r\nConnection: close\r\n", "GET /a HTTP/1.0\r\n"):
            for rest in ("\r\n", SMUGGLED, "nonsense\r\n\r\n"):
                reply = await replies_to(address, last + REST + rest)
                assert reply == [200] or (engine == "granian" and reply == [])  # whose reset may overtake it
    assert set(app.called) == {"/a"}


async def test_the_answer_before_a_refusal_is_not_lost_to_what_is_still_being_sent(engine):
    async with serving(WireApp(), engine) as address:
        assert (await replies_to(address, GET + REST + GET + f"X: {'y' * 2_000_000}"))[:1] == [200]


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_trailer_that_says_close_leaves_nobody_waiting(engine, is_late):
    head = "POST /early HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + REST
    body = "2\r\nab\r\n0\r\nConnection: close\r\n\r\n" + GET + REST

    async def early(receive, send):
        while not is_late and (await receive())["more_body"]:
            pass
        await answer(send, b"early")

    async with serving(WireApp(early=early), engine) as address, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*address)
        writer.write((head if is_late else head + body).encode())
        assert b"200" in await reader.readuntil(b"early")
        if is_late:
            writer.write(body.encode())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # closed, or
            assert b"200" in await reader.readuntil(b"http.request")
        writer.close()


async def test_nobody_is_asked_for_a_body_after_the_answer(engine, caplog):
    later: list[str] = []

    async def answers_first(receive, send):
        await answer(send, b"no")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                later.append((await receive())["type"])

    async with serving(WireApp(first=answers_first), engine) as address, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(("POST /first HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n" + REST).encode())
        await asyncio.sleep(0.6)
        writer.write_eof()
        said = await reader.read()
        writer.close()
    assert b" 100 " not in said.partition(b" 200 ")[2]
    assert said.endswith(b"no") or engine == "granian"  # which ends with a chunk
    assert set(later) <= {"http.disconnect"}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_nobody_is_asked_for_a_body_that_was_refused(engine, caplog):
    async def reads_late(receive, send):
        await asyncio.sleep(0.1)
        assert (await receive())["type"] == "http.disconnect"

    request = "POST /late HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n" + REST + "zz\r\n"
    async with serving(WireApp(late=reads_late), engine) as address, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request.encode())
        reply = await reader.read()
        await asyncio.sleep(0.2)  # the client stays longer than it must
        writer.close()
    assert b" 100 " not in reply.partition(b" 400 ")[2]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("trailers", ["", "X-T: 1\r\n", "X-T:\n\r\n", "X-T: 1\r\n\n"])
async def test_nothing_is_taken_for_a_request_or_a_trailer_behind_chunks_on_granian(trailers):
    app = Noting()
    async with serving(app, "granian") as address:
        assert await replies_to(address, CHUNKED + "2\r\nab\r\n0\r\n" + trailers + "\r\n" + SMUGGLED + SMUGGLED) in ([200], [])
        reply = await exchange(address, CHUNKED + "2\r\nab\r\n0\r\n" + trailers + "\r\n" + SMUGGLED)
        assert b"connection: close" in reply
    assert set(app.called) == {"/a"}


async def test_methods_are_case_sensitive():
    for engine in ("hypercorn", "granian"):
        async with serving(WireApp(), engine) as address:
            reply = await exchange(address, "get /a HTTP/1.1\r\nConnection: close\r\n" + REST)
            assert b'"method": "get"' in reply


async def test_an_empty_host_before_another_is_a_second_host():
    async with serving(WireApp(), "granian") as address:
        reply = await exchange(address, "GET /a HTTP/1.1\r\nHost:\r\nConnection: close\r\n" + REST)
        assert b'["host", ""]' in reply
        assert b'["host", "x"]' in reply


async def test_a_broken_body_that_nobody_answered_is_the_client_s_mistake(engine):
    async def gives_up(receive, send):
        while (await receive())["type"] != "http.disconnect":
            continue

    async with serving(WireApp(a=gives_up), engine) as address:
        assert await replies_to(address, CHUNKED + "zz\r\nhello\r\n") == [400]


async def test_a_broken_body_behind_other_requests_is_not_waited_for(engine):
    async with serving(WireApp(), engine) as address:
        replies = await replies_to(address, GET + REST + CHUNKED + "zz\r\n")
    assert replies[:1] == [200]
    assert all(status == 400 for status in replies[1:]) or engine == "granian"
