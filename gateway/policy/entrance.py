"""What is refused of any request before it is asked who sends it, and how large a body may be."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.errors import BadRequest, BodyTooLarge, HeadersTooLarge, MethodNotAllowed, UriTooLong
from gateway.models import METHODS
from gateway.routing import check_path

MAX_URL_BYTES = 8 << 10
MAX_FIELDS = 100
MAX_FIELD_BYTES = 8 << 10
"""Of a name and its value together."""

CLOSE = (("connection", "close"),)
"""Told to whom the form of its head is refused: what it sends after that is not worth reading."""

FRAMING_BYTES = 4
"""What surrounds a field: a colon, a space, CR and LF."""

SHOWN_BYTES = 64
"""So much of a field's name is repeated to whoever sent it."""

_METHODS = frozenset(METHODS)
_QUERY = re.compile(r"[!\x22\x24-\x7e]*")


def check_target(method: str, path: str, query: str) -> None:
    """Path and query as on the wire, in Latin-1. Raises MethodNotAllowed, UriTooLong, InvalidPath, BadRequest."""
    if method not in _METHODS:
        raise MethodNotAllowed(headers=[("allow", ", ".join(sorted(_METHODS)))], param="method")
    if len(path) + len(query) > MAX_URL_BYTES:
        raise UriTooLong
    check_path(path)
    if not _QUERY.fullmatch(query):
        raise BadRequest("The query contains a character that must be percent-encoded.", param="query")


def check_fields(fields: Sequence[tuple[bytes, bytes]], target_bytes: int, max_head_bytes: int) -> None:
    """Raises HeadersTooLarge. Engines bound the heads that they wait for, and not what comes whole in one read."""
    sizes = [len(name) + len(value) for name, value in fields]
    if len(sizes) > MAX_FIELDS:
        raise HeadersTooLarge(f"The request has more than {MAX_FIELDS} header fields.")
    if max(sizes, default=0) > MAX_FIELD_BYTES:
        name = next(name for (name, _), size in zip(fields, sizes, strict=True) if size > MAX_FIELD_BYTES)
        shown = name[:SHOWN_BYTES].decode("latin-1")
        raise HeadersTooLarge(f"A header field is longer than {MAX_FIELD_BYTES} bytes.", param=shown)
    if target_bytes + sum(sizes) + FRAMING_BYTES * len(sizes) > max_head_bytes:
        raise HeadersTooLarge(f"The head of the request is longer than {max_head_bytes} bytes.")


def check_length(length: int, max_bytes: int) -> None:
    """Raises BodyTooLarge for a body that is longer than any may be."""
    if length > max_bytes:
        raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.", headers=[("connection", "close")])


def check_inspected_length(length: int, max_bytes: int) -> None:
    """Raises BodyTooLarge for a body that has to be read whole and is too long for that."""
    if length > max_bytes:
        raise BodyTooLarge(f"The body is longer than the {max_bytes} bytes that can be inspected.")
