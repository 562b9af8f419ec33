"""What a request carries: its credentials and its body, read field by field."""

from __future__ import annotations

import hmac
import json
from copy import copy
from typing import Any, Self

from werkzeug.datastructures import Headers

from gateway.demo_upstream.errors import refuse
from gateway.demo_upstream.switches import MAX_NUMBER
from gateway.demo_upstream.text import text_of


def authenticate(headers: Headers, path: str, api_key: str) -> None:
    """Raise DemoError unless the request carries the key."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        own_name = "x-goog-api-key" if path.startswith("/v1beta/") else "x-api-key" if path == "/v1/messages" else None
        given = headers.get(own_name, "") if own_name is not None else ""
    if not hmac.compare_digest(given.strip().encode(), api_key.encode()):
        refuse("Incorrect API key provided.", code="invalid_api_key", status=401)


class Asked:
    """The JSON object of a request, read field by field; a wrong field is a 400 that names it."""

    def __init__(self, body: str | bytes, model: str | None = None) -> None:
        """``model`` is given where the path names it and not the body."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            refuse("We could not parse the JSON body of your request.", code="invalid_json")
        if not isinstance(fields, dict):
            refuse("The body must be a JSON object.", code="invalid_json")
        self.fields: dict[str, Any] = fields
        self.model: str = self.required("model", str) if model is None else model

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

    def section(self, name: str) -> Self:
        """Return an object within, to be read in the same way; an empty one if it is not there."""
        fields = self.fields.get(name)
        if not isinstance(fields, dict | None):
            refuse(f"'{name}' must be an object.", param=name, code="invalid_type")
        section = copy(self)
        section.fields = fields or {}
        return section

    def conversation(self, name: str, instructions: Any = None, *, content: str = "content") -> str:
        """Return the text of all messages, one line each, after its role; that of the instructions comes first.

        ``content`` is where a message has its text.
        """
        messages = self.required(name, list)
        if not all(isinstance(message, dict) for message in messages):
            refuse("Each message must be an object.", param=name, code="invalid_type")
        system = text_of(instructions)
        lines = [f"{message.get('role') or 'user'}: {text_of(message.get(content))}" for message in messages]
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
