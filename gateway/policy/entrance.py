"""What is refused of any request before it is asked who sends it, and how large a body may be."""

from __future__ import annotations

import re

from gateway.errors import BadRequest, BodyTooLarge, MethodNotAllowed, UriTooLong
from gateway.models import METHODS
from gateway.routing import check_path

MAX_URL_BYTES = 8 << 10
MAX_FIELDS = 100
MAX_FIELD_BYTES = 8 << 10
"""Of a value; the engine limits the header block as a whole."""

CLOSE = (("connection", "close"),)
"""Told to whom the form of its head is refused: what it sends after that is not worth reading."""

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


def check_length(length: int, max_bytes: int) -> None:
    """Raises BodyTooLarge for a body that is longer than any may be."""
    if length > max_bytes:
        raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.", headers=[("connection", "close")])


def check_inspected_length(length: int, max_bytes: int) -> None:
    """Raises BodyTooLarge for a body that has to be read whole and is too long for that."""
    if length > max_bytes:
        raise BodyTooLarge(f"The body is longer than the {max_bytes} bytes that can be inspected.")
