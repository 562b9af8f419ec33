"""Counts the tokens of requests: exactly where the vocabulary of the model is at hand, else by estimate.

What surrounds texts in a prompt and what pictures take is added by constants from providers' pages:

* a message takes 3 tokens and a name 1, and the answer is begun with 3 (OpenAI's cookbook, "How to count tokens with
  tiktoken"); upper: 8 for each text and 16 for a request. Instructions that a provider adds by itself are not in it:
  Anthropic's for tools are some hundred tokens (https://docs.anthropic.com/en/docs/tool-use-pricing-and-tokens).
* a picture of a megapixel takes about 1 100 tokens. At most it takes 1 600 with Anthropic's older models and about three times
  that with those that see 2 576 pixels (https://platform.claude.com/docs/en/build-with-claude/vision), 1 445 with gpt-4o and
  3 779 with gpt-4.1-nano (https://platform.openai.com/docs/guides/images-vision), 2 240 with Gemini 3
  (https://ai.google.dev/gemini-api/docs/media-resolution), 6 404 with Together (https://docs.together.ai/docs/vision-overview);
  upper: 6 500. No constant covers files, recordings and films, which take as much as they are long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from gateway.tokens.estimate import estimated_tokens, most_tokens
from gateway.tokens.exact import ExactTokens, exact_tokens, vocabulary_of

MAX_EXACT_CHARS: Final = 16_000
"""Longer texts are estimated: the slowest ones (a single long word, rare ideographs) take 0.3 ms for a thousand characters."""

TEXT_TOKENS: Final = 4
MOST_TEXT_TOKENS: Final = 8
REQUEST_TOKENS: Final = 3
MOST_REQUEST_TOKENS: Final = 16
MEDIA_TOKENS: Final = 1_100
MOST_MEDIA_TOKENS: Final = 6_500


class Prompted(Protocol):
    """What a request makes a model read, such as `gateway.formats.Asked`."""

    @property
    def model(self) -> str:
        """Its name as the client wrote it."""

    @property
    def prompt(self) -> Sequence[str]:
        """The texts that it reads."""

    @property
    def media_parts(self) -> int:
        """How many images, audio and files it reads besides."""


class TokenCounter:
    """Made once at start. With ``exact``, uses the vocabularies if they are installed; see `is_exact`."""

    def __init__(self, *, exact: bool = False) -> None:
        self._exact: ExactTokens | None = exact_tokens() if exact else None

    @property
    def is_exact(self) -> bool:
        """True if vocabularies are at hand."""
        return self._exact is not None

    def count(self, texts: Sequence[str], model: str = "") -> int:
        """About as many tokens as these texts have for this model; exactly as many where its vocabulary is at hand."""
        exact = self._counted(texts, model)
        return estimated_tokens(texts) if exact is None else exact

    def most(self, texts: Sequence[str], model: str = "") -> int:
        """Hardly ever fewer tokens than these texts have for this model."""
        exact = self._counted(texts, model)
        return most_tokens(texts) if exact is None else exact

    def input_tokens(self, asked: Prompted) -> int:
        """About as many tokens as the input of this request has."""
        around = REQUEST_TOKENS + TEXT_TOKENS * len(asked.prompt) + MEDIA_TOKENS * asked.media_parts
        return self.count(asked.prompt, asked.model) + around

    def most_input_tokens(self, asked: Prompted) -> int:
        """Hardly ever fewer tokens than the input of this request has."""
        around = MOST_REQUEST_TOKENS + MOST_TEXT_TOKENS * len(asked.prompt) + MOST_MEDIA_TOKENS * asked.media_parts
        return self.most(asked.prompt, asked.model) + around

    def _counted(self, texts: Sequence[str], model: str) -> int | None:
        if self._exact is None or sum(map(len, texts)) > MAX_EXACT_CHARS:
            return None
        vocabulary = vocabulary_of(model)
        return None if vocabulary is None else self._exact.count(texts, vocabulary)
