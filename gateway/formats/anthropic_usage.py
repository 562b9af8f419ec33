"""The usage object of Anthropic's messages."""

from __future__ import annotations

from typing import Any

from gateway.formats.reading import whole_number
from gateway.formats.usage import Usage

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class AnthropicCounts:
    """The counts of one message, put together from all that its stream tells: the last word holds, for each of them.

    ``message_start`` tells the input, ``message_delta`` the output, counted from the beginning, and sometimes the input again,
    which then is greater (by what a tool of the server's has found).

    ``input_tokens`` are those that no cache has anything to do with; read and written ones are beside them. What compacting a
    conversation has cost is in none of them, only in ``iterations``.

    https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching, https://docs.anthropic.com/en/api/messages
    """

    __slots__ = ("_compacted", "_counts", "_thinking")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._compacted: dict[str, int] = {}
        self._thinking = 0

    def take(self, usage: Any) -> Usage | None:
        """Take one usage object; what all until now come to, None if there has been no count at all."""
        if isinstance(usage, dict):
            self._counts |= _counts_in(usage)
            details = usage.get("output_tokens_details")
            if isinstance(details, dict):
                self._thinking = whole_number(details.get("thinking_tokens")) or self._thinking
            iterations = usage.get("iterations")
            if isinstance(iterations, list):
                self._compacted = _sum([each for each in iterations if _is_compaction(each)])
        if not self._counts:
            return None
        counts = _sum([self._counts, self._compacted])
        cached, cache_write = counts["cache_read_input_tokens"], counts["cache_creation_input_tokens"]
        return Usage(
            input_tokens=counts["input_tokens"] + cached + cache_write,
            output_tokens=counts["output_tokens"],
            cached_tokens=cached,
            cache_write_tokens=cache_write,
            reasoning_tokens=min(self._thinking, counts["output_tokens"]),
        )


def _counts_in(usage: dict[str, Any]) -> dict[str, int]:
    return {name: number for name in _COUNTS if (number := whole_number(usage.get(name))) is not None}


def _is_compaction(iteration: Any) -> bool:
    return isinstance(iteration, dict) and iteration.get("type") == "compaction"


def _sum(parts: list[dict[str, Any]]) -> dict[str, int]:
    counts = [_counts_in(part) for part in parts]
    return {name: sum(each.get(name, 0) for each in counts) for name in _COUNTS}
