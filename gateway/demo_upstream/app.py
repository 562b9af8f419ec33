"""The app: one view for each endpoint, and the event streams."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

from quart import Quart, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from gateway.demo_upstream.asked import Asked, DemoError, DemoSettings, Switches, authenticate, refuse
from gateway.demo_upstream.streams import StreamCutError, anthropic_events, openai_events
from gateway.demo_upstream.text import Answer, answer, count_tokens, embed, encode_vector

MODELS = ("demo-small", "demo-large", "demo-embedding")
MOST_CHOICES = 128
MOST_DIMENSIONS = 4096


def create_demo_upstream(settings: DemoSettings) -> Quart:
    """Build the app. It keeps no state: each reply follows from the request and the settings."""
    app = Quart("gateway.demo_upstream", static_folder=None)
    app.config.update(RESPONSE_TIMEOUT=None, BODY_TIMEOUT=None, MAX_CONTENT_LENGTH=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["rest"] = _Rest

    @app.before_request
    async def _prepare() -> None:
        if request.path == "/health":
            return
        g.switches = switches = Switches.of(request.headers, settings)
        await asyncio.sleep(switches.latency_ms / 1000)
        if settings.api_key is not None:
            authenticate(request.headers, request.path, settings.api_key)
        if switches.status is not None:
            refuse(f"The demo was asked to answer {switches.status}.", code="demo_status", status=switches.status)

    @app.after_request
    async def _identify(response: Response) -> Response:
        response.headers["x-request-id"] = f"req_{uuid.uuid4().hex}"
        return response

    app.register_error_handler(DemoError, _demo_error)
    app.register_error_handler(HTTPException, _http_error)
    app.add_url_rule("/v1/chat/completions", view_func=_chat, methods=["POST"])
    app.add_url_rule("/v1/completions", view_func=_completions, methods=["POST"])
    app.add_url_rule("/v1/embeddings", view_func=_embeddings, methods=["POST"])
    app.add_url_rule("/v1/messages", view_func=_messages, methods=["POST"])
    app.add_url_rule("/v1/models", view_func=_models)
    app.add_url_rule("/v1/models/<path:name>", view_func=_model)
    for path in ("/echo", "/echo/<rest:rest>"):
        app.add_url_rule(path, view_func=_echo, methods=["POST", "GET", "PUT", "PATCH", "DELETE"])
    app.add_url_rule("/health", view_func=_health)

    inner = app.asgi_app

    async def cutting(scope: Any, receive: Any, send: Any) -> None:
        try:
            await inner(scope, receive, send)
        except* StreamCutError:  # Quart 0.23 raises it in a group
            pass  # the server closes a connection whose app leaves in the middle of a reply

    app.asgi_app = cutting  # type: ignore[method-assign]
    return app


class _Rest(BaseConverter):
    """Any rest of a path, with empty and dot segments and trailing slashes."""

    part_isolating = False
    regex = ".*?"


async def _demo_error(error: DemoError) -> Any:
    return {"error": error.error}, error.status, {"retry-after": "1"} if error.status == 429 else {}


async def _http_error(error: HTTPException) -> Any:
    status = error.code or 500
    code = error.name.lower().replace(" ", "_")
    body = DemoError(status, f"{error.name}: {request.method} {request.path}", code=code).error
    allowed = getattr(error, "valid_methods", None)
    return {"error": body}, status, {"allow": ", ".join(allowed)} if allowed else {}


def _answers(asked: Asked, prompts: Iterable[str], limit: int | None) -> list[Answer]:
    count = asked.number("n", MOST_CHOICES) or 1
    return [answer(prompt, variant, limit, g.switches.chunks) for prompt in prompts for variant in range(count)]


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(prompts: Iterable[str], answers: Iterable[Answer]) -> dict[str, Any]:
    sent, written = sum(map(count_tokens, prompts)), sum(len(each.words) for each in answers)
    return {
        "prompt_tokens": sent,
        "completion_tokens": written,
        "total_tokens": sent + written,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def _chat() -> Any:
    asked = Asked(await request.get_data())
    prompts = [asked.conversation()]
    answers = _answers(asked, prompts, asked.number("max_completion_tokens") or asked.number("max_tokens"))
    usage = _usage(prompts, answers)
    if asked.stream:
        head = _head("chatcmpl", "chat.completion.chunk", asked.model)
        events = openai_events(
            asked,
            head,
            answers,
            usage,
            switches=g.switches,
            opening={"delta": {"role": "assistant", "content": "", "refusal": None}},
            content=lambda text: {"delta": {"content": text}},
            closing={"delta": {}},
        )
        return _stream(events)
    choices = [
        {"message": {"role": "assistant", "content": each.text, "refusal": None}, "finish_reason": each.finish_reason}
        for each in answers
    ]
    return _head("chatcmpl", "chat.completion", asked.model) | {"choices": _numbered(choices), "usage": usage}


async def _completions() -> Any:
    asked = Asked(await request.get_data())
    prompts = asked.inputs("prompt")
    answers = _answers(asked, prompts, asked.number("max_tokens"))
    usage = _usage(prompts, answers)
    head = _head("cmpl", "text_completion", asked.model)
    if asked.stream:
        events = openai_events(
            asked,
            head,
            answers,
            usage,
            switches=g.switches,
            opening=None,
            content=lambda text: {"text": text},
            closing={"text": ""},
        )
        return _stream(events)
    choices = [{"text": each.text, "finish_reason": each.finish_reason} for each in answers]
    return head | {"choices": _numbered(choices), "usage": usage}


def _numbered(choices: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"index": index, "logprobs": None} | choice for index, choice in enumerate(choices)]


async def _messages() -> Any:
    asked = Asked(await request.get_data())
    prompt = asked.conversation()
    asked.required("max_tokens", int)
    written = answer(prompt, limit=asked.number("max_tokens"), chunks=g.switches.chunks)
    message: dict[str, Any] = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": count_tokens(prompt), "output_tokens": 1},
    }
    end = {"stop_reason": "end_turn" if written.complete else "max_tokens", "stop_sequence": None}
    if asked.stream:
        return _stream(anthropic_events(message, written, end, g.switches))
    usage = {"input_tokens": count_tokens(prompt), "output_tokens": len(written.words)}
    return message | end | {"content": [{"type": "text", "text": written.text}], "usage": usage}


def _stream(events: AsyncIterator[str]) -> Response:
    return Response(events, content_type="text/event-stream; charset=utf-8", headers={"cache-control": "no-cache"})


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
    return {"object": "list", "data": data, "model": asked.model, "usage": {"prompt_tokens": sent, "total_tokens": sent}}


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "demo"}


async def _models() -> Any:
    return {"object": "list", "data": [_described(name) for name in MODELS]}


async def _model(name: str) -> Any:
    if name not in MODELS:
        refuse(f"The model '{name}' does not exist.", param="model", code="model_not_found", status=404)
    return _described(name)


async def _echo(rest: str = "") -> Any:  # noqa: ARG001  the raw path says it
    digest, length = hashlib.sha256(), 0
    async for part in request.body:
        digest.update(part)
        length += len(part)
    scope: Any = request.scope
    return {
        "method": request.method,
        "path": scope["raw_path"].decode("latin-1"),
        "query": scope["query_string"].decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": {"length": length, "sha256": digest.hexdigest()},
    }


async def _health() -> Any:
    return {"status": "ok"}
