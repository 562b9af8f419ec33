"""OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses-streaming)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

from quart import Quart, request

from gateway.demo_upstream.asked import Asked
from gateway.demo_upstream.errors import FAILED, StreamFailedError
from gateway.demo_upstream.streams import Event, event_stream, paced
from gateway.demo_upstream.switches import Switches, switched
from gateway.demo_upstream.text import Answer
from gateway.demo_upstream.tokens import Tokens


def add_openai_responses(app: Quart) -> None:
    """Serve it below ``/v1``."""
    app.add_url_rule("/v1/responses", view_func=_responses, methods=["POST"])


async def _responses() -> Any:
    asked, switches = Asked(await request.get_data()), switched()
    if isinstance(text := asked.fields.get("input"), str) and text:
        asked.fields["input"] = [{"role": "user", "content": text}]
    prompt = asked.conversation("input", asked.fields.get("instructions"))
    limit = asked.number("max_output_tokens")
    [written] = switches.answers([prompt], 1, limit)
    tokens = Tokens.of([prompt], [written], switches)
    begun = _begun(asked, limit, switches)
    if asked.stream:
        return event_stream(_events(begun, written, tokens, switches), switches)
    return _ended(begun, written, tokens, switches)


def _begun(asked: Asked, limit: int | None, switches: Switches) -> dict[str, Any]:
    return {
        "id": f"resp_{switches.new_id()}",
        "object": "response",
        "created_at": switches.created(),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": asked.fields.get("instructions"),
        "max_output_tokens": limit,
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
    }


def _ended(begun: dict[str, Any], written: Answer, tokens: Tokens, switches: Switches) -> dict[str, Any]:
    item = _item(begun, _status(written), [_part(written.text)])
    return begun | {
        "status": _status(written),
        "incomplete_details": None if written.complete else {"reason": "max_output_tokens"},
        "output": [item],
        "usage": None if switches.usage == "none" else _usage(tokens),
    }


async def _events(begun: dict[str, Any], written: Answer, tokens: Tokens, switches: Switches) -> AsyncIterator[Event]:
    numbers = count()

    def event(kind: str, **fields: Any) -> Event:
        return Event({"type": kind, "sequence_number": next(numbers)} | fields, name=kind)

    item = _item(begun, "in_progress", [])
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    yield event("response.output_item.added", output_index=0, item=item)
    yield event("response.content_part.added", **place, part=_part(""))
    try:
        async for _, text, _ in paced([written], switches):
            yield event("response.output_text.delta", **place, delta=text, logprobs=[])
    except StreamFailedError:
        yield event("error", code="server_error", message=FAILED, param=None)
        failed = {"status": "failed", "error": {"code": "server_error", "message": FAILED}}
        yield event("response.failed", response=begun | failed)
        return
    ended = _ended(begun, written, tokens, switches)
    yield event("response.output_text.done", **place, text=written.text, logprobs=[])
    yield event("response.content_part.done", **place, part=_part(written.text))
    yield event("response.output_item.done", output_index=0, item=ended["output"][0])
    yield event(f"response.{_status(written)}", response=ended)


def _status(written: Answer) -> str:
    return "completed" if written.complete else "incomplete"


def _item(begun: dict[str, Any], status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    name = "msg_" + begun["id"].removeprefix("resp_")
    return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(tokens: Tokens) -> dict[str, Any]:
    """``input_tokens`` has what was cached in it, ``output_tokens`` the reasoning."""
    return {
        "input_tokens": tokens.sent,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.cache_written},
        "output_tokens": tokens.written,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.total,
    }
