"""The switches of a request: its ``x-demo-…`` headers, over the settings."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from quart import g
from werkzeug.datastructures import Headers

from gateway.demo_upstream.errors import refuse
from gateway.demo_upstream.text import Answer, answer

MAX_NUMBER = 1_000_000
MAX_COMMENTS = 100
USAGES = ("none", "last", "every-chunk", "unasked")
FRAMINGS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}
CREATED = 1_700_000_000

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """How the demo behaves unless a request switches it.

    With an ``api_key``, all but ``/health`` wants ``Authorization: Bearer`` and the key; ``/v1/messages`` also takes it in
    ``x-api-key`` and ``/v1beta/…`` in ``x-goog-api-key``, which is what Anthropic's and Google's SDKs send.
    """

    api_key: str | None = field(default=None, repr=False)
    chunk_delay_ms: int = 20
    latency_ms: int = 0


@dataclass(frozen=True, slots=True)
class Switches:
    """What they say; the package tells what each one means. ``None`` and 0 where a header is not there."""

    latency_ms: int
    chunk_delay_ms: int
    status: int | None
    chunks: int | None
    cut_after: int | None
    fail_after: int | None
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    usage: str | None
    newline: str | None
    comments: int
    id: str | None

    @classmethod
    def of(cls, headers: Headers, settings: DemoSettings) -> Switches:
        """Read them. Raises DemoError on a value that is none."""

        def number(name: str, low: int = 0, high: int = MAX_NUMBER) -> int | None:
            text = headers.get(name)
            if text is None:
                return None
            if not (text.isascii() and text.isdigit() and len(text) <= 7 and low <= int(text) <= high):
                refuse(f"{name} must be a whole number from {low} to {high}.", param=name)
            return int(text)

        def one_of(name: str, words: Iterable[str]) -> str | None:
            text = headers.get(name)
            if text is not None and text not in words:
                refuse(f"{name} must be one of {', '.join(words)}.", param=name)
            return text

        latency_ms, chunk_delay_ms = number("x-demo-latency-ms"), number("x-demo-chunk-delay-ms")
        framing, given_id = one_of("x-demo-framing", FRAMINGS), headers.get("x-demo-id")
        if given_id is not None and not _ID.fullmatch(given_id):
            refuse("x-demo-id must be 1 to 64 letters, digits, - or _.", param="x-demo-id")
        return cls(
            latency_ms=settings.latency_ms if latency_ms is None else latency_ms,
            chunk_delay_ms=settings.chunk_delay_ms if chunk_delay_ms is None else chunk_delay_ms,
            status=number("x-demo-status", 400, 599),
            chunks=number("x-demo-chunks", 1),
            cut_after=number("x-demo-cut-after"),
            fail_after=number("x-demo-fail-after"),
            cached_tokens=number("x-demo-cached-tokens") or 0,
            cache_write_tokens=number("x-demo-cache-write-tokens") or 0,
            reasoning_tokens=number("x-demo-reasoning-tokens") or 0,
            usage=one_of("x-demo-usage", USAGES),
            newline=None if framing is None else FRAMINGS[framing],
            comments=number("x-demo-comments", high=MAX_COMMENTS) or 0,
            id=given_id,
        )

    def new_id(self) -> str:
        """Return what tells this reply from others."""
        return self.id or uuid.uuid4().hex

    def created(self) -> int:
        """Return the time of this reply in seconds; with an id of the request's own it is always the same."""
        return int(time.time()) if self.id is None else CREATED

    def answers(self, prompts: Iterable[str], count: int = 1, limit: int | None = None) -> list[Answer]:
        """Write ``count`` answers to each prompt, each of at most ``limit`` tokens."""
        return [
            answer(prompt, variant, limit, self.chunks, self.reasoning_tokens) for prompt in prompts for variant in range(count)
        ]


def switched() -> Switches:
    """Return the switches of the request that is being answered."""
    return cast("Switches", g.switches)
