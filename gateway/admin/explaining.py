"""What ``explain`` takes and answers, as models."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, IPvAnyAddress

from gateway.admin.limit_uses import DeclaredBy
from gateway.errors import InvalidField
from gateway.headers import CREDENTIALS, is_field
from gateway.models import Document, LimitKind, OnError, Period, Stage, Unit
from gateway.policy import BODILESS, Description

MAX_FIELDS = 64
MAX_VALUE = 8 << 10

_TAKEN = frozenset(name.decode() for name in CREDENTIALS)
_FRAMING = frozenset({"host", "transfer-encoding"})


def _on_the_wire(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("must begin with /")
    if not value.isascii():
        raise ValueError("must be percent-encoded, as it is sent")
    return value


def _fields(value: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in value.items():
        lowered = name.lower()
        if lowered in _TAKEN:
            raise ValueError(f"{lowered} is a credential, which is not taken here; name the key by api_key_id")
        if lowered in _FRAMING:
            raise ValueError(f"{lowered} cannot be described: tenant and body say it")
        if lowered in found:
            raise ValueError("one name is given twice")
        try:
            sendable = is_field((lowered.encode("latin-1"), text.encode("latin-1")))
        except UnicodeEncodeError:
            sendable = False
        if not sendable or len(text) > MAX_VALUE:
            raise ValueError(f"one that cannot be sent, or is longer than {MAX_VALUE} bytes")
        if lowered == "content-length" and not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise ValueError("content-length is not a number")
        found[lowered] = text
    return found


class Tokens(Document):
    """What a request uses at most."""

    input: Annotated[int, Field(ge=0, le=10**9, description="Unset means none.")] | None = None
    output: Annotated[int, Field(ge=1, le=10**9, description="Unset means that the request sets no bound.")] | None = None


class ExplainRequest(Document):
    """A request to the proxy, described. What is null counts as not given."""

    method: Annotated[str, Field(pattern=r"^[A-Za-z]{1,32}$"), AfterValidator(str.upper)] = "POST"
    path: Annotated[str, AfterValidator(_on_the_wire)] = Field(
        description="Absolute and percent-encoded as it is sent, with the query if there is one."
    )
    headers: Annotated[dict[str, str], Field(max_length=MAX_FIELDS), AfterValidator(_fields)] = Field(
        default_factory=dict, description="What limits and plugins look at. Credentials are refused."
    )
    api_key_id: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Which of the tenant's keys is presented. Default: the key that calls; the operator must name one."
    )
    model: Annotated[str, Field(max_length=1_000)] | None = Field(
        None, description="What the body's `model` says; for when the body itself is not given."
    )
    client_ip: IPvAnyAddress | None = Field(None, description="The client's address. Default: that of the caller.")
    body: Any = Field(
        None,
        description="The JSON body, taken as compact JSON in UTF-8. Not given, it is unknown; GET, HEAD, DELETE, OPTIONS and"
        " requests with `content-length: 0` then have none.",
    )
    tokens: Tokens | None = Field(None, description="What the request uses at most, for when the body itself is not given.")

    def description(self, caller_ip: str) -> Description:
        """What the policy explains. Raises InvalidField if body and model contradict each other."""
        path, _, query = self.path.partition("?")
        tokens = self.tokens or Tokens()
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        client_ip = str(self.client_ip or caller_ip)
        if self.body is not None:
            named = self.body.get("model") if isinstance(self.body, dict) else None
            if self.model is not None and self.model != named:
                raise InvalidField("model: the body says something else", param="model")
            if self.tokens is not None:
                raise InvalidField("tokens: the body says that itself", param="tokens")
            if not any(name == b"content-type" for name, _ in headers):
                headers.append((b"content-type", b"application/json"))
            given = json.dumps(self.body, ensure_ascii=False, separators=(",", ":")).encode()
            model = named if isinstance(named, str) else None
            return Description(self.method, path, query, headers, client_ip, True, given, model)
        declared = self.headers.get("content-length")
        if self.model is not None:
            if declared is not None and int(declared) == 0:
                raise InvalidField("model: content-length says that there is no body", param="model")
            has_body = True
        else:
            has_body = self.method not in BODILESS if declared is None else int(declared) > 0
        body = None if has_body else b""
        return Description(
            self.method, path, query, headers, client_ip, has_body, body, self.model, tokens.input, tokens.output
        )


class ExplainedRequest(BaseModel):
    """The request as it was understood."""

    method: str
    path: str
    client_ip: str
    has_body: bool
    model: str | None
    tokens: Tokens | None


class ExplainedTenant(BaseModel):
    """The tenant."""

    id: str
    name: str
    subdomain: str
    tier: str
    status: Literal["active", "suspended"]


class ExplainedKey(BaseModel):
    """The key that is presented."""

    id: str
    name: str
    status: Literal["active", "revoked", "expired"]


class ExplainedRule(BaseModel):
    """The rule that matches."""

    id: str
    name: str | None
    path: str
    target: str


class ExplainedPlugin(BaseModel):
    """An entry of the chain, in the order in which they run."""

    name: str
    position: int = Field(description="From 0.")
    priority: int
    required: bool = Field(description="True for one of the tenant's required plugins.")
    stages: list[Stage] = Field(description="In which this entry runs.")
    on_error: OnError
    outcome: Literal["passes", "rejects", "answers", "not_run"] = Field(description="What it does before the target is asked.")
    reason: str | None


class ExplainedLimit(BaseModel):
    """A limit as it is now, before the request."""

    name: str
    kind: LimitKind = Field(description="How it counts.")
    level: list[str] = Field(description="What the count is kept for.")
    unit: Unit
    declared_by: DeclaredBy
    position: int | None = Field(
        description="Place of that plugin in the chain, where a refusal takes effect; null for a limit that stands before it."
    )
    cost: int | float = Field(description="What the request would be charged. Dollars of `usd`, as below.")
    limit: int | float
    window_ms: int | None
    period: Period | None
    time_zone: str | None = Field(description="In whose midnights the periods of a quota begin.")
    used: int | float
    remaining: int | float
    retry_after_ms: int | None = Field(
        description="0 unless it refuses; null if waiting cannot help, or depends on others in flight."
    )
    reset_ms: int = Field(description="Until all is available again without further requests.")
    shadow: bool
    refuses: bool = Field(description="Whether it has no room for the request; one in shadow only says so.")


class ExplainedAnswer(BaseModel):
    """What the client would get, as far as the gateway decides it."""

    outcome: Literal["forwarded", "refused", "answered"] = Field(description="`answered`: by a plugin, without the target.")
    status: int | None = Field(description="Null where the target decides.")
    code: str | None
    message: str | None
    headers: dict[str, str] = Field(description="Those of a refusal or answer and of the limits, as after this request.")
    body: Any = Field(description="Of a refusal, without `request_id`; of a plugin's answer, as text.")
    forwarded_to: str | None


class ExplainedExchange(BaseModel):
    """What would become of a request."""

    request: ExplainedRequest
    tenant: ExplainedTenant
    api_key: ExplainedKey
    rule: ExplainedRule | None = Field(description="Null if the request does not come that far.")
    plugins: list[ExplainedPlugin]
    limits: list[ExplainedLimit]
    answer: ExplainedAnswer
    certain: bool = Field(description="False if a plugin that was not run could still end the request.")
    why: str = Field(description="One sentence for people.")
