"""The head of a request as bytes. What frames it is written here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.headers import HOP_BY_HOP

MAX_KNOWN_NAMES = 4_096

_METHOD = re.compile(r"[A-Z!#$%&'*+.^_`|~0-9-]+")
# no fragment: it is not sent (RFC 9110 §7.1), so whoever meant one meant another resource
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*")
_NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTROLS = bytes({*range(0x20), 0x7F} - {0x09})
_OURS = HOP_BY_HOP | {b"content-length", b"expect", b"host", b"http2-settings"}
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class UnsendableRequest(ValueError):
    """Its head would not be read as it was meant."""


class RequestHeads:
    """Writes heads, and remembers the names of fields that need no closer look."""

    def __init__(self) -> None:
        self._plain_names: set[bytes] = set()

    def write(
        self,
        method: str,
        path_and_query: str,
        host_line: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        *,
        length: int | None,
        streamed: bool,
    ) -> tuple[bytes, int | None]:
        """The head up to its empty line, and the length that it announces, None if chunks will tell.

        ``length`` is that of a body that is here, None without one; a streamed body has the one that a field says, if one does.
        A field for the host replaces ``host_line``; fields of the connection are left out. Raises UnsendableRequest.
        """
        if _METHOD.fullmatch(method) is None or method == "CONNECT" or _TARGET.fullmatch(path_and_query) is None:
            raise UnsendableRequest("method or path")
        announced = None
        if not {name for name, _ in fields} <= self._plain_names:
            fields, host, announced = self._sort_out(fields)
            host_line = host_line if host is None else b"host: " + host
        lines = [f"{method} {path_and_query} HTTP/1.1".encode("ascii"), host_line, *map(b": ".join, fields)]
        if streamed:
            length = announced
            lines.append(b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length)
        elif length is not None:
            lines.append(b"content-length: %d" % length)
        elif method not in _WITHOUT_BODY:
            lines.append(b"content-length: 0")
        head = b"\r\n".join([*lines, b"", b""])
        # whatever a line break came in with, there is one too many
        if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(lines) + 2:
            raise UnsendableRequest("control character")
        return head, length

    def _sort_out(self, fields: Sequence[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], bytes | None, int | None]:
        """The fields that are sent, the value for the host, the length."""
        sent: list[tuple[bytes, bytes]] = []
        host = length = None
        for name, value in fields:
            if name in self._plain_names:
                sent.append((name, value))
                continue
            if _NAME.fullmatch(name) is None:
                raise UnsendableRequest("header name")
            lowered = name.lower()
            if lowered == b"host":
                host = value
            elif lowered == b"content-length":
                if not value.isdigit() or (length is not None and int(value) != length):
                    raise UnsendableRequest("content-length")
                length = int(value)
            elif lowered not in _OURS:
                sent.append((name, value))
                if len(self._plain_names) >= MAX_KNOWN_NAMES:
                    self._plain_names.clear()
                self._plain_names.add(name)
        return sent, host, length
