"""One request and its reply, as plugins see them. Nothing here belongs to a web framework or to the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gateway.errors import GatewayError
from gateway.formats import Usage
from gateway.plugin.header_list import Headers
from gateway.plugin.strict_json import parse_json

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Reject(GatewayError):
    """Raised by a plugin to refuse an exchange: an HTTP status (400 to 599), a code for programs, a message for people."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        if not 400 <= status <= 599:
            raise ValueError("a rejection has a status of 400 to 599")
        super().__init__(message, param=param, headers=headers, details=details)
        self.status = status
        self.code = code
        self.type = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """The tenant of an exchange."""

    id: str
    name: str
    subdomain: str
    tier: str


@dataclass(frozen=True, slots=True)
class ApiKeyInfo:
    """The key that was presented; never the secret."""

    id: str
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """The rule that matched."""

    id: str
    path: str
    target: str


class LimitState(NamedTuple):
    """A limit after the decision. Times in milliseconds.

    ``retry_after_ms`` is 0 unless the limit refuses; -1 says that waiting cannot help, -2 that it
    depends on requests in flight. ``reset_ms`` is when everything
    would be available again without further requests. ``entry`` is the chain entry that declared the limit, -1 for the
    key's own.
    """

    name: str
    level: tuple[str, ...]
    unit: str
    limit: int
    window_seconds: int
    used: int
    remaining: int
    retry_after_ms: int
    reset_ms: int
    refuses: bool
    shadow: bool
    kind: str
    entry: int


@dataclass(slots=True)
class Request:
    """The client's request. ``path`` and ``query`` are as on the wire, percent-encoded.

    ``body`` is None unless a plugin of the chain needs it; assigning to it replaces what is forwarded. ``has_body`` says
    whether the client sends one at all, also where it is not read. Neither the key nor fields that frame the body are among
    ``headers``.
    """

    method: str
    path: str
    query: str = field(repr=False)  # what clients send does not get into a log by chance
    headers: Headers
    client_ip: str
    body: bytes | None = field(default=None, repr=False)
    has_body: bool = False
    _parsed: tuple[bytes, Any] | None = field(default=None, repr=False)

    def json(self) -> Any:
        """The body as strict JSON, parsed once. Raises InvalidJson."""
        body = self.body or b""
        if self._parsed is None or self._parsed[0] is not body:
            self._parsed = (body, parse_json(body))
        return self._parsed[1]

    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 become replacement characters."""
        return (self.body or b"").decode("utf-8", "replace")


@dataclass(slots=True)
class Reply:
    """The upstream's reply. ``body`` is None unless a plugin of the chain needs it."""

    status: int
    headers: Headers
    body: bytes | None = field(default=None, repr=False)

    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 become replacement characters."""
        return (self.body or b"").decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply made by a plugin instead of the target."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(slots=True)
class Timings:
    """Milliseconds; None where the exchange did not come that far."""

    admission_ms: float | None = None
    upstream_ms: float | None = None
    total_ms: float | None = None


@dataclass(slots=True)
class Exchange:
    """The only thing that travels through a chain. ``notes`` is for plugins to leave each other values.

    ``costs`` is for what a request turned out to cost, by the name of a limit: until the reply is sent, a plugin that declares
    limits may correct here what was charged before the first plugin ran. ``usage`` and ``cost_nano_usd`` are what a model has
    used, once that is known: in `post_response`.
    """

    request_id: str
    request: Request
    tenant: TenantInfo
    api_key: ApiKeyInfo
    rule: RuleInfo
    limits: Sequence[LimitState] = ()
    reply: Reply | None = None
    answer: Answer | None = None
    notes: dict[str, Any] = field(default_factory=dict, repr=False)
    costs: dict[str, int] = field(default_factory=dict)
    usage: Usage | None = None
    cost_nano_usd: int | None = None
    timings: Timings = field(default_factory=Timings)
