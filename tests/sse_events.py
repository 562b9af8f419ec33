"""Events of the providers' streams as bytes, and the text that such bytes hold.

``texts_in`` counts on both sides of a gateway alike: an event counts once its blank line is there, and only if it has text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

DONE = b"data: [DONE]\n\n"


def an_event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One event."""
    named = f"event: {name}\n" if name else ""
    return f"{named}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def chat_events(texts: Iterable[str], *, usage: dict[str, Any] | None = None, asked: bool = False) -> list[bytes]:
    """A whole stream of OpenAI's chat, an event for each text; with usage if it was asked for, null in the other events."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m"}
    null = {"usage": None} if asked else {}

    def choice(delta: dict[str, Any], reason: str | None = None) -> bytes:
        return an_event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} | null)

    events = [choice({"role": "assistant", "content": ""}), *(choice({"content": text}) for text in texts), choice({}, "stop")]
    if asked:
        events.append(an_event(head | {"choices": [], "usage": usage}))
    return [*events, DONE]


def messages_events(texts: Iterable[str], *, input_tokens: int, output_tokens: int) -> list[bytes]:
    """A whole stream of Anthropic's messages, an event for each text."""

    def named(kind: str, **fields: Any) -> bytes:
        return an_event({"type": kind} | fields, kind)

    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
    }
    usage = {"input_tokens": input_tokens, "output_tokens": 1}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        named("message_start", message=message | {"stop_sequence": None, "usage": usage}),
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(named("content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in texts),
        named("content_block_stop", index=0),
        named("message_delta", delta=end, usage={"output_tokens": output_tokens}),
        named("message_stop"),
    ]


def texts_in(body: bytes) -> list[str]:
    """The text of each complete event that has any, of every provider's form."""
    plain = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    texts = (_text_of(frame) for frame in plain.split(b"\n\n")[:-1])
    return [text for text in texts if text]


def _text_of(frame: bytes) -> str:
    lines = [line.removeprefix(b"data:").strip() for line in frame.split(b"\n") if line.startswith(b"data:")]
    try:
        data = json.loads(b"\n".join(lines))
    except ValueError:
        return ""
    if not isinstance(data, dict):
        return ""
    delta = data.get("delta")
    match data.get("type"):
        case "content_block_delta":
            return str(delta.get("text", "")) if isinstance(delta, dict) else ""
        case "response.output_text.delta":
            return str(delta)
    parts = [part for candidate in data.get("candidates", ()) for part in candidate["content"]["parts"]]
    choices = [choice.get("delta", choice) for choice in data.get("choices", ())]
    found = [part.get("text") for part in parts] + [each.get("content") or each.get("text") for each in choices]
    return "".join(text for text in found if text)
