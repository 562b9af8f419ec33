"""Regular expressions from tenants: only on RE2, whose time is linear in the text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import re2
from pydantic import AfterValidator, BaseModel, Field

MAX_PATTERN = 512
MAX_PROGRAM = 10_000
MAX_PROGRAM_BYTES = 256 << 10
"""Enough for so many instructions; a pattern that needs more is found out in a millisecond or two, and not in a hundred."""

MAX_SET_BYTES = 8 << 20
"""For matching all patterns of a set at once."""


class PatternText(str):
    """A regular expression that has been checked; a type of its own, so that `count_patterns` knows it."""

    __slots__ = ()


def _options(max_bytes: int = MAX_PROGRAM_BYTES) -> re2.Options:
    options = re2.Options()
    options.max_mem = max_bytes
    options.log_errors = False
    return options


def _compiles(pattern: str) -> PatternText:
    try:
        re2.compile(pattern, options=_options())
    except re2.error as error:
        reason = error.args[0] if error.args else "syntax"
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"is not a regular expression RE2 understands: {text}") from None
    return PatternText(pattern)


Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN), AfterValidator(_compiles)]
"""A regular expression in RE2 syntax (https://github.com/google/re2/wiki/Syntax), checked when it is written."""


def count_patterns(value: object) -> int:
    """How many `Pattern` there are anywhere in settings."""
    if isinstance(value, PatternText):
        return 1
    if isinstance(value, BaseModel):
        return sum(count_patterns(one) for _, one in value)
    if isinstance(value, Mapping):
        return sum(count_patterns(one) for one in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return sum(map(count_patterns, value))
    return 0


class PatternSet:
    """Many patterns matched in one pass.

    ``cost`` is the number of RE2 instructions of all patterns together: the worst time for a text is its length times
    this, a few nanoseconds each. Raises ValueError if a pattern is wrong, or if the set is too large to promise anything.
    """

    def __init__(self, patterns: Iterable[str], *, ignore_case: bool = False) -> None:
        alone, together = _options(), _options(MAX_SET_BYTES)
        alone.case_sensitive = together.case_sensitive = not ignore_case
        self._patterns = tuple(patterns)
        self._set = re2.Set.SearchSet(together)
        self.cost = 0
        try:
            for pattern in self._patterns:
                self.cost += re2.compile(pattern, options=alone).programsize
                if self.cost > MAX_PROGRAM:
                    raise ValueError(f"the patterns compile to more than {MAX_PROGRAM} instructions")
                self._set.Add(pattern)
            if self._patterns:
                self._set.Compile()
        except re2.error:
            raise ValueError("a pattern is wrong, or the patterns are too large together") from None

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def first_match(self, text: str) -> str | None:
        """The first of the patterns, in their order, that occurs anywhere in the text."""
        if not self._patterns:
            return None
        found = self._set.Match(text)
        return self._patterns[min(found)] if found else None
