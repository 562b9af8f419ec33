"""What a stream of bytes is as requests, by the grammar of RFC 9112 and nothing else: no repair, no guess.

It shares no code with any engine. ``taken`` names what an engine takes besides, each of which has its line in docs/servers.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([01])")
_SPACED_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") +([\x21-\x7e]+) +HTTP/1\.([01])")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):(" + _TEXT + rb")")
_CHUNK = re.compile(rb"0*([0-9A-Fa-f]{1,16})(?:[ \t]*;" + _TEXT + rb")?")
_LOOSE_CHUNK = re.compile(rb"0*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?")

HYPERCORN: frozenset[str] = frozenset()
UVICORN = frozenset({"empty lines", "spaces"})
GRANIAN = frozenset(
    {
        "empty lines",
        "bare LF",
        "chunks beside a length",
        "equal lengths",
        "loose chunks",
        "other targets",
        "nothing after chunks",
    }
)
TAKEN = {"hypercorn": HYPERCORN, "uvicorn": UVICORN, "granian": GRANIAN}


@dataclass(frozen=True)
class Request:
    """A request that came whole. ``target`` as an origin server would be asked for it."""

    method: bytes
    target: bytes
    minor: int
    fields: list[tuple[bytes, bytes]]
    body: bytes

    def all(self, name: bytes) -> list[bytes]:
        """The values of a field."""
        return [value for key, value in self.fields if key == name]

    @property
    def facts(self) -> tuple[bytes, bytes, bytes]:
        """What must not change on the way; ASGI does not tell an empty query from none."""
        path, _, query = self.target.partition(b"?")
        return self.method, self.target if query else path, self.body


@dataclass
class Parsed:
    """The requests before the ``ending``: ``clean``, ``incomplete``, or ``invalid``."""

    requests: list[Request] = field(default_factory=list)
    ending: str = "clean"


class _Invalid(Exception):
    pass


class _Incomplete(Exception):
    pass


class _Reader:
    def __init__(self, data: bytes, taken: frozenset[str]) -> None:
        self.data, self.taken, self.place = data, taken, 0

    def line(self, *, loose: bool = False) -> bytes:
        end = self.data.find(b"\n", self.place)
        if end < 0:
            raise _Incomplete
        line = self.data[self.place : end]
        self.place = end + 1
        if line.endswith(b"\r"):
            return line[:-1]
        if not loose:
            raise _Invalid
        return line

    def take(self, count: int) -> bytes:
        part = self.data[self.place : self.place + count]
        if len(part) < count:
            raise _Incomplete
        self.place += count
        return part

    def fields(self) -> list[tuple[bytes, bytes]]:
        found = []
        while line := self.line(loose="bare LF" in self.taken):
            match = _FIELD.fullmatch(line)
            if match is None:
                raise _Invalid
            found.append((match[1].lower(), match[2].strip(b" \t")))
        return found

    def trailers(self) -> None:
        if "bare LF" not in self.taken:
            self.fields()
            return
        # Granian's end with an empty line between two CR LF, and are fields up to the first empty line
        begin, end = self.place, b"\r\n" if self.data.startswith(b"\r\n", self.place) else b"\r\n\r\n"
        text, found, _ = self.data[begin:].partition(end)
        if re.search(rb"\r(?!\n|\Z)", text):
            raise _Invalid
        if not found:
            raise _Incomplete
        self.place = begin + len(text + end)
        _Reader(text + end, self.taken).fields()

    def request(self) -> Request:
        loose = "bare LF" in self.taken
        pattern = _SPACED_REQUEST_LINE if "spaces" in self.taken else _REQUEST_LINE
        match = pattern.fullmatch(self.line(loose=loose))
        if match is None:
            raise _Invalid
        method, target, minor = match[1], match[2], int(match[3])
        has_authority = False
        if "other targets" in self.taken:
            target = re.sub(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*(?=[/?#]|\Z)", b"", target).partition(b"#")[0]
            has_authority = not match[2].startswith(b"/")  # stands for a Host that is missing
            target = target if target.startswith(b"/") else b"/" + target
        fields = self.fields()
        if len([name for name, _ in fields if name == b"host"]) not in ((1,) if minor and not has_authority else (0, 1)):
            raise _Invalid
        return Request(method, target, minor, fields, self.body(fields, minor))

    def body(self, fields: list[tuple[bytes, bytes]], minor: int) -> bytes:
        codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
        lengths = [value for name, value in fields if name == b"content-length"]
        if codings and "chunks beside a length" in self.taken:
            lengths = []
        if "equal lengths" in self.taken and all(map(bytes.isdigit, lengths)) and len(set(map(int, lengths))) == 1:
            lengths = lengths[:1]
        if len(codings) + len(lengths) > 1:
            raise _Invalid
        if lengths:
            if not re.fullmatch(rb"[0-9]+", lengths[0]):
                raise _Invalid
            return self.take(int(lengths[0]))
        if codings:
            if codings != [b"chunked"] or minor == 0:
                raise _Invalid
            return self.chunks()
        return b""

    def chunks(self) -> bytes:
        parts: list[bytes] = []
        pattern = _LOOSE_CHUNK if "loose chunks" in self.taken else _CHUNK
        while True:
            match = pattern.fullmatch(self.line())
            if match is None:
                raise _Invalid
            size = int(match[1], 16)
            if not size:
                self.trailers()
                return b"".join(parts)
            parts.append(self.take(size))
            if self.take(2) != b"\r\n":
                raise _Invalid


def parse(data: bytes, taken: frozenset[str] = frozenset()) -> Parsed:
    """See the module."""
    reader, parsed = _Reader(data, taken), Parsed()
    try:
        while True:
            if "empty lines" in taken:
                while data.startswith((b"\r", b"\n"), reader.place):
                    reader.place += 2 if data.startswith(b"\r\n", reader.place) else 1
            if reader.place == len(data):
                return parsed
            parsed.requests.append(reader.request())
            if "nothing after chunks" in taken and parsed.requests[-1].all(b"transfer-encoding"):
                return parsed
    except _Invalid:
        parsed.ending = "invalid"
    except _Incomplete:
        parsed.ending = "incomplete"
    return parsed
