"""One reply at ASGI level."""

import asyncio
from typing import Any

import pytest

from gateway.errors import InvalidApiKey, PluginFailedOnReply, UpstreamUnreachable
from gateway.proxy.reply_writer import ReplyWriter
from gateway.proxy.request_body import ClientLeft, Incoming
from gateway.telemetry import Visit


async def never():
    return await asyncio.Event().wait()


class Sent(list[Any]):
    async def __call__(self, message):
        self.append(message)

    @property
    def body(self):
        return b"".join(message["body"] for message in self[1:])

    @property
    def fields(self):
        return dict(self[0]["headers"])

    @property
    def is_ended(self):
        return not self[-1].get("more_body", True)


def a_writer(method="GET", *, ended=True):
    sent, incoming = Sent(), Incoming(never)
    incoming.ended = ended
    visit = Visit("req_1", method)
    return ReplyWriter(sent, incoming, visit), sent, visit


async def test_a_reply_is_head_body_and_end():
    writer, sent, visit = a_writer()
    await writer.whole(201, [(b"x", b"1"), (b"content-length", b"999")], b"hello")
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (sent[0]["status"], sent.body, sent.is_ended) == (201, b"hello", True)
    assert sent.fields == {b"x": b"1", b"content-length": b"5", b"x-request-id": b"req_1"}
    assert (visit.status, visit.bytes_out) == (201, 5)


async def test_the_end_waits_for_the_rest_of_the_request():
    writer, sent, _ = a_writer(ended=False)
    left = [
        {"type": "http.request", "body": b"x", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": False},
    ]

    async def receive():
        return left.pop(0)

    writer._incoming._receive = receive
    await writer.error(InvalidApiKey())
    assert sent.body
    assert not sent.is_ended
    await writer.finish()
    assert sent.is_ended
    assert left == []
    count = len(sent)
    await writer.finish()
    assert len(sent) == count


async def test_a_reply_that_was_not_ended_is_not_finished():
    writer, sent, _ = a_writer()
    await writer.start(200, [])
    await writer.write(b"half")
    await writer.finish()
    assert not sent.is_ended


@pytest.mark.parametrize(
    ("status", "fields"), [(99, []), (600, []), (200, [(b"x", b"a\r\nb: c")]), (200, [(b"X", b"1")]), (200, [(b"x y", b"1")])]
)
async def test_what_cannot_be_sent_is_refused_before_anything_is(status, fields):
    writer, sent, _ = a_writer()
    with pytest.raises(PluginFailedOnReply):
        await writer.start(status, fields)
    assert (sent, writer.started) == ([], False)


@pytest.mark.parametrize(("method", "status", "length"), [("HEAD", 200, b"5"), ("GET", 204, None), ("GET", 304, None)])
async def test_a_reply_without_a_body_sends_none(method, status, length):
    writer, sent, visit = a_writer(method)
    await writer.whole(status, [], b"hello")
    assert (sent.body, sent.is_ended, visit.bytes_out) == (b"", True, 0)
    assert sent.fields.get(b"content-length") == length


async def test_limit_headers_are_on_every_answer_but_do_not_stand_twice():
    writer, sent, _ = a_writer()
    writer.extra = [(b"ratelimit", b"1"), (b"x-request-id", b"no")]
    await writer.error(InvalidApiKey())
    assert sent.fields[b"ratelimit"] == b"1"
    assert [value for name, value in sent[0]["headers"] if name == b"x-request-id"] == [b"req_1"]


@pytest.mark.parametrize(
    ("before", "begin"),
    [
        ([], b""),
        ([b"data: 1\n\n"], b""),
        ([b"data: 1\r\n\r", b"\n"], b""),
        ([b"data: 1\r\r"], b""),
        ([b"data: 1\n"], b"\n\n"),
        ([b"da"], b"\n\n"),
    ],
)
async def test_an_error_event_stands_by_itself(before, begin):
    writer, sent, _ = a_writer()
    await writer.start(200, [])
    for part in before:
        await writer.write(part)
    await writer.broken_event(UpstreamUnreachable())
    assert sent.body.startswith(b"".join(before) + begin + b'event: error\ndata: {"error":{')
    assert sent.body.endswith(b"}}\n\n")
    assert not sent.is_ended


async def test_a_client_that_vanished_is_one_that_left():
    async def broken(message):
        raise ConnectionResetError

    writer = ReplyWriter(broken, Incoming(never), Visit("req_1", "GET"))
    with pytest.raises(ClientLeft):
        await writer.start(200, [])
