"""Requests by grammar, and what is done to them: at the level of lines, fields, framing, chunks, targets and bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
ODD_METHODS = (
    b"get",
    b"BREW",
    b"CONNECT",
    b"TRACE",
    b"PRI",
    b"G(T",
    b"",
    b"GET GET",
    b"\xc7ET",
    b"M-SEARCH",
    b"GET\t",
    b"A" * 300,
)
VERSIONS = (
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.2",
    b"http/1.1",
    b"HTTP/1.10",
    b"HTTP/11",
    b"HTTP/1.1 x",
    b"HTTP/ 1.1",
    b"",
    b"X/1.1",
)
TARGETS = (
    b"*",
    b"x",
    b"//evil/x",
    b"///",
    b"http://evil.example/x",
    b"http://a.example.com/x",
    b"a.example.com:80",
    b"/x#y",
    b"/#",
    b"/x?y#z",
    b"/a/../b",
    b"/%2e%2e/b",
    b"/a%2fb",
    b"/a%5Cb",
    b"/a\\b",
    b"/%00",
    b"/a;/../b",
    b"/..;/a",
    b"/a//b",
    b"/%",
    b"/%zz",
    b"/\x7f",
    b"/\x80",
    b"/a b",
    b"@evil/",
    b"?x",
    b"/?",
    b"/??",
    b'/a?b="<>',
    b"/" + b"a" * 9_000,
    b"https:/x",
    b"/x?" + b"y" * 8_190,
)
FRAMINGS = (
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: +5",
    b"Content-Length: -1",
    b"Content-Length: 0x5",
    b"Content-Length: 5, 5",
    b"Content-Length: 5 5",
    b"Content-Length:",
    b"Content-Length: 05",
    b"Content-Length: 99999999999999999999",
    b"Content-Length : 5",
    b"Content-Length: \xb2",
    b"Content-Length: 5;",
    b"content-length: 5\t",
    b"Content_Length: 5",
    b"Content-Length\x00: 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: CHUNKED",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: chunked;q=1",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: xchunked",
    b'Transfer-Encoding: "chunked"',
    b"Transfer_Encoding: chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"TE: trailers",
    b"Trailer: Content-Length",
    b"Upgrade: h2c\r\nConnection: Upgrade",
    b"Connection: close",
    b"Connection: content-length",
    b"Connection: host",
    b"Connection: keep-alive, transfer-encoding",
    b"Expect: 100-continue",
    b"Expect: 200-ok",
    b"Keep-Alive: timeout=1",
)
FIELDS = (
    b"Host: b.example.com",
    b"Host:",
    b"Host: a.example.com, b.example.com",
    b"host : a.example.com",
    b"X: \x00",
    b"X: \x01",
    b"X: \x7f",
    b"X: \xff",
    b": x",
    b" X: y",
    b"\tX: y",
    b"X",
    b"X y: z",
    b"X: y\r\n z",
    b"X: y\r\n\tz",
    b"X\r\n: y",
    b"X(: y",
    b"X:" + b" " * 100,
    b"X: " + b"y" * 9_000,
    b"Authorization: Bearer x",
    b"X-Api-Key: x",
    b"Cookie: a=b; c",
    b"X-Forwarded-Host: b.example.com",
    b'X-Request-Id: "',
    b"\xe4: y",
    b"\r\n".join([b"X: y"] * 110),
    b"X: " + b"z" * 40_000,
)
SIZES = (
    b"+5",
    b"-5",
    b"0x5",
    b" 5",
    b"5 ",
    b"5\t",
    b"5;",
    b"5;a=b",
    b'5;a="\r\n"',
    b"5;\x00",
    b"5;" + b"a" * 20_000,
    b"",
    b"g",
    b"5_0",
    b"05",
    b"00000000000000000000005",
    b"10000000000000005",
    b"ffffffffffffffff",
    b"5\n",
    b"5\r",
    b"0",
    b"4",
    b"6",
    b"5 ;a",
    b"5;\n",
)
ENDS = (b"\n", b"\r", b"\r\r\n", b"\n\r", b"", b"\r\n\r\n", b" \r\n", b"\x0b", b"\x85", b"\r\n ")
BYTES = (
    b"\x00",
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\x0b",
    b"\x0c",
    b"\x1f",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"%",
    b"/",
    b"?",
    b"#",
    b"0",
    b'"',
    b"(",
)


class Maker:
    """Makes requests for one key."""

    def __init__(self, seed: int, host: str, key: str) -> None:
        self.chance = random.Random(seed)
        self._identity = f"Host: {host}\r\nAuthorization: Bearer {key}\r\n"
        self._count = 0

    def good(self) -> bytes:
        """A request that has nothing wrong, and that no other is like."""
        chance = self.chance
        self._count += 1
        method = chance.choice(METHODS)
        query = chance.choice(("", "?", "?a=b&c", "?a=%20;b"))
        path = chance.choice(("", "/a%20b", "/%C3%A4", "/a;b=c", "/~a", "/a:b@c", "/a//b"))
        head = f"{method} /v1/{self._count:x}{path}{query} HTTP/1.1\r\n{self._identity}"
        for _ in range(chance.randrange(3)):
            head += chance.choice(
                ("Accept: */*\r\n", "X-Empty:\r\n", "X-A:\tb c \r\n", "x-b: \xe4\r\n", "User-Agent: fuzz\r\n")
            )
        body = b"hello"[: chance.randrange(6)] * chance.choice((1, 1, 1, 50))
        if method in ("GET", "HEAD", "OPTIONS", "DELETE") or chance.random() < 0.1:
            return f"{head}\r\n".encode("latin-1")
        if chance.random() < 0.5:
            return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
        chunks = [
            b"%x%b\r\n%b\r\n" % (len(part), chance.choice((b"", b"", b";a", b';a="b"')), part)
            for part in (body, b"world")
            if part
        ]
        trailers = chance.choice((b"", b"", b"X-T: 1\r\n", b"X-T: 1\r\nX-U: 2\r\n"))
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode("latin-1") + b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"

    def odd(self) -> bytes:
        """A request to which something was done, up to three times."""
        data = self.good()
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            data = self.chance.choice(_CHANGES)(self.chance, data)
        return data


def _line(chance: random.Random, data: bytes, new: bytes) -> bytes:
    """With another line before the end of one: of the head, or of a chunk."""
    places = [place for place in range(len(data)) if data.startswith(b"\r\n", place)] or [0]
    place = chance.choice(places[: max(1, len(places) - 1)])
    return data[:place] + b"\r\n" + new + data[place:]


def _framing(chance: random.Random, data: bytes) -> bytes:
    return _line(chance, data, chance.choice(FRAMINGS))


def _field(chance: random.Random, data: bytes) -> bytes:
    return _line(chance, data, chance.choice(FIELDS))


def _part_of_first_line(part: int, choices: tuple[bytes, ...]) -> Callable[[random.Random, bytes], bytes]:
    def change(chance: random.Random, data: bytes) -> bytes:
        line, end, rest = data.partition(b"\r\n")
        parts = line.split(b" ")
        if len(parts) > part:
            parts[part] = chance.choice(choices)
        return b" ".join(parts) + end + rest

    return change


def _end(chance: random.Random, data: bytes) -> bytes:
    places = [place for place in range(len(data)) if data.startswith(b"\r\n", place)]
    if not places:
        return data
    place = chance.choice(places)
    return data[:place] + chance.choice(ENDS) + data[place + 2 :]


def _chunk(chance: random.Random, data: bytes) -> bytes:
    head, end, body = data.partition(b"\r\n\r\n")
    _, line_end, rest = body.partition(b"\r\n")
    return head + end + chance.choice(SIZES) + line_end + rest if line_end else data


def _byte(chance: random.Random, data: bytes) -> bytes:
    place = chance.randrange(len(data) + 1)
    return data[:place] + chance.choice(BYTES) + data[place + chance.randrange(2) :]


def _cut(chance: random.Random, data: bytes) -> bytes:
    begin = chance.randrange(len(data) + 1)
    return data[:begin] + data[begin + chance.randrange(10) :]


def _double(chance: random.Random, data: bytes) -> bytes:
    begin = chance.randrange(len(data) + 1)
    return data[:begin] + data[max(0, begin - chance.randrange(1, 60)) :]


_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _framing,
    _framing,
    _field,
    _field,
    _end,
    _end,
    _chunk,
    _chunk,
    _byte,
    _byte,
    _cut,
    _double,
    _part_of_first_line(0, ODD_METHODS),
    _part_of_first_line(1, TARGETS),
    _part_of_first_line(1, TARGETS),
    _part_of_first_line(2, VERSIONS),
)
