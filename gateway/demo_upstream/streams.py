"""The event streams: OpenAI's and Anthropic's, paced, and cut where the request wants it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from gateway.demo_upstream.asked import Asked, Switches
from gateway.demo_upstream.text import Answer


class StreamCutError(Exception):
    """The stream ends here, without its end."""


async def openai_events(
    asked: Asked,
    head: dict[str, Any],
    answers: list[Answer],
    usage: dict[str, Any],
    *,
    switches: Switches,
    opening: dict[str, Any] | None,
    content: Callable[[str], dict[str, Any]],
    closing: dict[str, Any],
) -> AsyncIterator[str]:
    """Stream all answers as chunks of ``choices``: ``opening`` for each, their text in turn, ``closing`` for each, the end.

    ``head`` is in every event; ``opening``, ``content(text)`` and ``closing`` are what tells chat from plain completion.
    """
    no_usage = {"usage": None} if asked.include_usage else {}

    def event(index: int, choice: dict[str, Any], finish_reason: str | None = None) -> str:
        full = {"index": index, "logprobs": None, "finish_reason": finish_reason} | choice
        return _event(head | {"choices": [full]} | no_usage)

    if opening is not None:
        for index in range(len(answers)):
            yield event(index, opening)
    async for index, text in _paced(answers, switches):
        yield event(index, content(text))
    for index, each in enumerate(answers):
        yield event(index, closing, each.finish_reason)
    if asked.include_usage:
        yield _event(head | {"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


async def anthropic_events(
    message: dict[str, Any], written: Answer, end: dict[str, Any], switches: Switches
) -> AsyncIterator[str]:
    """Stream one answer as named events; ``end`` is the delta with the reason why it stopped."""

    def event(kind: str, **fields: Any) -> str:
        return f"event: {kind}\n" + _event({"type": kind} | fields)

    yield event("message_start", message=message)
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    async for index, text in _paced([written], switches):
        yield event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})
    yield event("content_block_stop", index=0)
    yield event("message_delta", delta=end, usage={"output_tokens": len(written.words)})
    yield event("message_stop")


async def _paced(answers: list[Answer], switches: Switches) -> AsyncIterator[tuple[int, str]]:
    """Take the chunks of all answers in turn, each after the delay; raises where the request wants the stream cut."""
    count = max(len(each.chunks) for each in answers)
    for position in range(count):
        if position == switches.cut_after:
            raise StreamCutError
        await asyncio.sleep(switches.chunk_delay_ms / 1000)  # suspends even for 0: a disconnect is noticed here
        for index, each in enumerate(answers):
            if position < len(each.chunks):
                yield index, each.chunks[position]
    if count == switches.cut_after:
        raise StreamCutError


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
