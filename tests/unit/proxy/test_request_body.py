"""The request body at ASGI level."""

import asyncio

import pytest

from gateway.errors import BodyTooLarge, RequestTimeout
from gateway.proxy.request_body import ClientLeft, Incoming, RequestBody

LEFT = {"type": "http.disconnect"}


def part(data, more=True):
    return {"type": "http.request", "body": data, "more_body": more}


def receiving(*messages):
    """ASGI's receive; after the messages it waits."""
    left = list(messages)

    async def receive():
        if left:
            return left.pop(0)
        return await asyncio.Event().wait()

    return receive


def a_body(*messages, length=None, max_bytes=100, idle_ms=50):
    return RequestBody(receiving(*messages), present=True, length=length, max_bytes=max_bytes, idle_ms=idle_ms)


async def streamed(body):
    return [chunk async for chunk in body.chunks()]


async def test_a_body_is_read_whole_or_streamed():
    assert await a_body(part(b"a"), part(b""), part(b"b"), part(b"", more=False)).read(100) == b"ab"
    body = a_body(part(b"a"), part(b""), part(b"b"), part(b"", more=False))
    assert await streamed(body) == [b"a", b"b"]
    assert (body.complete, body.received_bytes) == (True, 2)


async def test_a_body_that_is_absent_asks_nobody():
    body = RequestBody(receiving(), present=False, length=0, max_bytes=1, idle_ms=50)
    assert body.complete
    assert await body.read(1) == b""


async def test_nothing_is_received_before_it_is_asked_for():
    taken = []

    async def receive():
        taken.append(1)
        return part(b"x")

    chunks = RequestBody(receive, present=True, length=None, max_bytes=100, idle_ms=50).chunks()
    for count in (1, 2, 3):
        await anext(chunks)
        assert len(taken) == count
    await chunks.aclose()


async def test_an_announced_length_is_refused_at_once():
    with pytest.raises(BodyTooLarge):
        a_body(length=101)
    with pytest.raises(BodyTooLarge):
        await a_body(length=100).read(99)


async def test_bounds_are_exact_for_a_length_that_nobody_announced():
    assert len(await a_body(part(b"x" * 100, more=False)).read(100)) == 100
    with pytest.raises(BodyTooLarge):
        await a_body(part(b"x" * 101, more=False)).read(200)
    with pytest.raises(BodyTooLarge):
        await a_body(part(b"x" * 50), part(b"x", more=False)).read(50)


async def test_what_goes_wrong_while_streaming_is_kept():
    for messages, error in (
        ([part(b"a"), LEFT], ClientLeft),
        ([part(b"a")], RequestTimeout),
        ([part(b"x" * 101)], BodyTooLarge),
    ):
        body = a_body(*messages)
        with pytest.raises(error):
            await streamed(body)
        assert type(body.error) is error
        assert not body.complete


async def test_completion_is_told_once_the_last_part_was_taken():
    told = []
    body = a_body(part(b"a"), part(b"b", more=False))
    body.on_complete = lambda: told.append(1)
    chunks = body.chunks()
    await anext(chunks)
    assert told == []
    assert [chunk async for chunk in chunks] == [b"b"]
    assert told == [1]


async def test_incoming_knows_the_end_and_discards_up_to_it():
    incoming = Incoming(receiving(part(b"a"), part(b"b"), part(b"", more=False), LEFT))
    await incoming()
    assert not incoming.ended
    await incoming.discard(100, 1_000)
    assert incoming.ended
    assert await incoming() == LEFT


async def test_discarding_is_bounded_in_bytes_and_time():
    endless = Incoming(receiving(*[part(b"x" * 10)] * 100))
    await endless.discard(35, 1_000)
    assert not endless.ended
    silent = Incoming(receiving())
    await asyncio.wait_for(silent.discard(100, 20), 2)
    assert not silent.ended
