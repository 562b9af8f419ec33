"""Durations and sizes as people write them: ``"250ms"``, ``"1m"``, ``"1h30m"``, ``"10MB"``."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
BYTES = {"": 1, "b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

_PART = re.compile(r"([0-9]{1,15})(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]{1,15})\s*([a-z]{0,3})")


def parse_duration_ms(value: object) -> int:
    """Milliseconds of ``"1h30m"`` and the like; a bare number counts seconds. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("a duration is a number of seconds or text such as 30s, 1m or 1h30m")
    if isinstance(value, int):
        return value * 1_000
    if isinstance(value, float):
        if not abs(value) < 1e12:
            raise ValueError("a duration must be a finite number of seconds")
        return round(value * 1_000)
    text = str(value).strip().lower()
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text) * 1_000
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("a duration is a number of seconds or text such as 30s, 1m or 1h30m")
    return sum(int(number) * MILLISECONDS[unit] for number, unit in parts)


def parse_size_bytes(value: object) -> int:
    """Bytes of ``"10MB"`` and the like; a bare number counts bytes. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("a size is a number of bytes or text such as 64KiB or 10MB")
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(str(value).strip().lower())
    if match is None or match[2] not in BYTES:
        raise ValueError("a size is a number of bytes or text such as 64KiB or 10MB")
    return int(match[1]) * BYTES[match[2]]


def format_duration_ms(duration_ms: int) -> str:
    """The shortest exact spelling: ``60000`` is ``"1m"``, ``90000`` is ``"1m30s"``, ``0`` is ``"0s"``."""
    if duration_ms <= 0:
        return "0s"
    parts = []
    rest = duration_ms
    for unit, size in sorted(MILLISECONDS.items(), key=lambda item: -item[1]):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


DurationMs = Annotated[
    int,
    BeforeValidator(parse_duration_ms),
    # a stored document is read back, and there a bare number would count seconds
    PlainSerializer(format_duration_ms, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$|^[0-9]+$"}],
            "description": "seconds, or text such as 30s, 1m, 1h30m",
            "examples": ["1m"],
        }
    ),
]
"""A duration in milliseconds, written as seconds or as text."""

SizeBytes = Annotated[
    int,
    BeforeValidator(parse_size_bytes),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}],
            "description": "bytes, or text such as 64KiB, 10MB",
            "examples": ["10MB"],
        }
    ),
]
"""A size in bytes, written as bytes or as text."""
