"""How limits are told in header fields: OpenAI's, the IETF draft's in the dialect of one's choice, alerts, and a refusal's.

https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers and, with the version at the end,
https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-10. Clients that parse the draft know one version
of it; express-rate-limit, whose names the dialects have, sends the 6th and the 7th the same way
(https://github.com/express-rate-limit/express-rate-limit/blob/main/source/headers.ts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gateway.config import RateLimitDialect
from gateway.models import MEASURED, shown_threshold
from gateway.money import format_usd
from gateway.plugin import LimitState

# what a structured field has to say of units that are no requests (§2.2.3 of draft 10); its integers hold nano-USD
_QUOTA_UNITS: dict[str, str] = {unit: f';qu="{"nano-usd" if unit == "usd" else unit.replace("_", "-")}"' for unit in MEASURED}

Fields = list[tuple[bytes, bytes]]

NEVER, UNKNOWN = -1, -2
"""Values of ``retry_after_ms``: waiting cannot help; it depends on requests in flight."""


def limit_headers_in(dialect: RateLimitDialect) -> Callable[[Sequence[LimitState]], Fields]:
    """What tells the limits nearest to being spent, one a unit: in OpenAI's fields, then in the dialect of the IETF draft."""
    ietf = _DIALECTS[dialect]

    def limit_headers(states: Sequence[LimitState]) -> Fields:
        binding = states if len(states) == 1 and not states[0].shadow else _binding(states)
        return [*_openai(binding), *ietf(binding)] if binding else []

    return limit_headers


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


def alert_headers(reached: Sequence[tuple[str, int]]) -> Fields:
    """What tells the highest threshold of each limit, by its name, that has reached one."""
    told = ", ".join([f"{name};at={shown_threshold(percent)}" for name, percent in reached])
    return [(b"x-gateway-alert", told.encode())] if told else []


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


def _binding(states: Sequence[LimitState]) -> list[LimitState]:
    """Of each unit the limit nearest to being spent."""
    binding: dict[str, LimitState] = {}
    for state in states:
        if state.shadow:
            continue
        held = binding.get(state.unit)
        if held is None or _nearness(state) < _nearness(held):
            binding[state.unit] = state
    return list(binding.values())


def _openai(binding: Sequence[LimitState]) -> Fields:
    fields: Fields = []
    for state in binding:
        unit = state.unit.encode()
        limit, remaining = b"%d" % state.limit, b"%d" % state.remaining
        if state.unit in MEASURED:
            unit = unit.replace(b"_", b"-")
            if state.unit == "usd":
                limit, remaining = format_usd(state.limit).encode(), format_usd(state.remaining).encode()
        fields += ((b"x-ratelimit-limit-" + unit, limit), (b"x-ratelimit-remaining-" + unit, remaining))
        if state.window_seconds:
            fields.append((b"x-ratelimit-reset-" + unit, duration(_wait_ms(state)).encode()))
    return fields


def _draft_10(binding: Sequence[LimitState]) -> Fields:
    """Every binding limit under its name, in structured fields."""
    policies = ", ".join([_policy(state) for state in binding])
    margins = ", ".join([_margin(state) for state in binding])
    return [(b"ratelimit-policy", policies.encode()), (b"ratelimit", margins.encode())]


def _draft_7(binding: Sequence[LimitState]) -> Fields:
    """One limit in one field (§3.1)."""
    state = _nearest(binding)
    if state is None:
        return []
    margin = b"limit=%d, remaining=%d, reset=%d" % (state.limit, state.remaining, _seconds(_wait_ms(state)))
    return [(b"ratelimit-policy", b"%d;w=%d" % (state.limit, state.window_seconds)), (b"ratelimit", margin)]


def _draft_6(binding: Sequence[LimitState]) -> Fields:
    """One limit in three fields."""
    state = _nearest(binding)
    if state is None:
        return []
    return [
        (b"ratelimit-policy", b"%d;w=%d" % (state.limit, state.window_seconds)),
        (b"ratelimit-limit", b"%d" % state.limit),
        (b"ratelimit-remaining", b"%d" % state.remaining),
        (b"ratelimit-reset", b"%d" % _seconds(_wait_ms(state))),
    ]


def _off(_: Sequence[LimitState]) -> Fields:
    return []


_DIALECTS: dict[RateLimitDialect, Callable[[Sequence[LimitState]], Fields]] = {
    "draft-10": _draft_10,
    "draft-7": _draft_7,
    "draft-6": _draft_6,
    "off": _off,
}


def _nearest(binding: Sequence[LimitState]) -> LimitState | None:
    """The limit that the older drafts tell.

    They require a window and its reset, which requests in flight do not have, and say of no number what it counts.
    """
    told = (state for state in binding if state.window_seconds and state.unit != "usd")
    return min(told, key=_nearness, default=None)


def _policy(state: LimitState) -> str:
    window = f";w={state.window_seconds}" if state.window_seconds else ""
    return f'"{state.name}";q={state.limit}{window}{_QUOTA_UNITS.get(state.unit, "")}'


def _margin(state: LimitState) -> str:
    return f'"{state.name}";r={state.remaining}' + (f";t={_seconds(_wait_ms(state))}" if state.window_seconds else "")


def _nearness(state: LimitState) -> tuple[float, float]:
    """Orders limits by what is left of them; before these, those that refuse, by how long they will.

    So what is told refers to the same moment as ``retry_headers`` (§4 of draft 7).
    """
    if state.refuses:
        return -1, -math.inf if state.retry_after_ms == NEVER else -state.retry_after_ms
    return state.remaining / state.limit, -state.reset_ms


def _wait_ms(state: LimitState) -> int:
    return state.retry_after_ms if state.retry_after_ms > 0 else state.reset_ms


def _seconds(wait_ms: int) -> int:
    return -(-wait_ms // 1_000)
