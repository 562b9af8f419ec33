"""The app: what every request goes through, the models, and the views that no provider has."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from typing import Any

from quart import Quart, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from gateway.demo_upstream.anthropic_messages import add_anthropic_messages
from gateway.demo_upstream.asked import authenticate
from gateway.demo_upstream.errors import DemoError, StreamCutError, refuse
from gateway.demo_upstream.gemini import add_gemini
from gateway.demo_upstream.openai_chat import add_openai_chat
from gateway.demo_upstream.openai_responses import add_openai_responses
from gateway.demo_upstream.switches import CREATED, DemoSettings, Switches

MODELS = ("demo-small", "demo-large", "demo-embedding")


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
        switches: Switches | None = g.get("switches")
        response.headers["x-request-id"] = f"req_{uuid.uuid4().hex if switches is None else switches.new_id()}"
        return response

    app.register_error_handler(DemoError, _demo_error)
    app.register_error_handler(HTTPException, _http_error)
    for add_to in (add_openai_chat, add_openai_responses, add_anthropic_messages, add_gemini):
        add_to(app)
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


def _described(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "demo"}


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
