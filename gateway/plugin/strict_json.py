"""JSON read so that no other reader can understand the same bytes differently."""

from __future__ import annotations

import json
import math
from typing import Any

from gateway.errors import InvalidJson

MAX_DEPTH = 64
MAX_KEYS = 10_000


def parse_json(body: bytes) -> Any:
    """The value of a strict UTF-8 JSON text.

    Refused with InvalidJson: duplicate keys, NaN and infinities (``1e999`` is one), a byte order mark, unpaired
    surrogates, more than 64 levels, more than 10 000 keys. What passes means the same to every parser
    (https://www.rfc-editor.org/rfc/rfc8259).
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise InvalidJson("The body begins with a byte order mark.")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidJson(f"The body is nested more than {MAX_DEPTH} levels deep.") from None
    except ValueError as error:
        raise InvalidJson(f"The body is not valid JSON: {error}") from None
    _check_shape(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {name[:64]!r} is given twice")
            seen.add(name)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _check_shape(value: Any) -> None:
    keys = 0
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, str):
            _check_text(node)
            continue
        if isinstance(node, float) and math.isinf(node):
            raise InvalidJson("The body contains a number that is too large.")
        if not isinstance(node, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise InvalidJson(f"The body is nested more than {MAX_DEPTH} levels deep.")
        if isinstance(node, dict):
            keys += len(node)
            if keys > MAX_KEYS:
                raise InvalidJson(f"The body has more than {MAX_KEYS} keys.")
            for name in node:
                _check_text(name)
        children = node.values() if isinstance(node, dict) else node
        pending.extend((child, depth + 1) for child in children)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidJson("The body contains an unpaired surrogate.") from None
