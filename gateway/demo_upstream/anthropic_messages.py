"""Anthropic's messages (https://docs.anthropic.com/en/api/messages-streaming)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from quart import Quart, request

from gateway.demo_upstream.asked import Asked
from gateway.demo_upstream.errors import FAILED, StreamFailedError
from gateway.demo_upstream.streams import Event, event_stream, paced
from gateway.demo_upstream.switches import Switches, switched
from gateway.demo_upstream.text import Answer
from gateway.demo_upstream.tokens import Tokens


def add_anthropic_messages(app: Quart) -> None:
    """Serve them below ``/v1``."""
    app.add_url_rule("/v1/messages", view_func=_messages, methods=["POST"])


async def _messages() -> Any:
    asked, switches = Asked(await request.get_data()), switched()
    prompt = asked.conversation("messages", asked.fields.get("system"))
    asked.required("max_tokens", int)
    [written] = switches.answers([prompt], 1, asked.number("max_tokens"))
    tokens = Tokens.of([prompt], [written], switches)
    message: dict[str, Any] = {
        "id": f"msg_{switches.new_id()}",
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    if asked.stream:
        return event_stream(_events(message, written, tokens, switches), switches)
    usage = {} if switches.usage == "none" else {"usage": _usage(tokens)}
    return message | _end(written) | {"content": [{"type": "text", "text": written.text}]} | usage


async def _events(message: dict[str, Any], written: Answer, tokens: Tokens, switches: Switches) -> AsyncIterator[Event]:
    def event(kind: str, **fields: Any) -> Event:
        return Event({"type": kind} | fields, name=kind)

    yield event("message_start", message=message | _first_usage(tokens, switches))
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    try:
        async for index, text, words in paced([written], switches):
            yield event("content_block_delta", index=index, delta={"type": "text_delta", "text": text})
            if switches.usage == "every-chunk":
                yield event("message_delta", delta=_end(None), usage=_usage(tokens.after(words)))
    except StreamFailedError:
        yield event("error", error={"type": "overloaded_error", "message": FAILED})
        return
    yield event("content_block_stop", index=0)
    yield event("message_delta", delta=_end(written), **_last_usage(tokens, switches))
    yield event("message_stop")


def _end(written: Answer | None) -> dict[str, Any]:
    reason = None if written is None else "end_turn" if written.complete else "max_tokens"
    return {"stop_reason": reason, "stop_sequence": None}


def _first_usage(tokens: Tokens, switches: Switches) -> dict[str, Any]:
    match switches.usage:
        case "none":
            return {}
        case "last":
            return {"usage": {"input_tokens": 0, "output_tokens": 0}}
        case _:
            return {"usage": _usage(tokens) | {"output_tokens": 1}}


def _last_usage(tokens: Tokens, switches: Switches) -> dict[str, Any]:
    match switches.usage:
        case "none":
            return {}
        case "last" | "every-chunk":
            return {"usage": _usage(tokens)}
        case _:
            return {"usage": {"output_tokens": tokens.written}}


def _usage(tokens: Tokens) -> dict[str, Any]:
    """``input_tokens`` is what no cache was used for; ``output_tokens`` has the reasoning in it and does not tell it apart."""
    return {
        "input_tokens": tokens.fresh,
        "cache_creation_input_tokens": tokens.cache_written,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.written,
    }
