"""Header fields on their way through: what is removed, and under which name the rest goes on. Names are lower case."""

from __future__ import annotations

import re
from collections.abc import Iterable

RawHeaders = list[tuple[bytes, bytes]]

CREDENTIALS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
"""Where clients of the common SDKs put a key."""

# RFC 9110 §7.6.1, and what older peers still send
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_FORWARDED = (
    HOP_BY_HOP
    | frozenset(CREDENTIALS)
    | {
        b"content-length",
        b"expect",
        b"forwarded",
        b"host",
        b"http2-settings",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        b"x-original-host",
        b"x-original-url",
        b"x-real-ip",
        b"x-request-id",
        b"x-rewrite-url",
    }
)
_NOT_RETURNED = HOP_BY_HOP | {b"date"}
_NOT_RETURNED_UNLESS_PASSED = frozenset({b"alt-svc", b"server", b"set-cookie", b"set-cookie2"})
_NOT_RETURNED_PREFIXES = (b"x-ratelimit-", b"ratelimit", b"x-gateway-")
# RFC 9110 §5.1 and §5.5
_NAME = re.compile(rb"[a-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")


def is_field(field: tuple[bytes, bytes]) -> bool:
    """True if the field can be sent: nothing in it ends a line or belongs to no header."""
    return _NAME.fullmatch(field[0]) is not None and _VALUE.fullmatch(field[1]) is not None


def _nominated(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Names that the Connection header declares to end at this hop."""
    values = [value for name, value in headers if name == b"connection"]
    if not values or all(value in (b"keep-alive", b"close") for value in values):
        return frozenset()
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def forwarded(headers: RawHeaders) -> RawHeaders:
    """The client's fields that an upstream may see: none for this hop, no credentials, none that pretend another origin."""
    ended = _nominated(headers)
    if ended:
        return [field for field in headers if field[0] not in _NOT_FORWARDED and field[0] not in ended]
    return [field for field in headers if field[0] not in _NOT_FORWARDED]


def returned(headers: Iterable[tuple[bytes, bytes]], passed: frozenset[bytes]) -> RawHeaders:
    """The upstream's fields that the client may see; ``passed`` names those that a rule lets through.

    An ``x-request-id`` of the upstream becomes ``x-upstream-request-id``: the plain name is the gateway's own. What cannot be
    sent is dropped, as are lengths that another framing overrules.
    """
    lowered = [field for name, value in headers if is_field(field := (name.lower(), value.strip(b" \t")))]
    ended = _nominated(lowered)
    if any(name == b"transfer-encoding" for name, _ in lowered):
        ended |= {b"content-length"}
    kept: RawHeaders = []
    for name, value in lowered:
        if name in _NOT_RETURNED or name in ended or name.startswith(_NOT_RETURNED_PREFIXES):
            continue
        if name in _NOT_RETURNED_UNLESS_PASSED and name not in passed:
            continue
        kept.append((b"x-upstream-request-id" if name == b"x-request-id" else name, value))
    return kept
