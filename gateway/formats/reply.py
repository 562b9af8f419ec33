"""Usage in replies that are too long to be kept: megabytes of vectors or images, with a few numbers at one end."""

from __future__ import annotations

import re

import msgspec

from gateway.formats.endpoint import Endpoint
from gateway.formats.reading import UNREADABLE
from gateway.formats.usage import Usage

WINDOW = 8 * 1024
"""Bytes at either end of a reply in which its usage is looked for."""

# Text inside a string cannot be taken for this: quotes are escaped there, so that a backslash would stand before the last one
# if it were all inside, and before the first one if a string that began earlier ended here.
_KEY = re.compile(rb'(?<!\\)"(usage|usageMetadata)"\s*:\s*(?=\{)')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_MOST_BRACES = 64  # in a usage object, which bounds the work on a hostile reply
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def usage_at_end(endpoint: Endpoint, tail: bytes, head: bytes = b"") -> Usage | None:
    """What a long reply tells of its usage, by its last bytes and its first ones (``WINDOW`` of each are enough).

    A member of that name may also stand deeper, in arguments that a model wrote. The one that counts is a member of the
    outermost object: between it and the end of the reply exactly one bracket is closed, and before it exactly one is open.
    """
    for found in reversed(list(_KEY.finditer(tail))):
        end = _end_of_object(tail, found.end())
        if end and _depth(tail[end:]) == -1:
            return _told(endpoint, found[1], tail[found.end() : end])
    for found in _KEY.finditer(head):
        end = _end_of_object(head, found.end())
        if end and _depth(head[: found.start()]) == 1:
            return _told(endpoint, found[1], head[found.end() : end])
    return None


def _end_of_object(text: bytes, start: int) -> int:
    """Where the object that begins here ends; 0 if it does not."""
    end = start
    for _ in range(_MOST_BRACES):
        end = text.find(b"}", end) + 1
        if not end:
            return 0
        try:
            _decode_object(text[start:end])
        except UNREADABLE:
            continue
        return end
    return 0


def _told(endpoint: Endpoint, name: bytes, usage: bytes) -> Usage | None:
    return endpoint.usage_of(b'{"' + name + b'":' + usage + b"}")


def _depth(text: bytes) -> int:
    text = _STRING.sub(b"", text)
    return text.count(b"{") + text.count(b"[") - text.count(b"}") - text.count(b"]")
