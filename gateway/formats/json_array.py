"""The elements of a JSON array, cut out of bytes as they come: how Gemini streams unless it is asked for events."""

from __future__ import annotations

import re

from gateway.formats.sse import LARGEST_EVENT, Event

# an escape is one mark, so that an escaped quote is none; the backslash of a cut one waits for what follows
_MARK = re.compile(rb'\\.|\\\Z|["\[\]{}]', re.DOTALL)
_OPENING, _CLOSING = b"[{", b"]}"


class ArraySplitter:
    """Takes chunks of a JSON array of objects, cut anywhere, and gives each object as data once it is complete.

    Brackets within strings do not count. The bytes of all events together are the bytes of the stream.
    """

    __slots__ = ("_depth", "_given_up", "_in_string", "_pending", "_seen", "_start")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._seen = 0  # bytes of it that are already scanned
        self._start = 0  # where the object in it begins
        self._depth = 0
        self._in_string = self._given_up = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The elements that are complete with this chunk."""
        if self._given_up:
            return [(chunk, b"")]
        pending = self._pending
        pending += chunk
        events: list[Event] = []
        cut, seen = 0, len(pending)
        for found in _MARK.finditer(pending, self._seen):
            position, mark = found.start(), found[0]
            if mark == b"\\":
                seen = position
            elif mark == b'"':
                self._in_string = not self._in_string
            elif self._in_string:
                continue
            elif mark in _OPENING:
                self._depth += 1
                if self._depth == 2:
                    self._start = position
            elif mark in _CLOSING:
                self._depth -= 1
                if self._depth == 1:
                    events.append((bytes(pending[cut : position + 1]), bytes(pending[self._start : position + 1])))
                    cut = position + 1
        self._seen = seen - cut
        self._start -= cut
        del pending[:cut]
        if len(pending) > LARGEST_EVENT:
            self._given_up = True
            events.append((bytes(pending), b""))
            pending.clear()
        return events

    def flush(self) -> list[Event]:
        """What is left at the end: the bracket that closes the array, or half an element, which no one could read."""
        raw = bytes(self._pending)
        self._pending.clear()
        return [(raw, b"")] if raw else []
