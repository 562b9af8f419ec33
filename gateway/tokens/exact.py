"""Exact counts with the vocabularies of OpenAI's models, where the extra ``tokens`` is installed.

The vocabularies are inside ``toktok-rs``; nothing is fetched. Loading both takes a second or more and 110 MB, so it is done
once, at the start.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final, Literal

Vocabulary = Literal["cl100k_base", "o200k_base"]

# longer beginnings before those that they begin with; after tiktoken's list of models
# (https://github.com/openai/tiktoken/blob/main/tiktoken/model.py) and the same families' later members
_BEGINNINGS: Final[tuple[tuple[str, Vocabulary], ...]] = (
    ("gpt-oss-", "o200k_base"),
    ("chatgpt-4o", "o200k_base"),
    ("gpt-4.1", "o200k_base"),
    ("gpt-4.5", "o200k_base"),
    ("gpt-4o", "o200k_base"),
    ("gpt-4-", "cl100k_base"),
    ("gpt-5", "o200k_base"),
    ("gpt-3.5", "cl100k_base"),
    ("gpt-35-turbo", "cl100k_base"),
    ("o1-", "o200k_base"),
    ("o3-", "o200k_base"),
    ("o4-mini", "o200k_base"),
    ("text-embedding-3-", "cl100k_base"),
    ("text-embedding-ada-002", "cl100k_base"),
    ("davinci-002", "cl100k_base"),
    ("babbage-002", "cl100k_base"),
)
_NAMES: Final[dict[str, Vocabulary]] = {"gpt-4": "cl100k_base", "o1": "o200k_base", "o3": "o200k_base"}


def vocabulary_of(model: str) -> Vocabulary | None:
    """The vocabulary of a model; None if it is not known. ``openai/gpt-4o`` and ``ft:gpt-4o:…`` are like ``gpt-4o``."""
    name = model.rpartition("/")[2].lower().removeprefix("ft:")
    known = _NAMES.get(name.partition(":")[0])
    if known is not None:
        return known
    return next((vocabulary for beginning, vocabulary in _BEGINNINGS if name.startswith(beginning)), None)


class ExactTokens:
    """Counts with the vocabularies, on the calling thread."""

    def __init__(self, toktok: Any) -> None:
        self._count = toktok.batch_count
        for vocabulary in ("cl100k_base", "o200k_base"):
            self._count([""], vocabulary, 1)

    def count(self, texts: Sequence[str], vocabulary: Vocabulary) -> int | None:
        """The tokens of these texts; None if they are not text (surrogates stand alone in them)."""
        try:
            counts: list[int] = self._count(texts, vocabulary, 1)
        except UnicodeEncodeError:
            return None
        return sum(counts)


def exact_tokens() -> ExactTokens | None:
    """The counter, loaded; None where the extra is not installed."""
    try:
        return ExactTokens(importlib.import_module("toktok"))
    except ModuleNotFoundError:
        return None
