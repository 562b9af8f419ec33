"""What a request has used, in tokens, whatever the provider calls it."""

from __future__ import annotations

from typing import NamedTuple


class Usage(NamedTuple):
    """Tokens of one request.

    ``input_tokens`` are all that the model read: those taken from a cache (``cached_tokens``), those written to one
    (``cache_write_tokens``) and audio are among them. ``output_tokens`` are all that it wrote: reasoning and audio are among
    them. Providers differ in that (Anthropic counts cached tokens beside its ``input_tokens``); here it is one way.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cached_audio_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens
