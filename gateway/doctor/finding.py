"""What was found, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``subject`` is what was looked at, in a word or two; ``advice`` what to do, empty where all is well. No secrets."""

    level: Level
    subject: str
    what: str
    advice: str = ""


def ok(subject: str, what: str) -> Finding:
    """All is well."""
    return Finding("ok", subject, what)


def warn(subject: str, what: str, advice: str) -> Finding:
    """It works and should not stay so."""
    return Finding("warn", subject, what, advice)


def fail(subject: str, what: str, advice: str) -> Finding:
    """It does not work, or loses data, or lets in whom it should not."""
    return Finding("fail", subject, what, advice)


def as_lines(findings: Iterable[Finding]) -> list[str]:
    """A line for each."""
    return [
        f"{one.level:<4}  {one.subject}: {one.what}{f' — {one.advice}' if one.advice else ''}".replace("\n", " ")
        for one in findings
    ]


def as_json(findings: Iterable[Finding]) -> str:
    """A list of objects with level, subject, what and advice."""
    return json.dumps([asdict(one) for one in findings], indent=2, ensure_ascii=False)
