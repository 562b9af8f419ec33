"""A stream on its way to the client: read on the side and, where we asked for its usage, as if we had not."""

from __future__ import annotations

import re

import msgspec

from gateway.formats.endpoint import StreamReader
from gateway.formats.json_array import ArraySplitter
from gateway.formats.reading import UNREADABLE
from gateway.formats.sse import SseSplitter

_NULL_USAGE = re.compile(rb'"usage"[ \t]*:[ \t]*null[ \t]*(?=[,}])')
_LAST_MEMBER = b',"usage":null}\n\n'
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class _Told(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Told).decode


class StreamMeter:
    """Feeds a reader with the events of a stream.

    They are server-sent, or the elements of a JSON array (Gemini without ``alt=sse``). The first byte tells which: no line
    of an event stream begins with a bracket.

    With ``hides_usage`` the client sees what it would have seen if the request had not asked for usage: events that carry
    nothing else are left out, and so is the ``"usage":null`` that OpenAI then puts into all the others. An event is held
    back until it is complete. Without, every chunk is passed on as it is.
    """

    __slots__ = ("_hides_usage", "_read", "_splitter")

    def __init__(self, reader: StreamReader, *, hides_usage: bool) -> None:
        self._read = reader.read
        self._hides_usage = hides_usage
        self._splitter: SseSplitter | ArraySplitter | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk of the stream; what is to be passed on now."""
        splitter = self._splitter
        if splitter is None:
            if not chunk:
                return chunk
            splitter = self._splitter = ArraySplitter() if chunk.lstrip()[:1] == b"[" else SseSplitter()
        events = splitter.feed(chunk)
        if self._hides_usage:
            return self._shown(events, chunk)
        for _, data in events:
            if data:
                self._read(data)
        return chunk

    def flush(self) -> bytes:
        """Take the end of the stream; what was held back."""
        if self._splitter is None:
            return b""
        shown = self._shown(self._splitter.flush(), b"")
        return shown if self._hides_usage else b""

    def _shown(self, events: list[tuple[bytes, bytes]], chunk: bytes) -> bytes:
        if len(events) == 1:  # as nearly always
            raw, data = events[0]
            if data and self._read(data):
                return b""
            if b'"usage"' in data:
                raw = _without_null_usage(raw, data)
            return chunk if raw == chunk else raw
        shown = []
        for raw, data in events:
            if not (data and self._read(data)):
                shown.append(_without_null_usage(raw, data) if b'"usage"' in data else raw)
        together = b"".join(shown)
        return chunk if together == chunk else together


def _without_null_usage(raw: bytes, data: bytes) -> bytes:
    if raw.endswith(_LAST_MEMBER) and raw.startswith(b"data: {"):
        return raw[: -len(_LAST_MEMBER)] + b"}\n\n"  # what stands before the last brace is a member of the outermost object
    try:
        if bytes(_decode(data).usage) != b"null":
            return raw
    except UNREADABLE:
        return raw
    # The name in quotes is a member's or a whole string's, never a part of one, where quotes are escaped. If it stands there
    # once, it is the member just read; else its depth tells.
    found = list(_NULL_USAGE.finditer(raw))
    if data.count(b'"usage"') > 1:
        found = [match for match in found if _depth(raw[raw.find(b"{") : match.start()]) == 1]
    for match in reversed(found):
        before, after = raw[: match.start()].rstrip(b" \t"), raw[match.end() :]
        raw = before[:-1] + after if before[-1:] == b"," else before + after.removeprefix(b",").lstrip(b" \t")
    return raw


def _depth(text: bytes) -> int:
    text = _STRING.sub(b"", text)
    return text.count(b"{") + text.count(b"[") - text.count(b"}") - text.count(b"]")
