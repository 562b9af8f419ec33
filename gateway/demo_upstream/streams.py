"""How a stream is paced, broken where the request wants it, and framed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from quart import Response

from gateway.demo_upstream.errors import StreamCutError, StreamFailedError
from gateway.demo_upstream.switches import Switches
from gateway.demo_upstream.text import Answer

KEEP_ALIVE = ": keep-alive"


class Event(NamedTuple):
    """One event: an object, or text as it is."""

    data: dict[str, Any] | str
    name: str | None = None


class Piece(NamedTuple):
    """A chunk of an answer's text, and how many words of all answers are out with it."""

    answer: int
    text: str
    words: int


async def paced(answers: list[Answer], switches: Switches) -> AsyncIterator[Piece]:
    """Take the chunks of all answers in turn, each after the delay.

    Raises StreamCutError or StreamFailedError where the request wants it: after so many turns, thus chunks of each answer.
    """

    def break_at(position: int) -> None:
        if position == switches.cut_after:
            raise StreamCutError
        if position == switches.fail_after:
            raise StreamFailedError

    words = 0
    count = max(len(each.chunks) for each in answers)
    for position in range(count):
        break_at(position)
        await asyncio.sleep(switches.chunk_delay_ms / 1000)  # suspends even for 0: a disconnect is noticed here
        for index, each in enumerate(answers):
            if position < len(each.chunks):
                text = each.chunks[position]
                words += len(text.split())
                yield Piece(index, text, words)
    break_at(count)


def event_stream(events: AsyncIterator[Event], switches: Switches, newline: str = "\n") -> Response:
    """Answer with server-sent events; ``newline`` is how the provider ends lines unless the request wants another."""
    body = _framed(events, switches.newline or newline, switches.comments)
    return Response(body, content_type="text/event-stream; charset=utf-8", headers={"cache-control": "no-cache"})


async def _framed(events: AsyncIterator[Event], end: str, comments: int) -> AsyncIterator[str]:
    async for data, name in events:
        for _ in range(comments):
            yield KEEP_ALIVE + end + end
        named = f"event: {name}{end}" if name else ""
        yield f"{named}data: {_text(data)}{end}{end}"


def json_array(events: AsyncIterator[Event]) -> Response:
    """Answer with one JSON array that grows by an element at a time, as Google streams where no events are asked for."""

    async def body() -> AsyncIterator[str]:
        before = "["
        async for data, _ in events:
            yield before + _text(data)
            before = ",\r\n"
        yield "]\n"

    return Response(body(), content_type="application/json; charset=UTF-8")


def _text(data: dict[str, Any] | str) -> str:
    return data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
