"""Checks bodies: type, size, fields, JSON Schema, and patterns that no text in them may match.

Whatever is checked inside a body is read as strict JSON, and what was read is what is forwarded.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from gateway.plugin import (
    Exchange,
    GatewayError,
    Headers,
    InvalidJson,
    JsonSchema,
    Pattern,
    PatternSet,
    Plugin,
    Reject,
    Reply,
    SchemaCheck,
    Settings,
    SizeBytes,
    Stage,
    check_alike,
    check_json_type,
    parse_json,
    texts_of,
)

BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
STREAM = "text/event-stream"
MAX_INLINE_WORK = 10_000_000
MAX_PATTERN_WORK = 2_000_000_000
"""Instructions of the patterns times characters of the text; seconds on another thread, where the deadline can cut it."""

_MEDIA_TYPE = re.compile(r"(?:\*|[a-z0-9!#$&^_.+-]{1,127})/(?:\*|[a-z0-9!#$&^_.+-]{1,127})")
_BODY_DIGESTS = ("etag", "content-md5", "digest", "content-digest", "repr-digest")


def _allowed_type(value: str) -> str:
    allowed = value.strip().lower()
    if not _MEDIA_TYPE.fullmatch(allowed) or (allowed.startswith("*/") and allowed != "*/*"):
        raise ValueError("must be a media type without parameters, such as application/json or image/*")
    return allowed


def _usable_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    PatternSet(patterns)
    return patterns


MediaType = Annotated[str, AfterValidator(_allowed_type)]
FieldNames = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(min_length=1, max_length=500)]
Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1, max_length=50, fail_fast=True), AfterValidator(_usable_patterns)]


class ContentValidatorSettings(Settings):
    """Settings of `content_validator`. At least one check is needed."""

    allowed_types: Annotated[tuple[MediaType, ...], Field(min_length=1, max_length=100)] | None = Field(
        None, description="Media types a body may have; parameters are ignored, `image/*` stands for all of a kind."
    )
    max_size: Annotated[SizeBytes, Field(ge=1)] | None = Field(None, description="Longest body, as transferred.")
    fields: FieldNames | None = Field(None, description="Forward only these fields of the top-level object; drop all others.")
    required_fields: FieldNames | None = Field(None, description="Fields the top-level object must have.")
    json_schema: JsonSchema | None = Field(
        None, description="JSON Schema (draft 6 or later) of the body. `$ref` only within it and not recursive."
    )
    blocked_patterns: Patterns | None = Field(
        None, description="Regular expressions (RE2) that must match nowhere in any text or key of the body."
    )
    skip_streams: bool = Field(
        False, description="Let replies of type text/event-stream pass unchecked instead of refusing them with 502."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        checks = (self.allowed_types, self.max_size, self.fields, self.required_fields, self.json_schema, self.blocked_patterns)
        if all(check is None for check in checks):
            raise ValueError("nothing is checked; set at least one of the other fields")
        dropped = [name for name in self.required_fields or () if self.fields is not None and name not in self.fields]
        if dropped:
            raise ValueError(f"required_fields: {dropped[0]!r} is not among fields, so it would be dropped")
        return self


class _Checks:
    """The checks of one direction. They refuse as for a request; what a reply did wrong, the plugin keeps to itself."""

    def __init__(self, settings: ContentValidatorSettings) -> None:
        self.settings = settings
        self.patterns = PatternSet(settings.blocked_patterns or ())
        self.schema = None if settings.json_schema is None else SchemaCheck(settings.json_schema)
        self.demands = bool(settings.required_fields or self.schema)
        self.shapes = bool(settings.fields or self.demands)
        self.reads = self.shapes or bool(self.patterns)
        self.needs_body = self.reads or settings.max_size is not None

    def head(self, headers: Headers) -> None:
        """Check the media type."""
        allowed = self.settings.allowed_types
        kind = media_type(headers)
        if allowed is not None and not {kind, f"{kind.partition('/')[0]}/*", "*/*" if kind else "none"} & set(allowed):
            raise Reject(415, "unsupported_media_type", "The body's content-type is not allowed here.", param="content-type")

    def size(self, body: bytes) -> None:
        """Check the length."""
        if self.settings.max_size is not None and len(body) > self.settings.max_size:
            raise Reject(413, "body_too_large", f"The body is longer than {self.settings.max_size} bytes.")

    def encoding(self, headers: Headers) -> None:
        """A compressed body cannot be read; the upstream could, so it must not pass."""
        if any(value.strip().lower() not in ("", "identity") for value in headers.get_all("content-encoding")):
            message = "The body is compressed; it can only be checked without content-encoding."
            raise Reject(415, "unsupported_content_encoding", message, param="content-encoding")

    def names(self, value: Any) -> None:
        """Keys that the target may take for the same: only one of them would be checked."""
        pending = [value] if self.shapes and isinstance(value, dict | list) else []
        while pending:
            node = pending.pop()
            if isinstance(node, dict):
                check_alike(node)
            children = node.values() if isinstance(node, dict) else node
            pending.extend(child for child in children if isinstance(child, dict | list))

    def empty(self) -> None:
        """Refuse a body that is missing altogether."""
        if self.settings.required_fields:
            name = self.settings.required_fields[0]
            raise Reject(400, "missing_field", f"The field {name} is missing.", param=name)
        raise Reject(400, "schema_mismatch", "The body is empty.", param="")

    def shape(self, value: Any, body: bytes) -> Any:
        """The value as it may go on. The same object if nothing was dropped."""
        kept = value
        if self.settings.fields is not None or self.settings.required_fields is not None:
            if not isinstance(value, dict):
                raise Reject(400, "schema_mismatch", "The body must be a JSON object.", param="")
            wanted = value.keys() if self.settings.fields is None else set(self.settings.fields)
            kept = value if value.keys() <= wanted else {name: value[name] for name in value if name in wanted}
        for name in self.settings.required_fields or ():
            if name not in kept:
                raise Reject(400, "missing_field", f"The field {name} is missing.", param=name)
        mismatch = None if self.schema is None else self.schema.mismatch(kept, body)
        if mismatch is not None:
            raise Reject(400, "schema_mismatch", mismatch.message, param=mismatch.pointer)
        return kept

    async def text(self, texts: set[str]) -> None:
        """Check against the blocked patterns."""
        work = self.patterns.cost * sum(map(len, texts))
        if work > MAX_PATTERN_WORK:
            raise Reject(413, "body_too_large", "The body has too much text to be checked for blocked patterns.")
        # RE2 lets other threads run, so that a slow pattern does not hold up other requests
        blocked = await asyncio.to_thread(self._blocked, texts) if work > MAX_INLINE_WORK else self._blocked(texts)
        if blocked:
            raise Reject(403, "blocked_content", "The body contains text that is blocked here.")

    def _blocked(self, texts: set[str]) -> bool:
        return any(self.patterns.first_match(text) is not None for text in texts)


class ContentValidator(Plugin[ContentValidatorSettings]):
    """Checks bodies of requests and replies: type, size, fields, JSON Schema and blocked patterns.

    With stage ``pre_request`` or ``pre_response`` an entry checks that direction. Without a stage it checks requests, and
    replies for ``blocked_patterns`` only: the other settings describe what one direction looks like.
    """

    name = "content_validator"
    dry_run = True

    def prepare(self) -> None:
        """Compile the checks of each direction."""
        settings = self.settings
        self._request = None if self.stage is Stage.PRE_RESPONSE else _Checks(settings)
        self._reply = _Checks(settings) if self.stage is Stage.PRE_RESPONSE else None
        if self.stage is None and settings.blocked_patterns is not None:
            self._reply = _Checks(
                ContentValidatorSettings(blocked_patterns=settings.blocked_patterns, skip_streams=settings.skip_streams)
            )

    @property
    def needs_request_body(self) -> bool:
        """Only ``allowed_types`` can be checked without the body: a length that is not declared must be measured."""
        return self._request is not None and self._request.needs_body

    @property
    def needs_reply_body(self) -> bool:
        """The same for replies."""
        return self._reply is not None and self._reply.needs_body

    async def pre_request(self, exchange: Exchange) -> None:
        """Refuse with 400, 403, 413 or 415."""
        request, checks = exchange.request, self._request
        if checks is None:
            return
        if not checks.needs_body:
            if request.has_body:
                checks.head(request.headers)
            return
        if request.body is None and request.method not in BODILESS:
            raise RuntimeError("the body of the request was not read")
        if not request.body:
            if checks.demands and request.method not in BODILESS:
                checks.empty()
            return
        checks.head(request.headers)
        checks.size(request.body)
        if not checks.reads:
            return
        checks.encoding(request.headers)
        check_json_type(request.headers.get_all("content-type"))
        value = request.json()
        checks.names(value)
        kept = checks.shape(value, request.body)
        await checks.text(texts_of(kept))
        if kept is not value:
            request.body = _encoded(kept, request.headers)

    async def pre_response(self, exchange: Exchange) -> None:
        """Refuse with 502, without a word on the reply's content."""
        reply, checks = exchange.reply, self._reply
        if reply is None or checks is None or exchange.request.method == "HEAD" or reply.status in (204, 304):
            return
        if media_type(reply.headers) == STREAM and self.settings.skip_streams:
            return
        try:
            await _check_reply(checks, reply)
        except GatewayError:
            raise Reject(502, "invalid_upstream_reply", "The target's reply is not acceptable on this route.") from None


async def _check_reply(checks: _Checks, reply: Reply) -> None:
    succeeded = 200 <= reply.status < 300
    if succeeded:
        checks.head(reply.headers)
    if not checks.needs_body:
        return
    if media_type(reply.headers) == STREAM:
        raise Reject(502, "stream", "A stream cannot be checked before it is sent.")
    if reply.body is None:
        raise RuntimeError("the body of the reply was not read")
    checks.size(reply.body)
    shapes = succeeded and checks.shapes
    if not reply.body:
        if shapes and checks.demands:
            checks.empty()
        return
    if not shapes and not checks.patterns:
        return
    checks.encoding(reply.headers)
    try:
        value = parse_json(reply.body)
    except InvalidJson:
        if shapes or media_type(reply.headers).endswith(("/json", "+json")):
            raise
        await checks.text(texts_of(_decoded(reply.body)))
        return
    kept = checks.shape(value, reply.body) if shapes else value
    await checks.text(texts_of(kept))
    if kept is not value:
        reply.body = _encoded(kept, reply.headers)


def media_type(headers: Headers) -> str:
    """Type and subtype in lower case; empty if there is none, or more than one."""
    given = headers.get_all("content-type")
    found = given[0].partition(";")[0].strip().lower() if len(given) == 1 else ""
    return found if _MEDIA_TYPE.fullmatch(found) else ""


def _encoded(value: Any, headers: Headers) -> bytes:
    for name in _BODY_DIGESTS:
        headers.remove(name)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise Reject(502, "not_text", "The body is neither JSON nor text.") from None
