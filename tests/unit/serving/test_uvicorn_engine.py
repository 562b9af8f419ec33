"""The uvicorn engine: where it differs from Hypercorn (a line of docs/servers.md each), and what is made in uvicorn's place."""

import asyncio
import contextlib
import gc
import json
import socket

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.serving import run_event_loop
from gateway.serving.uvicorn_connection import Connection
from gateway.serving.uvicorn_exchange import Exchange
from tests.unit.serving.wire_app import REST, WireApp, answer, exchange, seen_of, serving, status_of

UPGRADE = "Connection: Upgrade\r\nUpgrade: "
WEBSOCKET = f"{UPGRADE}websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.fixture
async def address():
    async with serving(WireApp(), "uvicorn") as found:
        yield found


def seen_in(reply):
    return json.loads(reply.partition(b"\r\n\r\n")[2])


async def test_uvicorn_is_the_one_whose_parts_were_read():
    replaced = {name for name, what in vars(Connection).items() if callable(what) and not name.startswith("_")}
    assert replaced <= set(vars(HttpToolsProtocol))
    assert uvicorn.__version__.startswith("0.54."), "read its httptools_impl.py anew beside uvicorn_connection.py"


# differences


@pytest.mark.parametrize(
    "request_head",
    [
        "BREW /a HTTP/1.1\r\n",
        "GET a HTTP/1.1\r\n",
    ],
)
async def test_some_that_hypercorn_leaves_to_the_gateway_are_refused(address, request_head):
    reply = await exchange(address, request_head + REST)
    assert (status_of(reply), reply.partition(b"\r\n\r\n")[2]) == (400, b"")
    assert b"\r\nconnection: close\r\n" in reply


async def test_pipelined_requests_wait_for_the_replies_before_them(address):
    one = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"
    reply = await exchange(address, f"{one}1{one}2GET /b HTTP/1.1\r\n{REST}nonsense\r\n\r\n")
    assert [reply.index(part) for part in (b'"body": "1"', b'"body": "2"', b'"/b"', b"400 Bad")] == sorted(
        reply.index(part) for part in (b'"body": "1"', b'"body": "2"', b'"/b"', b"400 Bad")
    )


async def test_few_pipelined_requests_wait_and_the_others_are_sent_away():
    served = []

    async def counted(receive, send):
        served.append((await receive())["type"])
        assert sum(isinstance(one, Exchange) for one in gc.get_objects()) < 20
        await answer(send, b"")

    gc.collect()  # what other tests left
    async with serving(WireApp(counted=counted), "uvicorn") as address:
        reply = await exchange(address, f"GET /counted HTTP/1.1\r\n{REST}" * 3_000)
    assert reply.count(b"HTTP/1.1 200") == len(served) == 9
    assert (reply.count(b"connection: close"), reply.rindex(b"HTTP/1.1") < reply.index(b"connection: close")) == (1, True)


async def test_who_expects_100_and_is_answered_otherwise_is_told_to_close():
    async def early(receive, send):
        await answer(send, b"no", 401)

    async with serving(WireApp(early=early), "uvicorn") as address:
        request = "POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        reply = await exchange(address, request)
        assert status_of(reply) == 401
        assert b"\r\nconnection: close\r\n" in reply


# as on Hypercorn


@pytest.mark.parametrize(
    ("target", "path", "query"), [("http://other/a?b", "http://other/a", "b"), ("/a#b", "/a#b", ""), ("/a?", "/a", "")]
)
async def test_the_target_is_what_was_on_the_wire(address, target, path, query):
    seen = await seen_of(address, f"GET {target} HTTP/1.1\r\n{REST}")
    assert (seen["raw_path"], seen["query_string"]) == (path, query)


async def test_an_ambiguous_or_unknown_framing_is_refused_and_nothing_after_it_is_served(address):
    for fields, status in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 400),
        ("Content-Length: +5\r\n", 400),
    ]:
        reply = await exchange(address, f"POST /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n{REST}")
        assert status_of(reply) == status
        assert reply.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("head", ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /a HTTP/2.0\r\n" + REST])
async def test_another_version_is_505(address, head):
    assert status_of(await exchange(address, head)) == 505


async def test_the_reply_to_http_1_0_ends_with_the_connection():
    async def endless(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one,", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async with serving(WireApp(endless=endless), "uvicorn") as address:
        head, _, body = (await exchange(address, "GET /endless HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
        assert body == b"one,two"
        assert b"transfer-encoding" not in head


@pytest.mark.parametrize(
    "framing", ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
async def test_an_upgrade_is_ignored_and_its_body_is_read(address, framing):
    reply = await exchange(address, f"POST /a HTTP/1.1\r\nHost: x\r\n{UPGRADE}h2c\r\n{framing}")
    assert seen_in(reply)["body"] == "hello"
    assert b"\r\nconnection: close\r\n" in reply


async def test_an_upgrade_without_a_body_is_ignored_and_the_connection_goes_on(address):
    reply = await exchange(address, f"GET /a HTTP/1.1\r\n{UPGRADE}h2c\r\n{REST}GET /b HTTP/1.1\r\nConnection: close\r\n{REST}")
    assert reply.count(b"HTTP/1.1 200") == 2


async def test_a_refused_websocket_is_closed(address):
    reply = await exchange(address, f"GET /a HTTP/1.1\r\n{WEBSOCKET}{REST}")
    assert status_of(reply) == 501
    assert reply.endswith(b"no websockets\r\n0\r\n\r\n")


async def test_trailers_are_no_header_fields_of_the_request():
    seen = asyncio.get_running_loop().create_future()

    class Late(WireApp):
        async def __call__(self, scope, receive, send):
            if scope["type"] == "http":
                while (await receive()).get("more_body"):
                    pass
                seen.set_result([name for name, _ in scope["headers"]])
                await answer(send, b"")
            else:
                await super().__call__(scope, receive, send)

    async with serving(Late(), "uvicorn") as address:
        request = (
            "POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-User: evil\r\n\r\n"
        )
        await exchange(address, request)
    assert await seen == [b"host", b"connection", b"transfer-encoding"]


@pytest.mark.parametrize(
    "head",
    [
        "GET /a HTTP/1.1\r\nHost: x\r\nx: ",
        "GET /a HTTP/1.1\r\nHost: x\r\n" + 100 * "x: 1\r\n",
        "GET /",
        "GET /first HTTP/1.1\r\nHost: x\r\n\r\nGET /",
        "\r\n",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: ",
        "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
    ],
)
async def test_what_is_neither_a_whole_head_nor_a_body_is_limited(address, head):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(head.encode())
    filler = b"\r\n" * 2048 if head == "\r\n" else b"a" * 4096
    reply = b""
    async with asyncio.timeout(10):
        for _ in range(12):
            await asyncio.sleep(0.01)  # what shares a read with something useful is not counted
            writer.write(filler)
            await writer.drain()
        while chunk := await reader.read(1 << 16):
            reply += chunk
    assert b"HTTP/1.1 431 " in reply
    writer.close()
    await writer.wait_closed()


async def test_the_limit_counts_for_each_request_anew():
    async with serving(WireApp(), "uvicorn", max_header_bytes="2KiB") as address:
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(10):
            writer.write(f"GET /a HTTP/1.1\r\nx: {'a' * 1_000}\r\n{REST}".encode())
            assert status_of(await reader.readuntil(b"\r\n\r\n")) == 200
            await reader.readuntil(b"}")
        writer.close()
        await writer.wait_closed()


async def test_white_space_around_a_value_is_no_part_of_it(address):
    seen = await seen_of(address, f"GET /a HTTP/1.1\r\nx: \t 1 \t\r\n{REST}")
    assert ["x", "1"] in seen["headers"]


async def test_an_answer_outlives_what_its_client_was_still_sending(monkeypatch):
    monkeypatch.setattr("gateway.serving.uvicorn_connection.LINGER_S", 60)

    async def early(receive, send):
        await answer(send, b"no", 413, [(b"connection", b"close")])

    async with serving(WireApp(early=early), "uvicorn") as address, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        await asyncio.sleep(0.05)
        for _ in range(10):
            writer.write(bytes(50_000))
            await writer.drain()
            await asyncio.sleep(0.01)
        assert status_of(await reader.read()) == 413
        writer.close()
        await writer.wait_closed()


async def test_a_broken_body_is_400_before_the_reply_and_cuts_it_after():
    async def begun(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive()).get("more_body"):
            pass

    broken = "HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(WireApp(begun=begun), "uvicorn") as address:
        assert status_of(await exchange(address, f"POST /a {broken}zz\r\n")) == 400
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"POST /begun {broken}".encode())
        head = await reader.readuntil(b"begun\r\n")
        writer.write(b"zz\r\n")
        assert status_of(head) == 200
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_leaves_is_noticed_although_another_request_waits():
    waiting, left, served = asyncio.Event(), asyncio.Event(), []

    async def first(receive, send):
        await receive()
        waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async def second(receive, send):
        served.append(await receive())

    async with serving(WireApp(first=first, second=second), "uvicorn") as address, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(*address)
        writer.write(f"GET /first HTTP/1.1\r\n{REST}POST /second HTTP/1.1\r\nContent-Length: 9\r\n{REST}".encode())
        await waiting.wait()
        writer.transport.abort()
        await left.wait()
    assert served == []


async def test_a_client_that_leaves_after_a_long_body_is_noticed():
    waiting, left = asyncio.Event(), asyncio.Event()

    async def patient(receive, send):
        await asyncio.sleep(0.05)  # until as much has come as is read ahead
        while (await receive())["more_body"]:
            pass
        waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with serving(WireApp(patient=patient), "uvicorn") as address, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /patient HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + bytes(70_000))
        await waiting.wait()
        writer.transport.abort()
        await left.wait()


async def test_a_connection_goes_on_after_a_body_that_nobody_read():
    async def early(receive, send):
        await asyncio.sleep(0.05)
        await answer(send, b"no", 401)

    request = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    async with serving(WireApp(early=early), "uvicorn") as address:
        reply = await exchange(address, request + b"GET /a HTTP/1.1\r\nConnection: close\r\n" + REST.encode())
        assert (status_of(reply), reply.count(b"HTTP/1.1 200")) == (401, 1)


async def test_who_still_waits_when_the_reply_is_complete_is_told_so():
    told = asyncio.get_running_loop().create_future()

    async def watched(receive, send):
        await receive()
        leaving = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await answer(send, b"")
        told.set_result((await leaving)["type"])

    async with serving(WireApp(watched=watched), "uvicorn") as address, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(*address)
        writer.write(f"GET /watched HTTP/1.1\r\n{REST}".encode())
        assert await told == "http.disconnect"
        writer.close()
        await writer.wait_closed()


async def test_an_app_that_gives_up_on_a_broken_body_adds_no_answer_of_its_own():
    async def quitting(receive, send):
        while (await receive()).get("more_body"):
            pass

    async with serving(WireApp(quitting=quitting), "uvicorn") as address:
        reply = await exchange(address, "POST /quitting HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert (status_of(reply), reply.count(b"HTTP/1.1")) == (400, 1)


async def test_the_end_waits_for_an_app_whose_client_has_left():
    began, ended = asyncio.Event(), False

    async def tidy(receive, send):
        nonlocal ended
        began.set()
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await asyncio.sleep(0.1)
        ended = True

    async with serving(WireApp(tidy=tidy), "uvicorn") as address:
        _, writer = await asyncio.open_connection(*address)
        writer.write(f"GET /tidy HTTP/1.1\r\n{REST}".encode())
        await began.wait()
        writer.transport.abort()
        await asyncio.sleep(0.02)
    assert ended


async def test_nothing_goes_on_for_a_slow_reader_after_the_end():
    begun = asyncio.Event()

    async def firehose(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        while True:
            await send({"type": "http.response.body", "body": bytes(8 << 20), "more_body": True})

    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        async with serving(WireApp(firehose=firehose), "uvicorn", drain_timeout="50ms") as address:
            client.connect(address)
            client.sendall(f"GET /firehose HTTP/1.1\r\n{REST}".encode())
            await begun.wait()
        client.setblocking(False)
        last = b""
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                while part := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                    last = part
        assert not last.endswith(b"\r\n")


@pytest.mark.parametrize("headers", [[(b"a\r\nb", b"1")], [(b"a", b"1\r\nb: 2")], [(b"", b"1")], [(b"A", b"1")]])
async def test_a_field_that_would_not_arrive_as_it_is_is_a_bug_of_the_app(headers, caplog):
    async def evil(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async with serving(WireApp(evil=evil), "uvicorn") as address:
        assert status_of(await exchange(address, f"GET /evil HTTP/1.1\r\n{REST}")) == 500


@pytest.mark.parametrize("bodies", [[b"12345"], [b"1"], [b"1", b"23"]])
async def test_a_body_that_differs_from_its_length_is_cut(bodies, caplog):
    async def wrong(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        for number, body in enumerate(bodies, 1):
            await send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})

    async with serving(WireApp(wrong=wrong), "uvicorn") as address:
        reply = await exchange(address, f"GET /wrong HTTP/1.1\r\n{REST}")
        assert len(reply.partition(b"\r\n\r\n")[2]) < 2
    assert "content-length" in caplog.text


async def test_a_304_may_tell_the_length_that_a_200_would_have():
    async def unchanged(receive, send):
        await send({"type": "http.response.start", "status": 304, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b""})

    request = "GET /unchanged HTTP/1.1\r\n"
    async with serving(WireApp(unchanged=unchanged), "uvicorn") as address:
        reply = await exchange(address, request + REST + request + "Connection: close\r\n" + REST)
        assert reply.count(b"HTTP/1.1 304") == 2


async def test_half_a_head_ends_with_keep_alive():
    async with serving(WireApp(), "uvicorn", keep_alive="200ms") as address, asyncio.timeout(5):
        assert await exchange(address, "GET /a HTTP/1.1\r\nhos") == b""


async def test_the_rest_of_a_body_that_nobody_wants_ends_with_keep_alive():
    async def early(receive, send):
        await answer(send, b"no", 401)

    async with serving(WireApp(early=early), "uvicorn", keep_alive="200ms") as address, asyncio.timeout(5):
        reply = await exchange(address, "POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        assert reply.endswith(b"no")


def test_a_reply_is_one_write_on_the_loop_of_production():
    reads = []

    class Client(asyncio.Protocol):
        def __init__(self):
            self.ended = asyncio.get_running_loop().create_future()

        def data_received(self, data):
            reads.append(data)

        def connection_lost(self, exc):
            self.ended.set_result(None)

    async def ask():
        async with serving(WireApp(), "uvicorn") as address:
            for _ in range(20):
                transport, client = await asyncio.get_running_loop().create_connection(Client, *address)
                transport.write(f"GET /a HTTP/1.1\r\nConnection: close\r\n{REST}".encode())
                await client.ended

    run_event_loop(ask())
    assert len(reads) == 20
