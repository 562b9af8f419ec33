"""The texts of a JSON value, found wherever they hide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_JSON_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_PLAIN_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def texts_of(value: Any) -> set[str]:
    """Every text that a reader of this JSON value could see, for plugins that look for something in it.

    Keys and strings at any depth; strings once more with JSON escapes taken out, since arguments of tools are JSON inside
    a string; and the text parts of one message in one piece, as a model reads them.
    """
    found: set[str] = set()
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            found.update(_readings(node))
        elif isinstance(node, dict):
            pending.extend(node)
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)
            parts = [part["text"] for part in node if isinstance(part, dict) and isinstance(part.get("text"), str)]
            if len(parts) > 1:
                found.update(_readings("".join(parts)))
    return found


def _readings(text: str) -> Iterator[str]:
    yield text
    for _ in range(3):
        plain = _JSON_ESCAPE.sub(_unescape, text) if "\\" in text else text
        if plain == text:
            return
        # joins surrogate pairs; half of one is nothing that a pattern could match
        text = plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        yield text


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else _PLAIN_ESCAPES.get(match[2], match[2])
