"""What a request asks of the demo: its switches, its credentials, its body; and the errors that answer a wrong one."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

from werkzeug.datastructures import Headers

from gateway.demo_upstream.text import text_of

MAX_NUMBER = 1_000_000
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """How the demo behaves unless a request switches it.

    With an ``api_key``, all but ``/health`` wants ``Authorization: Bearer`` and the key; ``/v1/messages`` also takes it in
    ``x-api-key``, which is what Anthropic's SDK sends.
    """

    api_key: str | None = field(default=None, repr=False)
    chunk_delay_ms: int = 20
    latency_ms: int = 0


class DemoError(Exception):
    """An answer with an error status, in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.error = {"message": message, "type": kind, "param": param, "code": code}


def refuse(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> NoReturn:
    """Raise a DemoError."""
    raise DemoError(status, message, param=param, code=code)


@dataclass(frozen=True, slots=True)
class Switches:
    """The ``x-demo-…`` headers of a request, over the settings."""

    latency_ms: int
    chunk_delay_ms: int
    status: int | None
    chunks: int | None
    cut_after: int | None

    @classmethod
    def of(cls, headers: Headers, settings: DemoSettings) -> Switches:
        """Read them. Raises DemoError on a value that is no number."""

        def number(name: str, low: int = 0, high: int = MAX_NUMBER) -> int | None:
            text = headers.get(name)
            if text is None:
                return None
            if not (text.isascii() and text.isdigit() and len(text) <= 7 and low <= int(text) <= high):
                refuse(f"{name} must be a whole number from {low} to {high}.", param=name)
            return int(text)

        latency_ms, chunk_delay_ms = number("x-demo-latency-ms"), number("x-demo-chunk-delay-ms")
        return cls(
            latency_ms=settings.latency_ms if latency_ms is None else latency_ms,
            chunk_delay_ms=settings.chunk_delay_ms if chunk_delay_ms is None else chunk_delay_ms,
            status=number("x-demo-status", 400, 599),
            chunks=number("x-demo-chunks", 1),
            cut_after=number("x-demo-cut-after"),
        )


def authenticate(headers: Headers, path: str, api_key: str) -> None:
    """Raise DemoError unless the request carries the key."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = headers.get("x-api-key", "") if path == "/v1/messages" else ""
    if not hmac.compare_digest(given.strip().encode(), api_key.encode()):
        refuse("Incorrect API key provided.", code="invalid_api_key", status=401)


class Asked:
    """The JSON object of a request, read field by field; a wrong field is a 400 that names it."""

    def __init__(self, body: str | bytes) -> None:
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            refuse("We could not parse the JSON body of your request.", code="invalid_json")
        if not isinstance(fields, dict):
            refuse("The body must be a JSON object.", code="invalid_json")
        self.fields: dict[str, Any] = fields
        self.model: str = self.required("model", str)

    @property
    def stream(self) -> bool:
        """Whether the reply is wanted as server-sent events."""
        return self.fields.get("stream") is True

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        options = self.fields.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    def required(self, name: str, *types: type) -> Any:
        """Return a field that must be there, of one of these types, and not empty."""
        value = self.fields.get(name)
        if not isinstance(value, types) or isinstance(value, bool) or not value:
            refuse(f"Missing or invalid parameter: '{name}'.", param=name, code="missing_required_parameter")
        return value

    def number(self, name: str, high: int = MAX_NUMBER) -> int | None:
        """Return a whole number from 1, if it is there."""
        value = self.fields.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= high):
            refuse(f"'{name}' must be a whole number from 1 to {high}.", param=name, code="invalid_value")
        return value

    def conversation(self) -> str:
        """Return the text of all messages, each after its role."""
        messages = self.required("messages", list)
        if not all(isinstance(message, dict) for message in messages):
            refuse("Each message must be an object.", param="messages", code="invalid_type")
        system = text_of(self.fields.get("system"))
        lines = [f"{message.get('role')}: {text_of(message.get('content'))}" for message in messages]
        return "\n".join([f"system: {system}", *lines] if system else lines)

    def inputs(self, name: str) -> list[str]:
        """Return one text or several; tokens, alone or in lists, count as text."""
        value = self.required(name, str, list)
        if isinstance(value, str):
            return [value]
        if all(isinstance(item, int) for item in value):
            return [" ".join(map(str, value))]
        if not all(isinstance(item, str | list) and item for item in value):
            refuse(f"'{name}' must be text, tokens, or a list of either.", param=name, code="invalid_type")
        return [item if isinstance(item, str) else " ".join(map(str, item)) for item in value]
