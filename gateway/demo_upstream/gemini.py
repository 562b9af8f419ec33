"""Google's Gemini (https://ai.google.dev/api/generate-content)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from quart import Quart, request

from gateway.demo_upstream.asked import Asked
from gateway.demo_upstream.errors import FAILED, StreamFailedError
from gateway.demo_upstream.streams import Event, event_stream, json_array, paced
from gateway.demo_upstream.switches import Switches, switched
from gateway.demo_upstream.text import Answer
from gateway.demo_upstream.tokens import Tokens

MOST_CANDIDATES = 8


def add_gemini(app: Quart) -> None:
    """Serve it below ``/v1beta``."""
    app.add_url_rule("/v1beta/models/<model>:generateContent", view_func=_generate, methods=["POST"])
    app.add_url_rule("/v1beta/models/<model>:streamGenerateContent", view_func=_stream, methods=["POST"])


async def _generate(model: str) -> Any:
    switches = switched()
    answers, tokens = await _written(model, switches)
    candidates = [_candidate(index, each.text, _reason(each)) for index, each in enumerate(answers)]
    usage = {} if switches.usage == "none" else {"usageMetadata": _usage(tokens)}
    return {"candidates": candidates} | usage | _tail(model, switches)


async def _stream(model: str) -> Any:
    switches = switched()
    answers, tokens = await _written(model, switches)
    events = _events(answers, tokens, _tail(model, switches), switches)
    return event_stream(events, switches, "\r\n") if request.args.get("alt") == "sse" else json_array(events)


async def _written(model: str, switches: Switches) -> tuple[list[Answer], Tokens]:
    asked = Asked(await request.get_data(), model)
    system = asked.section("systemInstruction" if "systemInstruction" in asked.fields else "system_instruction")
    prompts = [asked.conversation("contents", system.fields.get("parts"), content="parts")]
    wanted = asked.section("generationConfig")
    count, limit = wanted.number("candidateCount", MOST_CANDIDATES) or 1, wanted.number("maxOutputTokens")
    answers = switches.answers(prompts, count, limit)
    return answers, Tokens.of(prompts, answers, switches)


async def _events(answers: list[Answer], tokens: Tokens, tail: dict[str, Any], switches: Switches) -> AsyncIterator[Event]:
    def event(candidate: dict[str, Any], words: int, *, last: bool = False) -> Event:
        told = last if switches.usage == "last" else switches.usage != "none"
        usage = {"usageMetadata": _usage(tokens.after(words))} if told else {}
        return Event({"candidates": [candidate]} | usage | tail)

    try:
        async for index, text, words in paced(answers, switches):
            yield event(_candidate(index, text), words)
    except StreamFailedError:
        yield Event({"error": {"code": 503, "message": FAILED, "status": "UNAVAILABLE"}})
        return
    for index, each in enumerate(answers):
        yield event(_candidate(index, "", _reason(each)), tokens.words, last=index == len(answers) - 1)


def _candidate(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
    ended = {} if reason is None else {"finishReason": reason}
    return {"content": {"parts": [{"text": text}], "role": "model"}} | ended | {"index": index}


def _reason(written: Answer) -> str:
    return "STOP" if written.complete else "MAX_TOKENS"


def _tail(model: str, switches: Switches) -> dict[str, Any]:
    return {"modelVersion": model, "responseId": switches.new_id()}


def _usage(tokens: Tokens) -> dict[str, Any]:
    """``promptTokenCount`` has what was cached in it, ``candidatesTokenCount`` no reasoning; a zero of either is left out."""
    usage: dict[str, Any] = {"promptTokenCount": tokens.sent, "candidatesTokenCount": tokens.words}
    if tokens.cached:
        usage["cachedContentTokenCount"] = tokens.cached
    if tokens.reasoning:
        usage["thoughtsTokenCount"] = tokens.reasoning
    details = [{"modality": "TEXT", "tokenCount": tokens.sent}]
    return usage | {"totalTokenCount": tokens.total, "promptTokensDetails": details}
