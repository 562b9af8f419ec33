"""OpenAI's chat completions, completions and embeddings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from quart import Quart, request

from gateway.demo_upstream.asked import Asked
from gateway.demo_upstream.errors import FAILED, DemoError, StreamFailedError, refuse
from gateway.demo_upstream.streams import Event, event_stream, paced
from gateway.demo_upstream.switches import Switches, switched
from gateway.demo_upstream.text import Answer, count_tokens, embed, encode_vector
from gateway.demo_upstream.tokens import Tokens

MOST_CHOICES = 128
MOST_DIMENSIONS = 4096
DONE = Event("[DONE]")


def add_openai_chat(app: Quart) -> None:
    """Serve them below ``/v1``."""
    app.add_url_rule("/v1/chat/completions", view_func=_chat, methods=["POST"])
    app.add_url_rule("/v1/completions", view_func=_completions, methods=["POST"])
    app.add_url_rule("/v1/embeddings", view_func=_embeddings, methods=["POST"])


async def _chat() -> Any:
    asked, switches = Asked(await request.get_data()), switched()
    prompts = [asked.conversation("messages")]
    limit = asked.number("max_completion_tokens") or asked.number("max_tokens")
    answers = switches.answers(prompts, asked.number("n", MOST_CHOICES) or 1, limit)
    tokens = Tokens.of(prompts, answers, switches)
    if asked.stream:
        events = _events(
            asked,
            _head("chatcmpl", "chat.completion.chunk", asked.model, switches),
            answers,
            tokens,
            switches=switches,
            opening={"delta": {"role": "assistant", "content": "", "refusal": None}},
            content=lambda text: {"delta": {"content": text}},
            closing={"delta": {}},
        )
        return event_stream(events, switches)
    choices = [
        {"message": {"role": "assistant", "content": each.text, "refusal": None}, "finish_reason": _reason(each)}
        for each in answers
    ]
    head = _head("chatcmpl", "chat.completion", asked.model, switches)
    return head | {"choices": _numbered(choices)} | _reported(tokens, switches)


async def _completions() -> Any:
    asked, switches = Asked(await request.get_data()), switched()
    prompts = asked.inputs("prompt")
    answers = switches.answers(prompts, asked.number("n", MOST_CHOICES) or 1, asked.number("max_tokens"))
    tokens = Tokens.of(prompts, answers, switches)
    head = _head("cmpl", "text_completion", asked.model, switches)
    if asked.stream:
        events = _events(
            asked,
            head,
            answers,
            tokens,
            switches=switches,
            opening=None,
            content=lambda text: {"text": text},
            closing={"text": ""},
        )
        return event_stream(events, switches)
    choices = [{"text": each.text, "finish_reason": _reason(each)} for each in answers]
    return head | {"choices": _numbered(choices)} | _reported(tokens, switches)


async def _embeddings() -> Any:
    asked = Asked(await request.get_data())
    inputs = asked.inputs("input")
    dimensions = asked.number("dimensions", MOST_DIMENSIONS) or 1536
    encoding = asked.fields.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        refuse("'encoding_format' must be float or base64.", param="encoding_format", code="invalid_value")
    vectors = [embed(text, dimensions) for text in inputs]
    data = [
        {"object": "embedding", "index": index, "embedding": encode_vector(vector) if encoding == "base64" else vector}
        for index, vector in enumerate(vectors)
    ]
    sent = sum(map(count_tokens, inputs))
    usage = {} if switched().usage == "none" else {"usage": {"prompt_tokens": sent, "total_tokens": sent}}
    return {"object": "list", "data": data, "model": asked.model} | usage


async def _events(
    asked: Asked,
    head: dict[str, Any],
    answers: list[Answer],
    tokens: Tokens,
    *,
    switches: Switches,
    opening: dict[str, Any] | None,
    content: Callable[[str], dict[str, Any]],
    closing: dict[str, Any],
) -> AsyncIterator[Event]:
    """Stream all answers as chunks of ``choices``: ``opening`` for each, their text in turn, ``closing`` for each, the end.

    ``head`` is in every event; ``opening``, ``content(text)`` and ``closing`` are what tells chat from plain completion.
    """
    with_usage = switches.usage == "unasked" or (asked.include_usage and switches.usage != "none")

    def event(index: int, choice: dict[str, Any], words: int, finish_reason: str | None = None) -> Event:
        full = {"index": index, "logprobs": None, "finish_reason": finish_reason} | choice
        running = _usage(tokens.after(words)) if switches.usage == "every-chunk" else None
        return Event(head | {"choices": [full]} | ({"usage": running} if with_usage else {}))

    if opening is not None:
        for index in range(len(answers)):
            yield event(index, opening, 0)
    try:
        async for index, text, words in paced(answers, switches):
            yield event(index, content(text), words)
    except StreamFailedError:
        yield Event({"error": DemoError(500, FAILED).error})
        yield DONE
        return
    for index, each in enumerate(answers):
        yield event(index, closing, tokens.words, _reason(each))
    if with_usage:
        yield Event(head | {"choices": [], "usage": _usage(tokens)})
    yield DONE


def _head(prefix: str, kind: str, model: str, switches: Switches) -> dict[str, Any]:
    return {"id": f"{prefix}-{switches.new_id()}", "object": kind, "created": switches.created(), "model": model}


def _numbered(choices: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"index": index, "logprobs": None} | choice for index, choice in enumerate(choices)]


def _reason(written: Answer) -> str:
    return "stop" if written.complete else "length"


def _reported(tokens: Tokens, switches: Switches) -> dict[str, Any]:
    return {} if switches.usage == "none" else {"usage": _usage(tokens)}


def _usage(tokens: Tokens) -> dict[str, Any]:
    """``prompt_tokens`` has what was cached in it, ``completion_tokens`` the reasoning."""
    return {
        "prompt_tokens": tokens.sent,
        "completion_tokens": tokens.written,
        "total_tokens": tokens.total,
        "prompt_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.cache_written},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }
