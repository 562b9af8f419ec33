"""Everything the gateway answers with an error: one class per public code.

The HTTP status of a code is written here and nowhere else. A raiser passes facts; the default message of the class
says the rest. The JSON shape is the one OpenAI's clients parse (https://platform.openai.com/docs/guides/error-codes):
``{"error": {"message", "type", "param", "code", "request_id"}}``.
"""

from gateway.errors.base import (
    ConfigurationError,
    GatewayError,
    InternalError,
)
from gateway.errors.failures import (
    BreakerOpen,
    Draining,
    Overloaded,
    PluginFailed,
    PluginFailedOnReply,
    StoreAway,
    StoreUnavailable,
    UpstreamAuthFailed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.errors.refusals import (
    AmbiguousCredentials,
    BadRequest,
    BodyTooLarge,
    BudgetExceeded,
    EditConflict,
    HeadersTooLarge,
    IdempotencyConflict,
    InvalidApiKey,
    InvalidField,
    InvalidHeader,
    InvalidJson,
    InvalidPath,
    InvalidRequest,
    LimitExceeded,
    MethodNotAllowed,
    MissingHost,
    NoRoute,
    NotAllowed,
    NotFound,
    RateLimited,
    RequestTimeout,
    SubdomainTaken,
    TenantSuspended,
    TooManyConcurrent,
    UnknownModel,
    UnknownTenant,
    UnsupportedMediaType,
    UriTooLong,
    WebSocketNotSupported,
)

__all__ = [
    "AmbiguousCredentials",
    "BadRequest",
    "BodyTooLarge",
    "BreakerOpen",
    "BudgetExceeded",
    "ConfigurationError",
    "Draining",
    "EditConflict",
    "GatewayError",
    "HeadersTooLarge",
    "IdempotencyConflict",
    "InternalError",
    "InvalidApiKey",
    "InvalidField",
    "InvalidHeader",
    "InvalidJson",
    "InvalidPath",
    "InvalidRequest",
    "LimitExceeded",
    "MethodNotAllowed",
    "MissingHost",
    "NoRoute",
    "NotAllowed",
    "NotFound",
    "Overloaded",
    "PluginFailed",
    "PluginFailedOnReply",
    "RateLimited",
    "RequestTimeout",
    "StoreAway",
    "StoreUnavailable",
    "SubdomainTaken",
    "TenantSuspended",
    "TooManyConcurrent",
    "UnknownModel",
    "UnknownTenant",
    "UnsupportedMediaType",
    "UpstreamAuthFailed",
    "UpstreamTimeout",
    "UpstreamUnreachable",
    "UriTooLong",
    "WebSocketNotSupported",
    "public_errors",
]


def public_errors() -> list[type[GatewayError]]:
    """Every class above that has a code of its own, the nearest to `GatewayError` first."""
    found: list[type[GatewayError]] = []
    seen: set[str] = set()
    pending = [GatewayError]
    while pending:
        cls = pending.pop(0)
        if cls.code not in seen:
            seen.add(cls.code)
            found.append(cls)
        pending.extend(cls.__subclasses__())
    return found
