"""Where Granian differs from Hypercorn and stays so: each test is a line of the table in docs/servers.md."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.unit.serving.wire_app import REST, WireApp, exchange, seen_of, serving, status_of


@pytest.fixture
async def address():
    async with serving(WireApp(), "granian") as found:
        yield found


async def test_every_reply_has_a_server_field_without_a_value(address):
    assert b"\r\nserver: \r\n" in await exchange(address, "GET /a HTTP/1.1\r\nConnection: close\r\n" + REST)


async def test_a_server_field_of_the_app_s_own_stays():
    async def named(receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": [(b"server", b"nginx")]})
        await send({"type": "http.response.body"})

    async with serving(WireApp(named=named), "granian") as address:
        reply = await exchange(address, "GET /named HTTP/1.1\r\nConnection: close\r\n" + REST)
        assert reply.count(b"server:") == 1
        assert b"\r\nserver: nginx\r\n" in reply


@pytest.mark.parametrize("order", [1, -1])
async def test_a_length_beside_chunks_is_dropped_and_the_connection_closed(address, order):
    fields = ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"][::order]
    reply = await exchange(
        address, f"POST /a HTTP/1.1\r\nHost: x\r\n{''.join(fields)}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n" + REST
    )
    assert status_of(reply) == 200
    assert b"smuggled" not in reply
    assert b"content-length" not in reply.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(("target", "path"), [("http://other/a", "/a"), ("/a#b", "/a"), ("/a?", "/a")])
async def test_the_authority_of_the_request_line_and_fragments_are_dropped(address, target, path):
    seen = await seen_of(address, f"GET {target} HTTP/1.1\r\n{REST}")
    assert (seen["raw_path"], seen["query_string"], ["host", "x"] in seen["headers"]) == (path, "", True)


@pytest.mark.parametrize(
    "request_head",
    [
        "GET /a<b HTTP/1.1\r\n",
        "GET /a>b HTTP/1.1\r\n",
    ],
)
async def test_some_paths_that_hypercorn_leaves_to_the_gateway_are_refused(address, request_head):
    assert status_of(await exchange(address, request_head + REST)) == 400


async def test_more_than_100_fields_are_refused(address):
    fields = "".join(f"x-{number}: 1\r\n" for number in range(100))
    assert status_of(await exchange(address, f"GET /a HTTP/1.1\r\n{fields}{REST}")) == 431


async def test_a_broken_chunk_is_a_client_that_left(address):
    request = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"
    assert b'"ended_by": "http.disconnect"' in await exchange(address, request)


@pytest.mark.parametrize("request_head", ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT x:80 HTTP/1.1\r\n" + REST])
async def test_http_2_without_tls_and_connect_are_closed_without_an_answer(address, request_head):
    assert await exchange(address, request_head) == b""


async def test_a_refused_websocket_has_the_fields_of_a_handshake(address):
    handshake = (
        "GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    reply = await exchange(address, handshake + REST, until=b"no websockets")
    assert status_of(reply) == 501
    assert b"\r\nsec-websocket-accept:" in reply


async def test_an_answer_before_the_body_has_come_is_in_chunks():
    async def early(receive, send):
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no", "more_body": True})
        assert (await receive())["body"] == b"hello"
        await send({"type": "http.response.body"})

    async with serving(WireApp(early=early), "granian") as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length" not in head
        assert await reader.readuntil(b"no\r\n") == b"2\r\nno\r\n"
        writer.write(b"hello")
        assert await reader.readuntil(b"\r\n\r\n") == b"0\r\n\r\n"
        writer.close()
        await writer.wait_closed()


async def test_a_header_block_of_8_kib_is_taken_whatever_the_limit():
    async with serving(WireApp(), "granian", max_header_bytes="2KiB") as address:
        assert (await seen_of(address, f"GET /a HTTP/1.1\r\nx: {'a' * 4_000}\r\n{REST}"))["raw_path"] == "/a"
        assert status_of(await exchange(address, f"GET /a HTTP/1.1\r\nx: {'a' * 20_000}")) == 431


async def test_half_a_head_ends_with_keep_alive():
    async with serving(WireApp(), "granian", keep_alive="200ms") as address, asyncio.timeout(5):
        assert await exchange(address, "GET /a HTTP/1.1\r\nhos") == b""


def own_threads():
    return {task.name for task in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="scheduling policies of threads")
async def test_its_threads_do_not_interrupt_the_event_loop_which_keeps_its_policy():
    before = own_threads()
    async with serving(WireApp(), "granian") as address:
        await exchange(address, "GET /a HTTP/1.1\r\nConnection: close\r\n" + REST)
        new = own_threads() - before
        policies = {os.sched_getscheduler(int(task)) for task in new}
        assert os.SCHED_BATCH in policies
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
