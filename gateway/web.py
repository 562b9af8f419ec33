"""What the admin app and the proxy share as web applications: request ids, errors as JSON, and the health pages."""

from __future__ import annotations

import asyncio
import difflib
import ipaddress
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from quart import Blueprint, Quart, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WrongMethod

from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    Draining,
    GatewayError,
    HeadersTooLarge,
    InternalError,
    InvalidField,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    StoreUnavailable,
    UnsupportedMediaType,
    UriTooLong,
)

READY_DEADLINE_S = 0.5
MAX_PROBLEMS = 20
MAX_SHOWN = 200

logger = logging.getLogger("gateway.web")

_REQUEST_ID = re.compile(r"[!#-&(-\[\]-~]{1,128}")
_ERRORS: dict[int, type[GatewayError]] = {
    408: RequestTimeout,
    413: BodyTooLarge,
    414: UriTooLong,
    415: UnsupportedMediaType,
    431: HeadersTooLarge,
}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


# Requests


def new_request_id() -> str:
    """An identifier such as ``req_9f86d081884c7d659a2feaa0``."""
    return f"req_{secrets.token_hex(12)}"


def request_id_of(value: str | None) -> str:
    """The client's own identifier if it is 1 to 128 visible ASCII characters without quotes and backslashes, else a new one."""
    return value if value is not None and _REQUEST_ID.fullmatch(value) else new_request_id()


def current_request_id() -> str:
    """The identifier of the request that Quart is handling."""
    if "request_id" not in g:
        g.request_id = request_id_of(request.headers.get("x-request-id"))
    return str(g.request_id)


def client_address(peer: str, forwarded_for: Iterable[str], trusted: Sequence[Network]) -> str:
    """Who called: the peer, or behind trusted proxies the nearest address that is not one of them.

    ``forwarded_for`` are the values of ``X-Forwarded-For`` as they came; what stands left of an untrusted address is hearsay.
    """
    address = peer
    for hop in reversed([part.strip() for value in forwarded_for for part in value.split(",")]):
        if not is_within(address, trusted) or not is_address(hop):
            break
        address = hop
    return address


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """True if the text is an IP address in one of the networks."""
    if not networks or not is_address(address):
        return False
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    plain = mapped or parsed
    return any(plain in network for network in networks if network.version == plain.version)


def is_address(text: str) -> bool:
    """True if the text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# Errors


def error_reply(error: GatewayError, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, header fields (names in lower case) and JSON body, ready to be sent as ASGI messages."""
    body = json.dumps(error.body(request_id)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),  # caches may keep a 404 that says nothing of it, beyond the end of its cause
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        *((name.lower().encode(), value.encode()) for name, value in error.headers),
    ]
    return error.status, headers, body


def invalid_field(error: ValidationError, model: type[BaseModel] | None = None) -> InvalidField:
    """The error for a document that a model refused; ``param`` is the path of the first field at fault.

    All problems are listed in ``details["errors"]``. No value is repeated: it may be a secret. With the ``model``, the
    message about an unknown field names the nearest known one.
    """
    items = error.errors(include_url=False, include_input=False, include_context=False)
    problems = [_problem(item["loc"], item["type"], item["msg"], model) for item in items[:MAX_PROBLEMS]]
    return InvalidField(problems[0]["message"], param=problems[0]["param"], details={"errors": problems})


def _problem(loc: tuple[int | str, ...], kind: str, text: str, model: type[BaseModel] | None) -> dict[str, Any]:
    path = [str(step) for step in loc if step != "[key]"]
    param = ".".join(path)[:MAX_SHOWN]
    if kind == "extra_forbidden":
        known = _fields_at(model, path[:-1]) if model is not None else []
        nearest = difflib.get_close_matches(path[-1], known, n=1)
        text = "unknown field" + (f"; did you mean {nearest[0]}?" if nearest else "")
    elif kind == "missing":
        text = "is required"
    text = text.removeprefix("Value error, ").replace("Input should", "should")
    return {"param": param or None, "message": f"{param}: {text}" if param else text}


def _fields_at(annotation: Any, path: Sequence[str]) -> list[str]:
    """Names of the fields of the model that a path of fields, indexes and keys leads to."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return list(annotation.model_fields)
        field = annotation.model_fields.get(path[0])
        return [] if field is None else _fields_at(field.annotation, path[1:])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _fields_at(arguments[0], path)
    if origin in (Union, UnionType):
        return next((found for member in arguments if (found := _fields_at(member, path))), [])
    if origin is tuple and path:
        return _fields_at(arguments[0], path[1:])
    if origin is dict and path:
        return _fields_at(arguments[1], path[1:])
    return []


def install_error_handlers(app: Quart) -> None:
    """Answer every error of the app in the gateway's shape, and put ``x-request-id`` on every answer."""

    @app.errorhandler(GatewayError)
    async def _gateway_error(error: GatewayError) -> Response:
        if isinstance(error, InternalError):
            _log(error)
        return _response(error)

    @app.errorhandler(ValidationError)
    async def _validation_error(error: ValidationError) -> Response:
        return _response(invalid_field(error))

    @app.errorhandler(HTTPException)
    async def _http_error(error: HTTPException) -> Response:
        return _response(_from_http(error))

    @app.errorhandler(Exception)
    async def _bug(error: Exception) -> Response:
        _log(error)
        return _response(InternalError())

    @app.after_request
    async def _identify(response: Response) -> Response:
        response.headers["x-request-id"] = current_request_id()
        response.headers["x-content-type-options"] = "nosniff"
        return response


def _log(error: Exception) -> None:
    # not what it says: that may be what the client has sent
    logger.error("request %s failed: %s", current_request_id(), type(error).__qualname__, exc_info=error)


def _response(error: GatewayError) -> Response:
    status, headers, body = error_reply(error, current_request_id())
    return Response(body, status, [(name.decode(), value.decode()) for name, value in headers])  # type: ignore[arg-type]


def _from_http(error: HTTPException) -> GatewayError:
    status = error.code or 500
    if isinstance(error, WrongMethod):
        return MethodNotAllowed(headers=[("allow", ", ".join(sorted(error.valid_methods or ())))], param="method")
    if status == 404:
        return NotFound("There is no such path.")
    if status in _ERRORS:
        return _ERRORS[status]()
    return BadRequest() if 400 <= status < 500 else InternalError()


# Health


def health_blueprint(
    check_store: Callable[[], Awaitable[None]],
    draining: Callable[[], bool],
    *,
    deadline_s: float = READY_DEADLINE_S,
    name: str = "health",
) -> Blueprint:
    """``/health/live`` answers 200 as long as the process serves, ``/health/ready`` and ``/health`` while it takes requests.

    Not ready is 503: `Draining` while ``draining()``, `StoreUnavailable` when ``check_store`` raises it or takes longer than
    ``deadline_s``.
    """
    blueprint = Blueprint(name, __name__)

    @blueprint.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "ok"}

    @blueprint.get("/health/ready")
    @blueprint.get("/health", endpoint="health")
    async def ready() -> dict[str, str]:
        if draining():
            raise Draining
        try:
            async with asyncio.timeout(deadline_s):
                await check_store()
        except TimeoutError:
            raise StoreUnavailable from None
        return {"status": "ok"}

    @blueprint.after_request
    async def now_and_never_again(response: Response) -> Response:
        response.headers["cache-control"] = "no-store"
        return response

    return blueprint
