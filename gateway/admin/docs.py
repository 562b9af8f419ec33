"""``/openapi.json`` and ``/docs``: Swagger UI from the files of the installed package, without any other server."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quart import Blueprint, Response, send_from_directory

from gateway.admin.answering import PREFIX, Answer
from gateway.admin.operation import Access, Operation, operation
from gateway.admin.parts import route
from gateway.errors import NotFound

TAG = "documentation"

_MEDIA_TYPES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}

# The page has no script of its own in it, so that the policy can forbid inline scripts.
_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>AI gateway: admin API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
_START = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  persistAuthorization: false,
});
"""
# Swagger UI sets styles on elements and has images in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def docs_blueprint(document: Callable[[], dict[str, Any]]) -> Blueprint:
    """The pages. ``document`` is called once, at the first request, when all routes are known."""
    blueprint = Blueprint("docs", __name__)
    made = cache(document)

    @operation(Operation(Access.BROWSER, "This document, in OpenAPI 3.1", TAG, answer="application/json"))
    async def openapi() -> Response:
        return Answer(made()).response()

    @operation(Operation(Access.BROWSER, "This document as a page", TAG, answer="text/html"))
    async def docs() -> Response:
        return _file(_PAGE, "text/html")

    @operation(Operation(Access.BROWSER, "Scripts and styles of the page", TAG, answer="application/octet-stream"))
    async def docs_file(name: str) -> Response:
        if name == "start.js":
            return _file(_START, "text/javascript")
        if name not in _MEDIA_TYPES:
            raise NotFound
        response = await send_from_directory(_swagger_ui(), name, mimetype=_MEDIA_TYPES[name])
        response.headers["content-security-policy"] = _POLICY
        return response

    @operation(Operation(Access.BROWSER, "The page, at a shorter address", TAG, status=307))
    async def docs_short() -> Response:
        return Response(b"", 307, {"location": f"{PREFIX}/docs"})

    route(blueprint, f"{PREFIX}/openapi.json", ["GET"], openapi)
    route(blueprint, f"{PREFIX}/docs", ["GET"], docs)
    route(blueprint, f"{PREFIX}/docs/<name>", ["GET"], docs_file)
    route(blueprint, "/openapi.json", ["GET"], openapi)
    route(blueprint, "/docs", ["GET"], docs_short)
    return blueprint


def _file(text: str, media_type: str) -> Response:
    headers = {"content-security-policy": _POLICY, "content-type": f"{media_type}; charset=utf-8"}
    return Response(text, 200, headers)


def _swagger_ui() -> Path:
    # found without being imported: the package would import Flask
    spec = find_spec("flask_swagger_ui")
    if spec is None or spec.origin is None:
        raise NotFound("The files of the page are not installed.")
    return Path(spec.origin).parent / "dist"
