"""Regular expressions from tenants: only on RE2, whose time is linear in the text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import re2
from pydantic import AfterValidator, Field

MAX_PATTERN = 512
MAX_MEMORY_BYTES = 8 << 20
MAX_PROGRAM = 10_000


def _options() -> re2.Options:
    options = re2.Options()
    options.max_mem = MAX_MEMORY_BYTES
    options.log_errors = False
    return options


def _compiles(pattern: str) -> str:
    try:
        re2.compile(pattern, options=_options())
    except re2.error as error:
        reason = error.args[0] if error.args else "syntax"
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"is not a regular expression RE2 understands: {text}") from None
    return pattern


Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN), AfterValidator(_compiles)]
"""A regular expression in RE2 syntax (https://github.com/google/re2/wiki/Syntax), checked when it is written."""


class PatternSet:
    """Many patterns matched in one pass.

    ``cost`` is the number of RE2 instructions of all patterns together: the worst time for a text is its length times
    this, a few nanoseconds each. Raises ValueError if a pattern is wrong, or if the set is too large to promise anything.
    """

    def __init__(self, patterns: Iterable[str], *, ignore_case: bool = False) -> None:
        options = _options()
        options.case_sensitive = not ignore_case
        self._patterns = tuple(patterns)
        self._set = re2.Set.SearchSet(options)
        try:
            self.cost: int = sum(re2.compile(pattern, options=options).programsize for pattern in self._patterns)
            for pattern in self._patterns:
                self._set.Add(pattern)
            if self._patterns:
                self._set.Compile()
        except re2.error:
            raise ValueError("a pattern is wrong, or the patterns are too large together") from None
        if self.cost > MAX_PROGRAM:
            raise ValueError(f"the patterns compile to {self.cost} instructions; {MAX_PROGRAM} are allowed")

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def first_match(self, text: str) -> str | None:
        """The first of the patterns, in their order, that occurs anywhere in the text."""
        if not self._patterns:
            return None
        found = self._set.Match(text)
        return self._patterns[min(found)] if found else None
