"""What a call costs, exactly, and so that a test can say it beforehand.

*Sent*: for each prompt, 3 and a token for each 4 characters begun (`count_tokens`). The prompt of a conversation is one line
``role: text`` for each message, the system's first; that of ``/v1/completions`` and embeddings is the text itself. Of these,
the first ``x-demo-cached-tokens`` were read from a cache and the next ``x-demo-cache-write-tokens`` written to it; neither
adds to what was sent, so both end where the prompt ends.

*Written*: one word is one token. Each answer begins with ``x-demo-reasoning-tokens`` that nobody sees, which count against
its limit as words do: of 10 allowed tokens with 4 of reasoning, 6 are words.

A stream costs at any time what was sent, all of the reasoning, and the words delivered so far.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gateway.demo_upstream.switches import Switches
from gateway.demo_upstream.text import Answer, count_tokens


@dataclass(frozen=True, slots=True)
class Tokens:
    """Numbers of tokens. ``cached`` and ``cache_written`` are parts of ``sent``."""

    sent: int
    cached: int
    cache_written: int
    words: int
    reasoning: int

    @classmethod
    def of(cls, prompts: Iterable[str], answers: Iterable[Answer], switches: Switches) -> Tokens:
        """Count a whole reply."""
        sent, answers = sum(map(count_tokens, prompts)), list(answers)
        cached = min(switches.cached_tokens, sent)
        cache_written = min(switches.cache_write_tokens, sent - cached)
        words, reasoning = sum(len(each.words) for each in answers), sum(each.reasoning for each in answers)
        return cls(sent, cached, cache_written, words, reasoning)

    @property
    def fresh(self) -> int:
        """What was sent and neither read from a cache nor written to it."""
        return self.sent - self.cached - self.cache_written

    @property
    def written(self) -> int:
        """Reasoning and words."""
        return self.reasoning + self.words

    @property
    def total(self) -> int:
        """What was sent and written."""
        return self.sent + self.written

    def after(self, words: int) -> Tokens:
        """Return the cost when so many words were delivered."""
        return replace(self, words=words)
