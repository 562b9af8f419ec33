"""Heads as bytes: exactly what was meant, read back by another parser, whatever a client or a plugin put into them."""

import socket
import struct

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.forwarder.request_head import RequestHeads, UnsendableRequest
from tests.forwarders import a_forwarder, a_recorder, fetch, target_at

HOST = b"host: target.example"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def write(method="POST", path="/v1/x?a=1", fields=(), length=None, streamed=False, heads=None):
    return (heads or RequestHeads()).write(method, path, HOST, list(fields), length=length, streamed=streamed)


def test_a_head_is_what_it_says_and_nothing_else():
    assert write(fields=[(b"x-a", b"1"), (b"X-B", b"\xe9 2")], length=7) == (
        b"POST /v1/x?a=1 HTTP/1.1\r\nhost: target.example\r\nx-a: 1\r\nX-B: \xe9 2\r\ncontent-length: 7\r\n\r\n",
        7,
    )


@pytest.mark.parametrize(
    ("method", "given", "line", "length"),
    [
        ("POST", {}, b"content-length: 0", None),
        ("DELETE", {}, b"content-length: 0", None),
        ("GET", {}, None, None),
        ("HEAD", {}, None, None),
        ("GET", {"length": 0}, b"content-length: 0", 0),
        ("POST", {"length": 5, "fields": [(b"content-length", b"9")]}, b"content-length: 5", 5),
        ("POST", {"streamed": True}, b"transfer-encoding: chunked", None),
        ("POST", {"streamed": True, "fields": [(b"content-length", b"9")]}, b"content-length: 9", 9),
        ("POST", {"streamed": True, "fields": [(b"Content-Length", b"9"), (b"content-length", b"9")]}, b"content-length: 9", 9),
    ],
)
def test_a_body_is_framed_once(method, given, line, length):
    head, announced = write(method, **given)
    framing = [each for each in head.lower().split(b"\r\n") if each.startswith((b"content-length", b"transfer-encoding"))]
    assert framing == ([] if line is None else [line])
    assert announced == length


def test_what_belongs_to_the_connection_is_left_out_and_a_host_replaces_the_target_s():
    names = [b"connection", b"Transfer-Encoding", b"TE", b"upgrade", b"expect", b"trailer", b"keep-alive", b"proxy-connection"]
    heads = RequestHeads()
    for _ in range(2):
        head, _ = write(
            "GET", fields=[*((name, b"x") for name in names), (b"Host", b"other.example"), (b"x-a", b"1")], heads=heads
        )
        assert head == b"GET /v1/x?a=1 HTTP/1.1\r\nhost: other.example\r\nx-a: 1\r\n\r\n"


@pytest.mark.parametrize(
    "given",
    [
        {"method": "CONNECT"},
        {"method": "GET /evil HTTP/1.1\r\nx:"},
        {"method": ""},
        {"path": "*"},
        {"path": "http://evil.example/"},
        {"path": "/a b"},
        {"path": "/a\r\nx: y"},
        {"path": "/é"},
        {"path": "/a#b"},
        {"fields": [(b"x-a", b"1\r\nhost: evil.example")]},
        {"fields": [(b"x-a", b"1\n")]},
        {"fields": [(b"x-a", b"\x00")]},
        {"fields": [(b"x-a", b"\x7f")]},
        {"fields": [(b"", b"x")]},
        {"fields": [(b"x-a: 1\r\ny", b"x")]},
        {"fields": [(b"content-length ", b"5")]},
        {"fields": [(b"transfer-encoding:", b"chunked")]},
        {"fields": [(b"x-\xe9", b"1")]},
        {"fields": [(b"host", b"a\r\nx: y")]},
        {"fields": [(b"content-length", b"1, 1")], "streamed": True},
        {"fields": [(b"content-length", b"+1")], "streamed": True},
        {"fields": [(b"content-length", b"1"), (b"content-length", b"2")], "streamed": True},
    ],
    ids=repr,
)
def test_a_request_that_would_be_read_as_another_is_not_written(given):
    heads = RequestHeads()
    for _ in range(2):
        with pytest.raises(UnsendableRequest):
            write(**given, heads=heads)


names = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"host", b"Host", b"content-length", b"transfer-encoding", b"connection", b"x-a", b"te", b"expect"]),
)
values = st.one_of(st.binary(max_size=12), st.sampled_from([b"chunked", b"5", b"close", b"100-continue", b"a\r\nb: c"]))


@given(st.lists(st.tuples(names, values), max_size=6), st.text(max_size=8), st.sampled_from([None, 0, 5]), st.booleans())
@example([(b"x-a", b"1"), (b"x-a", b"2")], "v1", 5, False)
def test_another_parser_reads_one_request_with_one_host_and_one_length_or_none_was_written(fields, path, length, streamed):
    heads = RequestHeads()
    for _ in range(2):  # the second time with names that are known
        try:
            head, announced = write("POST", f"/{path}", fields, length, streamed, heads)
        except UnsendableRequest:
            continue
        server = h11.Connection(h11.SERVER)
        server.receive_data(head)
        try:
            request = server.next_event()
        except h11.RemoteProtocolError as error:
            # h11 knows fewer hosts than there are, and no length of more than 20 digits
            if "Host" not in str(error) and "Content-Length" not in str(error):
                raise
            continue
        assert isinstance(request, h11.Request)
        assert request.target == f"/{path}".encode()
        found = [name for name, _ in request.headers]
        assert found.count(b"host") == 1
        assert found.count(b"content-length") + found.count(b"transfer-encoding") == 1
        chunked = streamed and announced is None
        assert (b"transfer-encoding", b"chunked") in list(request.headers) if chunked else found.count(b"content-length") == 1
        assert not {b"connection", b"te", b"expect"} & set(found)
        event = server.next_event()
        assert event is h11.NEED_DATA or (announced in (0, None) and isinstance(event, h11.EndOfMessage))


def test_the_names_that_are_remembered_are_bounded():
    heads = RequestHeads()
    for number in range(5_000):
        write(fields=[(b"x-%d" % number, b"1")], heads=heads)
    assert len(heads._plain_names) <= 4_096


def data_segments(connection):
    """How many segments with data have come (``tcpi_data_segs_in`` of linux/tcp.h)."""
    return struct.unpack_from("I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 152)[0]


async def test_head_and_small_body_leave_in_one_piece():
    body = b"y" * 3_000
    async with a_recorder(OK, OK) as (upstream, port), a_forwarder() as forwarder:
        for _ in range(2):
            await fetch(forwarder, target_at(port), "/v1/x", method="POST", headers=[(b"x-a", b"1")], body=body)
        expected = b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nx-a: 1\r\ncontent-length: 3000\r\n\r\n" % port + body
        assert upstream.pieces == [expected] * 2
        # two writes would have been two segments, as nothing waits for more to send
        assert data_segments(upstream.transport.get_extra_info("socket")) == 2
