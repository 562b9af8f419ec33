"""Server-sent events, cut out of bytes as they come (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import re

Event = tuple[bytes, bytes]
"""One event: its bytes as they stood, with the blank line that ends it, and its data, lines joined by LF; b"" without data."""

LARGEST_EVENT = 4 * 1024 * 1024
"""Bytes of one event beyond which a stream is no longer parsed but only passed on: memory is bounded."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# atomic: CR LF is one end of a line, and never two
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")


class SseSplitter:
    """Takes chunks of a stream, cut anywhere, and gives its events. All events' bytes together are the stream's bytes."""

    __slots__ = ("_given_up", "_pending", "_plain", "_started")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._started = False
        self._given_up = False
        self._plain = False  # nothing is pending, and no byte order mark can come

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that are complete with this chunk."""
        # the common cases, in as few steps as there can be: one event of one line, or several whole ones
        if self._plain and chunk[-2:] == b"\n\n" and b"\r" not in chunk:
            if chunk.find(b"\n") == len(chunk) - 2 and chunk[:6] == b"data: ":
                return [(chunk, chunk[6:-2])]
            return [
                (block + b"\n\n", block[6:] if block[:6] == b"data: " and b"\n" not in block else _data_of(block))
                for block in chunk[:-2].split(b"\n\n")
            ]
        events = self._feed_slowly(chunk)
        self._plain = self._started and not self._pending and not self._given_up
        return events

    def flush(self) -> list[Event]:
        """What is left at the end of the stream: a last event that no blank line ends still counts."""
        if not self._pending:
            return []
        raw = bytes(self._pending)
        self._pending.clear()
        return [(raw, self._read(raw))]

    def _feed_slowly(self, chunk: bytes) -> list[Event]:
        if self._given_up:
            return [(chunk, b"")]
        pending = self._pending
        position = max(0, len(pending) - 3)  # a blank line, CR LF CR LF, may have begun in what came before
        pending += chunk
        events: list[Event] = []
        start = 0
        for found in _BLANK_LINE.finditer(pending, position):
            if found.end() == len(pending) and pending[-1:] == b"\r" and found[0] != b"\r\r":
                break  # the LF that belongs to this CR may be on its way
            raw = bytes(pending[start : found.end()])
            events.append((raw, self._read(raw)))
            start = found.end()
        del pending[:start]
        if len(pending) > LARGEST_EVENT:
            self._given_up = True
            events.append((bytes(pending), b""))
            pending.clear()
        return events

    def _read(self, raw: bytes) -> bytes:
        if not self._started:
            self._started = True
            raw = raw.removeprefix(_BYTE_ORDER_MARK)
        return _data_of(raw)


def _data_of(raw: bytes) -> bytes:
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines: list[bytes] = []
    for line in raw.split(b"\n"):
        if line[:5] == b"data:":
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            lines.append(b"")
    return lines[0] if len(lines) == 1 else b"\n".join(lines)
