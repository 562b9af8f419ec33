"""Header fields on their way through: what is removed, what is added, and how limits are told. Names are lower case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gateway.plugin import LimitState

RawHeaders = list[tuple[bytes, bytes]]

CREDENTIALS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
"""Where clients of the common SDKs put a key."""

NEVER, UNKNOWN = -1, -2
"""Values of ``retry_after_ms``: waiting cannot help; it depends on requests in flight."""

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


def limit_headers(states: Sequence[LimitState]) -> RawHeaders:
    """The limits nearest to being spent, one a unit, in OpenAI's dialect and in that of the IETF draft.

    https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers and
    https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ (version 10).
    """
    binding: dict[str, LimitState] = {}
    for state in states:
        if state.shadow:
            continue
        held = binding.get(state.unit)
        if held is None or _nearness(state) < _nearness(held):
            binding[state.unit] = state
    if not binding:
        return []
    fields: RawHeaders = []
    for unit, state in binding.items():
        fields += (
            (f"x-ratelimit-limit-{unit}".encode(), b"%d" % state.limit),
            (f"x-ratelimit-remaining-{unit}".encode(), b"%d" % state.remaining),
        )
        if state.window_seconds:
            fields.append((f"x-ratelimit-reset-{unit}".encode(), duration(_wait(state)).encode()))
    policies = ", ".join(_policy(state) for state in binding.values())
    margins = ", ".join(_margin(state) for state in binding.values())
    fields += ((b"ratelimit-policy", policies.encode()), (b"ratelimit", margins.encode()))
    return fields


def retry_headers(states: Sequence[LimitState]) -> list[tuple[str, str]]:
    """How long to wait after a refusal: exact in ``retry-after-ms``, in whole seconds in ``retry-after``.

    ``x-should-retry`` tells OpenAI's SDK not to try again where waiting cannot help. The longest wait decides. Where it
    depends on requests in flight nobody knows how long; then clients are told to come back in a second.
    """
    waits = [state.retry_after_ms for state in states if state.refuses and not state.shadow]
    if not waits or NEVER in waits:
        return [("x-should-retry", "false")]
    if UNKNOWN in waits:
        return [("retry-after", retry_after(max(waits)))]
    return [("retry-after-ms", str(max(waits))), ("retry-after", retry_after(max(waits)))]


def retry_after(wait_ms: int) -> str:
    """Whole seconds, rounded up, at least 1 (RFC 9110 §10.2.3)."""
    return str(max(1, _seconds(wait_ms)))


def duration(wait_ms: int) -> str:
    """A time span the way OpenAI writes it: ``20ms``, ``1.5s``, ``6m0s``, ``2h3m4s``."""
    if wait_ms < 1_000:
        return f"{max(0, wait_ms)}ms"
    seconds, ms = divmod(wait_ms, 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{ms:03d}".rstrip("0") if ms else ""
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds}{fraction}s"


def _policy(state: LimitState) -> str:
    return f'"{state.name}";q={state.limit}' + (f";w={state.window_seconds}" if state.window_seconds else "")


def _margin(state: LimitState) -> str:
    return f'"{state.name}";r={state.remaining}' + (f";t={_seconds(_wait(state))}" if state.window_seconds else "")


def _nearness(state: LimitState) -> tuple[bool, float, int]:
    return not state.refuses, state.remaining / state.limit, -state.reset_ms


def _wait(state: LimitState) -> int:
    return state.retry_after_ms if state.retry_after_ms > 0 else state.reset_ms


def _seconds(wait_ms: int) -> int:
    return -(-wait_ms // 1_000)
