"""Answers 400 to 429: the client must change something, or wait."""

from __future__ import annotations

from typing import Any

from gateway.errors.base import GatewayError

# 400, 413, 415, 426, 431: the request is malformed and nothing was forwarded


class InvalidRequest(GatewayError):
    """Base of what the client must change."""

    status, code, type = 400, "bad_request", "invalid_request_error"
    default_message = "The request is malformed."


class BadRequest(InvalidRequest):
    """Malformed in a way that has no code of its own."""


class InvalidJson(InvalidRequest):
    """A body that must be JSON is not."""

    code = "invalid_json"
    default_message = "The body is not valid JSON."


class InvalidField(InvalidRequest):
    """A field of an admin request is unknown, missing or of the wrong form; ``param`` names it."""

    code = "invalid_field"
    default_message = "A field is not valid."


class MissingHost(InvalidRequest):
    """No usable Host header, or several authorities that disagree."""

    code = "invalid_host"
    default_message = "The Host header is missing or malformed."


class InvalidPath(InvalidRequest):
    """A path that could mean something else to the upstream than to the matcher."""

    code = "invalid_path"
    default_message = "The path contains a dot segment, a backslash, or an encoded slash, backslash or NUL."


class AmbiguousCredentials(InvalidRequest):
    """Two different credentials in one request."""

    code = "ambiguous_credentials"
    default_message = "The request carries two different keys."


class RequestTimeout(InvalidRequest):
    """The client paused for longer than ``limits.body_idle_timeout`` while it sent its body."""

    status, code = 408, "request_timeout"
    default_message = "The request body did not arrive in time."


class BodyTooLarge(InvalidRequest):
    """The body is longer than ``limits.max_body_bytes`` or a plugin's own limit."""

    status, code = 413, "body_too_large"
    default_message = "The body is too large."


class UriTooLong(InvalidRequest):
    """The request target is longer than 8 KiB."""

    status, code = 414, "uri_too_long"
    default_message = "The URL is too long."


class UnsupportedMediaType(InvalidRequest):
    """The admin API reads JSON only."""

    status, code = 415, "unsupported_media_type"
    default_message = "The body must be application/json."


class WebSocketNotSupported(InvalidRequest):
    """A WebSocket handshake reached the proxy."""

    status, code = 426, "websocket_not_supported"
    default_message = "WebSocket connections are not supported; use plain HTTP or server-sent events."


class InvalidHeader(InvalidRequest):
    """A header that the rule reads, such as one with the cost of a request, is not of the form it must have."""

    code = "invalid_header"
    default_message = "A header is not valid."


class UnknownModel(InvalidRequest):
    """Nobody knows what the model costs, and ``prices.unknown_model`` is ``refuse``."""

    code = "unknown_model"
    default_message = "The price of this model is not known."


class HeadersTooLarge(InvalidRequest):
    """More header bytes or fields than allowed."""

    status, code = 431, "headers_too_large"
    default_message = "The header block is too large."


# 401, 403


class InvalidApiKey(GatewayError):
    """Missing, unknown, revoked or expired: one answer for all four, so that none can be told from the others."""

    status, code, type = 401, "invalid_api_key", "authentication_error"
    default_message = "The API key is missing or not valid."

    def __init__(self, message: str | None = None, **facts: Any) -> None:
        facts.setdefault("headers", (("www-authenticate", 'Bearer realm="gateway"'),))
        super().__init__(message, **facts)


class TenantSuspended(GatewayError):
    """The tenant's status is ``suspended``."""

    status, code, type = 403, "tenant_suspended", "permission_error"
    default_message = "This tenant is suspended."


class NotAllowed(GatewayError):
    """The key is valid and may not do this."""

    status, code, type = 403, "not_allowed", "permission_error"
    default_message = "The API key may not do this."


# 404, 405, 409, 412


class NotFound(GatewayError):
    """No such object, or one of another tenant's."""

    status, code, type = 404, "not_found", "invalid_request_error"
    default_message = "There is no such object."


class UnknownTenant(GatewayError):
    """No tenant has this subdomain."""

    status, code, type = 404, "unknown_tenant", "invalid_request_error"
    default_message = "No tenant has this subdomain."


class NoRoute(GatewayError):
    """No active rule of the tenant matches the path."""

    status, code, type = 404, "no_route", "invalid_request_error"
    default_message = "No rule of this tenant matches the path."


class MethodNotAllowed(GatewayError):
    """The path is known, the method is not; ``Allow`` lists those that are."""

    status, code, type = 405, "method_not_allowed", "invalid_request_error"
    default_message = "The method is not allowed for this path."


class SubdomainTaken(GatewayError):
    """Another tenant has the subdomain."""

    status, code, type = 409, "subdomain_taken", "invalid_request_error"
    default_message = "Another tenant has this subdomain."


class IdempotencyConflict(GatewayError):
    """The ``Idempotency-Key`` was used for another request, or the first one still runs."""

    status, code, type = 409, "idempotency_conflict", "invalid_request_error"
    default_message = "This Idempotency-Key was used for another request."


class EditConflict(GatewayError):
    """``If-Match`` names a version that is no longer the current one."""

    status, code, type = 412, "precondition_failed", "invalid_request_error"
    default_message = "The object has changed since it was read."


# 429


class LimitExceeded(GatewayError):
    """Base of the three refusals by a limit; ``details["limits"]`` lists each limit that refuses."""

    status, code, type = 429, "rate_limited", "rate_limit_error"
    default_message = "A rate limit is spent."


class RateLimited(LimitExceeded):
    """A limit per window is spent."""


class BudgetExceeded(LimitExceeded):
    """A quota or budget of a calendar period is spent."""

    code = "budget_exceeded"
    default_message = "A quota is spent."


class TooManyConcurrent(LimitExceeded):
    """Too many requests are in flight."""

    code = "too_many_concurrent"
    default_message = "Too many requests are in flight."
