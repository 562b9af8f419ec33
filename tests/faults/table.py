"""What became of faults: one row for each kind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

HEAD = ("fault", "tried", "survived", "worst answer ms", "longest recovery ms")


@dataclass
class FaultRow:
    """A kind of fault. ``worst_ms`` is the slowest answer while it lasted, ``recovery_ms`` the longest way back after it."""

    kind: str
    tried: int = 0
    survived: int = 0
    worst_ms: float | None = None
    recovery_ms: float | None = None

    @contextlib.contextmanager
    def one_try(self) -> Iterator[None]:
        """A try that is survived if nothing is raised."""
        self.tried += 1
        yield
        self.survived += 1

    def answered(self, took_ms: float) -> None:
        """An answer during the fault took so long."""
        self.worst_ms = max(took_ms, self.worst_ms or 0.0)

    @contextlib.contextmanager
    def answer(self) -> Iterator[None]:
        """Times an answer during the fault."""
        began = time.perf_counter()
        yield
        self.answered((time.perf_counter() - began) * 1_000)

    @contextlib.contextmanager
    def recovery(self) -> Iterator[None]:
        """Times the way back."""
        began = time.perf_counter()
        yield
        self.recovery_ms = max((time.perf_counter() - began) * 1_000, self.recovery_ms or 0.0)

    def facts(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "kind": self.kind,
            "tried": self.tried,
            "survived": self.survived,
            "worst_ms": self.worst_ms,
            "recovery_ms": self.recovery_ms,
        }


def merged(facts: Iterable[dict[str, Any]]) -> list[FaultRow]:
    """Rows by kind; what was tried in several tests is added up."""
    rows: dict[str, FaultRow] = {}
    for fact in facts:
        row = rows.setdefault(fact["kind"], FaultRow(fact["kind"]))
        row.tried += fact["tried"]
        row.survived += fact["survived"]
        for name in ("worst_ms", "recovery_ms"):
            if fact[name] is not None:
                setattr(row, name, max(fact[name], getattr(row, name) or 0.0))
    return [rows[kind] for kind in sorted(rows)]


def printed(rows: Iterable[FaultRow]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        times = ["-" if value is None else f"{value:.0f}" for value in (row.worst_ms, row.recovery_ms)]
        lines.append(f"| {' | '.join((row.kind, str(row.tried), str(row.survived), *times))} |")
    return "\n".join(lines)
