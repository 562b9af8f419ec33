"""Reading of JSON that others wrote: a value of an unexpected form is as good as none, and never an error."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.formats.endpoint import Fields

UNREADABLE = (ValueError, RecursionError)
"""What msgspec raises on bytes that are no JSON or no such value. Its own errors and those of UTF-8 are ValueErrors."""

MOST = 10**9
"""No request counts more of anything. A greater number is nonsense and as good as none: nobody is to pay for a typing error."""

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_decode = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def repaired(text: bytes) -> bytes:
    """The JSON with what no text can hold, half surrogate pairs and wrong UTF-8, replaced by U+FFFD: msgspec refuses both."""
    text = text.decode("utf-8", "replace").encode()
    return _ESCAPE.sub(lambda match: b"\\ufffd" if match[1] else match[0], text)


def value_of(raw: bytes | msgspec.Raw | None) -> Any:
    """The JSON value; None if there is none that can be read."""
    if raw is None:
        return None
    try:
        return _decode(raw)
    except UNREADABLE:
        pass
    try:
        return _decode(repaired(bytes(raw)))
    except UNREADABLE:
        return None


def members_of(raw: bytes | None) -> dict[str, bytes] | None:
    """The members of a nested object, each as it stood; None if it is none."""
    if raw is None:
        return None
    try:
        return {name: bytes(value) for name, value in _decode_members(raw).items()}
    except UNREADABLE:
        return None


def whole_number(value: Any) -> int | None:
    """A count. Providers take ``16.0``, and some ``"16"`` (JSON of Protocol Buffers writes 64 bits so); None for all else."""
    if type(value) is int or value is None:
        return value if value is not None and 0 <= value <= MOST else None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) <= 10 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST or value != int(value):
        return None
    return int(value)


def number_in(fields: Fields, *names: str) -> int | None:
    """The count in the first of these fields that has one."""
    for name in names:
        number = whole_number(value_of(fields.get(name)))
        if number is not None:
            return number
    return None


def string_in(fields: Fields, name: str) -> str:
    """The text of a field; empty if it has none."""
    value = value_of(fields.get(name))
    return value if isinstance(value, str) else ""


def flag_in(fields: Fields, name: str) -> bool:
    """Whether a field says true."""
    return fields.get(name) == b"true"


def raw_texts(fields: Fields, *names: str) -> list[str]:
    """Definitions that a model reads in some form of the provider's: their JSON, for those that are there."""
    return [raw.decode("utf-8", "replace") for name in names if (raw := fields.get(name)) and raw != b"null"]
