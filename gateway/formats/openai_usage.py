"""The usage object of OpenAI and of those who speak its language."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.formats.reading import MOST, UNREADABLE, repaired, value_of, whole_number
from gateway.formats.usage import Usage


class _Reply(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()
    x_groq: msgspec.Raw = msgspec.Raw()


class _Reads(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    cached_tokens: int = 0
    audio_tokens: int = 0


class _Writes(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What chat completions usually tell; whatever looks otherwise is read with more care."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _Reads = _Reads()
    completion_tokens_details: _Writes = _Writes()


_decode = msgspec.json.Decoder(_Reply).decode
_decode_plain = msgspec.json.Decoder(_Plain).decode


def openai_usage(usage: Any) -> Usage | None:
    """Normalise a decoded ``usage``; None if there is no count in it, such as ``{"type": "duration", "seconds": 9}``.

    Chat calls them ``prompt_tokens`` and ``completion_tokens``, the Responses, image and audio APIs ``input_tokens`` and
    ``output_tokens``. DeepSeek tells cached tokens as ``prompt_cache_hit_tokens``, Moonshot as ``cached_tokens``. xAI leaves
    reasoning out of ``completion_tokens`` and counts it in ``total_tokens`` only, as does Gemini's compatible API: what the
    total has beyond both has been written.

    https://platform.openai.com/docs/api-reference/chat/object, https://api-docs.deepseek.com/guides/kv_cache,
    https://docs.x.ai/docs/key-information/consumption-and-rate-limits
    """
    if not isinstance(usage, dict):
        return None
    read = _first(usage, "prompt_tokens", "input_tokens")
    written = _first(usage, "completion_tokens", "output_tokens")
    total = _first(usage, "total_tokens")
    if read is None and written is None:
        return None if total is None else Usage(input_tokens=total)
    if read is None:
        read = max(0, (total or 0) - (written or 0))
    reads = _first_object(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    writes = _first_object(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    reasoning = _first(writes, "reasoning_tokens") or _first(usage, "reasoning_tokens") or 0
    written = max(written or 0, (total or 0) - read)
    if reasoning > written:
        written += reasoning  # more than all of it: it was left out, and no total told
    cached = _first(reads, "cached_tokens")
    if cached is None:
        cached = _first(usage, "prompt_cache_hit_tokens", "cached_tokens") or 0
    cached = min(cached, read)
    cache_write = _first(reads, "cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens") or 0
    read_audio = min(_first(reads, "audio_tokens") or 0, read)
    cached_audio = _first(_first_object(reads, "cached_tokens_details"), "audio_tokens") or 0
    return Usage(
        input_tokens=read,
        output_tokens=written,
        cached_tokens=cached,
        cache_write_tokens=min(cache_write, read - cached),
        reasoning_tokens=reasoning,
        input_audio_tokens=read_audio,
        output_audio_tokens=min(_first(writes, "audio_tokens") or 0, written),
        cached_audio_tokens=min(cached_audio, cached, read_audio),
    )


def usage_in_reply(body: bytes) -> Usage | None:
    """The usage of a whole reply, whose other members are skipped."""
    try:
        reply = _decode(body)
    except UNREADABLE:
        try:
            reply = _decode(repaired(body))
        except UNREADABLE:
            return None
    usage = _plain_usage(reply.usage) or openai_usage(value_of(reply.usage))
    if usage is None and (groq := value_of(reply.x_groq)):
        usage = openai_usage(groq.get("usage")) if isinstance(groq, dict) else None
    return usage


def _plain_usage(raw: msgspec.Raw) -> Usage | None:
    """What `openai_usage` would find, in a tenth of the time, where the numbers agree with each other; else None."""
    try:
        told = _decode_plain(raw)
    except UNREADABLE:
        return None
    read, written = told.prompt_tokens, told.completion_tokens
    reads, writes = told.prompt_tokens_details, told.completion_tokens_details
    inner = (reads.cached_tokens, reads.audio_tokens, writes.reasoning_tokens, writes.audio_tokens)
    if not 0 <= read + written == told.total_tokens <= MOST or min(read, written, *inner) < 0:
        return None
    if max(reads.cached_tokens, reads.audio_tokens) > read or max(writes.reasoning_tokens, writes.audio_tokens) > written:
        return None
    return Usage(read, written, reads.cached_tokens, 0, writes.reasoning_tokens, reads.audio_tokens, writes.audio_tokens)


def _first(counts: dict[str, Any], *names: str) -> int | None:
    for name in names:
        number = whole_number(counts.get(name))
        if number is not None:
            return number
    return None


def _first_object(counts: dict[str, Any], *names: str) -> dict[str, Any]:
    return next((counts[name] for name in names if isinstance(counts.get(name), dict)), {})
