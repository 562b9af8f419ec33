"""The scripted event streams: what a test says goes out, and what went out is known to the byte."""

import asyncio
import contextlib
import json
import time

import pytest

from tests.sse_events import chat_events, messages_events, texts_in
from tests.sse_upstream import Stream, an_sse_upstream
from tests.wire import Cut, Message, connected_to, head_of

WORDS = [f"word{number} " for number in range(20)]
EVENTS = chat_events(WORDS)
FIELDS = {"host": "x", "content-type": "application/json"}


async def ask(port, body=b"{}"):
    """The reply; raises Cut."""
    async with connected_to(port) as wire:
        return await wire.ask("POST", "/v1/chat/completions", FIELDS | {"content-length": str(len(body))}, body)


async def test_every_chunk_goes_out_and_is_counted():
    async with an_sse_upstream(Stream(EVENTS)) as upstream:
        reply = await ask(upstream.port)
        await upstream.over(1)
    [play] = upstream.plays
    assert (reply.status, reply.get("content-type")) == (200, "text/event-stream; charset=utf-8")
    assert reply.body == play.written == b"".join(EVENTS)
    assert (play.texts, play.outcome) == (WORDS, "clean")


async def test_a_script_answers_each_request_in_its_way_on_one_connection():
    def script(request):
        return Stream([request.body], status=201 if request.body == b"1" else 200, content_type="text/plain")

    async with an_sse_upstream(script) as upstream, connected_to(upstream.port) as wire:
        replies = [await wire.ask("POST", "/", FIELDS | {"content-length": "1"}, body) for body in (b"1", b"2")]
    assert [(reply.status, reply.body) for reply in replies] == [(201, b"1"), (200, b"2")]
    assert upstream.connections == 1


@pytest.mark.parametrize("chunked", [True, False])
async def test_the_request_is_kept_to_the_byte(chunked):
    body = b'{ "model":"m",\n\t"n": 1.0e0, "\\u0061": "\xc3\xa4", "a": 2}  '
    fields = FIELDS | ({"transfer-encoding": "chunked"} if chunked else {"content-length": str(len(body))})
    sent = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n" if chunked else body
    async with an_sse_upstream(Stream([])) as upstream, connected_to(upstream.port) as wire:
        await wire.ask("POST", "/v1/x?y=%41", fields, sent)
    [play] = upstream.plays
    assert play.request.body == body
    assert play.request.raw_head == head_of("POST", "/v1/x?y=%41", fields)


async def test_pauses_are_kept():
    async with an_sse_upstream(Stream([b"a", 0.15, b"b"])) as upstream:
        started = time.monotonic()
        await ask(upstream.port)
        assert time.monotonic() - started >= 0.15


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("at", [0, 1, 500, len(b"".join(EVENTS)) - 1])
async def test_a_cut_stream_ends_in_the_middle_and_what_arrived_is_part_of_what_was_written(end, at):
    stream = Stream(EVENTS).cut(at, end)
    async with an_sse_upstream(stream) as upstream:
        with pytest.raises((Cut, ConnectionError, asyncio.IncompleteReadError)) as cut:
            await ask(upstream.port)
        await upstream.over(1)
    [play] = upstream.plays
    received = cut.value.message.body if isinstance(cut.value, Cut) else b""
    assert play.written == b"".join(EVENTS)[:at]
    assert play.outcome == end
    if end == "close":
        assert received == play.written
    assert play.written.startswith(received)
    assert len(play.texts) == len(texts_in(b"".join(EVENTS)[:at]))


async def test_a_reset_is_an_error_and_no_end():
    async with an_sse_upstream(Stream([b"a", 0.05], "reset")) as upstream, connected_to(upstream.port) as wire:
        await wire.send(head_of("GET", "/", {"host": "x"}))
        await wire.head()
        with pytest.raises(ConnectionResetError):
            await wire.reader.read()


async def test_a_hanging_stream_waits_until_the_client_leaves():
    async with an_sse_upstream(Stream([b"a"], "hang")) as upstream:
        async with connected_to(upstream.port) as wire:
            await wire.send(head_of("GET", "/", {"host": "x"}))
            assert await anext(wire.parts(await wire.head())) == b"a"
            assert not await wire.is_closed(0.1)
            assert [play.outcome for play in upstream.plays] == ["playing"]
        await upstream.over(1)
    assert [play.outcome for play in upstream.plays] == ["left"]


async def test_a_hanging_stream_does_not_outlive_the_upstream():
    async with contextlib.AsyncExitStack() as stack:
        async with an_sse_upstream(Stream([b"a"], "hang")) as upstream:
            wire = await stack.enter_async_context(connected_to(upstream.port))
            await wire.send(head_of("GET", "/", {"host": "x"}))
            assert await anext(wire.parts(await wire.head())) == b"a"
        assert await wire.is_closed()


@pytest.mark.parametrize("way", ["close", "abort"])
async def test_a_client_that_leaves_ends_the_stream_at_once(way):
    endless = Stream([step for event in EVENTS for step in (event, 0.02)] * 50)
    async with an_sse_upstream(endless) as upstream:
        async with connected_to(upstream.port) as wire:
            await wire.send(head_of("GET", "/", {"host": "x"}))
            parts = wire.parts(await wire.head())
            received = b"".join([await anext(parts) for _ in range(4)])
            if way == "abort":
                wire.abort()
        await upstream.over(1, seconds=1)
    [play] = upstream.plays
    assert play.outcome == "left"
    assert play.written.startswith(received)
    assert 3 <= len(play.texts) < 10


async def test_what_a_slow_client_holds_up_is_not_counted_as_written():
    big = [b"data: " + b"x" * 65_536 + b"\n\n"] * 500
    async with an_sse_upstream(Stream(big)) as upstream:
        async with connected_to(upstream.port) as wire:
            await wire.send(head_of("GET", "/", {"host": "x"}))
            await wire.head()
            await asyncio.sleep(0.2)
            held_up = len(upstream.plays[0].written)
            await asyncio.sleep(0.1)
            assert len(upstream.plays[0].written) == held_up < len(b"".join(big))
        await upstream.over(1)
    assert upstream.plays[0].outcome == "left"


async def test_many_streams_at_once_are_told_apart():
    def script(request: Message) -> Stream:
        number = json.loads(request.body)["number"]
        return Stream(EVENTS).cut(number * 7, "close" if number % 2 else "reset")

    async def one(port: int, number: int) -> None:
        with pytest.raises((Cut, ConnectionError, asyncio.IncompleteReadError)):
            await ask(port, json.dumps({"number": number}).encode())

    async with an_sse_upstream(script) as upstream:
        await asyncio.gather(*(one(upstream.port, number) for number in range(200)))
        await upstream.over(200)
    assert {json.loads(play.request.body)["number"]: len(play.written) for play in upstream.plays} == {
        number: number * 7 for number in range(200)
    }


def test_cutting_keeps_pauses_before_the_cut():
    stream = Stream([b"ab", 1.0, b"cd", 2.0, b"ef"])
    assert stream.cut(3) == Stream([b"ab", 1.0, b"c"], "reset")
    assert stream.cut(2, "hang").steps == [b"ab"]
    assert stream.cut(0, "clean").steps == []
    assert stream.cut(3).body == b"abc"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("split", [1, 7, 10_000])
def test_only_whole_events_with_text_count(newline, split):
    body = b"".join([b": comment\n\n", *EVENTS]).replace(b"\n", newline)
    seen = 0
    for end in range(0, len(body) + split, split):
        texts = texts_in(body[:end])
        assert texts == WORDS[: len(texts)]
        assert len(texts) >= seen
        seen = len(texts)
    assert seen == len(WORDS)


def test_text_is_found_in_every_form():
    assert texts_in(b"".join(messages_events(["a", "b"], input_tokens=1, output_tokens=2))) == ["a", "b"]
    assert texts_in(b"".join(chat_events(["a", "b"], usage={"total_tokens": 1}, asked=True))) == ["a", "b"]
    for data in (
        {"type": "response.output_text.delta", "delta": "a"},
        {"choices": [{"text": "a"}]},
        {"choices": [{"delta": {"content": None}}, {"delta": {"content": "a"}}]},
        {"candidates": [{"content": {"parts": [{"text": "a"}]}}]},
    ):
        assert texts_in(f"event: x\ndata: {json.dumps(data)}\n\n".encode()) == ["a"]
    for nothing in (b"data: 1\n\n", b"data: [DONE]\n\n", b'data: {"delta": 1}\n\n', b"\n\n", b'data: {"choices": []}\n\n'):
        assert texts_in(nothing) == []
