"""Where a tenant's requests go, and what happens to them on the way."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gateway.model_price import Prices
from gateway.models.base import DisplayName, Document, Metadata
from gateway.models.plugin_ref import PluginRef

MASK = "•••"
"""Stands for a stored secret in whatever is shown; sent back, it keeps the stored value."""

MAX_PATH = 1_024
PASSABLE = ("set-cookie", "alt-svc", "server")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_SEGMENTS = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)+")
_FORBIDDEN = re.compile(r"//|(^|/)(\.|%2e){1,2}(/|$)|%2f|%5c|%00", re.IGNORECASE)
_NOT_SETTABLE = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_PLAIN = frozenset(
    {
        "accept",
        "accept-language",
        "anthropic-beta",
        "anthropic-version",
        "cache-control",
        "content-type",
        "host",
        "openai-beta",
        "openai-organization",
        "openai-project",
        "user-agent",
    }
)


def is_plain_header(name: str) -> bool:
    """True for headers that are known to carry no secret: stored as they are and shown."""
    return name.lower() in _PLAIN


def _path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("must begin with /")
    if len(value) > MAX_PATH or not _SEGMENTS.fullmatch(value) or _FORBIDDEN.search(value):
        raise ValueError("must be a plain absolute path, without query, empty or dot segments, or encoded slashes")
    return value if value == "/" else value.rstrip("/")


def _methods(value: tuple[str, ...]) -> tuple[str, ...]:
    methods = tuple(dict.fromkeys(method.upper() for method in value))
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"{unknown[0]} is not one of {', '.join(METHODS)}")
    return methods


def _passed(value: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.lower() for name in value))
    unknown = [name for name in names if name not in PASSABLE]
    if unknown:
        raise ValueError(f"{unknown[0][:64]} is not one of {', '.join(PASSABLE)}")
    return names


def _headers(value: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    for name, text in value.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a header name")
        if name.lower() in _NOT_SETTABLE:
            raise ValueError(f"{name} is set by the gateway and cannot be set by a rule")
        if name.lower() in seen:
            raise ValueError(f"{name} is given twice")
        seen.add(name.lower())
        if text == MASK:
            continue
        if len(text) > 8_192 or not all(char == "\t" or " " <= char <= "~" for char in text):
            raise ValueError(f"the value of {name} must be printable ASCII of at most 8192 characters")
        if text != text.strip():
            raise ValueError(f"the value of {name} begins or ends with white space")
    return value


RulePath = Annotated[str, AfterValidator(_path)]
Methods = Annotated[tuple[str, ...], AfterValidator(_methods)]
UpstreamHeaders = Annotated[dict[str, str], Field(max_length=50), AfterValidator(_headers)]
PassedHeaders = Annotated[tuple[str, ...], Field(max_length=20), AfterValidator(_passed)]
Chain = Annotated[tuple[PluginRef, ...], Field(max_length=50)]
Target = Annotated[str, Field(min_length=1, max_length=2_048)]
Retries = Annotated[int, Field(ge=0, le=5)]
RuleFormat = Literal["auto", "openai", "anthropic", "gemini", "none"]


class NewRule(Document):
    """What ``POST /tenants/{id}/rules`` takes."""

    name: DisplayName | None = None
    path: RulePath = Field(description="Prefix, on whole segments: /v1/chat matches /v1/chat/completions, not /v1/chatter.")
    target: Target = Field(description="Where matching requests go: scheme, host, port and optionally a path.")
    methods: Methods = Field((), description="Empty means all.")
    strip_path: bool = Field(False, description="Remove the matched prefix before appending to the target's path.")
    preserve_host: bool = Field(False, description="Send the client's Host header instead of the target's.")
    headers: UpstreamHeaders = Field(default_factory=dict, description="Set on the upstream request; stored encrypted.")
    retry_attempts: Retries | None = Field(None, description="Further tries to connect; unset means the configuration's.")
    pass_response_headers: PassedHeaders = Field(
        (), description="Upstream headers to let through that are otherwise removed: set-cookie, alt-svc, server."
    )
    format: RuleFormat = Field(
        "auto",
        description="Whose API the target speaks, so that tokens and cost are known. `auto` tells by the path; another path is"
        " passed on untouched, as everything is with `none`.",
    )
    prices: Prices = Field(
        default_factory=dict, description="What models cost on this rule, by name or beginning and `*`; wins over the tenant's."
    )
    ask_for_usage: bool = Field(
        True,
        description="Ask OpenAI-compatible targets for the usage of streams where the client does not (`stream_options`), and"
        " hide it from the client. False for a target that refuses it: then its streams are counted here.",
    )
    usage_comment: bool = Field(
        False, description="End event streams with a comment that tells tokens and cost, which headers tell of other replies."
    )
    active: bool = Field(True, description="An inactive rule does not match.")
    plugin_chain: Chain = Field((), description="Plugins of this rule, besides the tenant's required ones.")
    metadata: Metadata = Field(default_factory=dict, description="Text of your own.")


class Rule(NewRule):
    """A stored rule. Values of ``headers`` are sealed (`gateway.secrets`) unless the header is known to hold no secret."""

    read_only = frozenset({"id", "created_at", "updated_at"})

    id: str
    created_at: str
    updated_at: str
    headers: dict[str, str]

    def public(self) -> dict[str, Any]:
        """The JSON object the admin API answers: header values that may be secrets are masked."""
        shown = self.model_dump(mode="json")
        shown["headers"] = {name: value if is_plain_header(name) else MASK for name, value in self.headers.items()}
        return shown
