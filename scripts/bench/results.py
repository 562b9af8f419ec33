"""What a section has found: tables, charts and notes; kept as JSON as soon as the section has ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Cell = str | float | None
Point = tuple[float, float]


@dataclass
class Table:
    """``digits`` are those after the point of the numbers of a column; the first column names the row."""

    title: str
    columns: list[str]
    digits: list[int]
    rows: list[list[Cell]] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        self.rows.append(list(cells))

    def markdown(self) -> str:
        lines = [f"| {' | '.join(self.columns)} |", "|---" + "|---:" * (len(self.columns) - 1) + "|"]
        for row in self.rows:
            cells = [shown(cell, digits) for cell, digits in zip(row, self.digits, strict=True)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


@dataclass
class Chart:
    """Bars have one value for each name, lines have points. ``name`` is that of its file."""

    name: str
    title: str
    unit: str
    bars: list[tuple[str, float]] = field(default_factory=list)
    lines: dict[str, list[Point]] = field(default_factory=dict)
    x_label: str = ""
    logarithmic: bool = False


@dataclass
class Findings:
    """Of one section."""

    section: str
    title: str
    facts: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Tables and notes."""
        parts = []
        for table in self.tables:
            parts += [f"**{table.title}**", table.markdown()]
        if self.notes:
            parts.append("\n".join(f"* {' '.join(text.split())}" for text in self.notes))
        return "\n\n".join(parts)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.section}.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def load(folder: Path, order: Sequence[str]) -> list[Findings]:
    """Those that are there."""
    found = []
    for section in order:
        path = folder / f"{section}.json"
        if path.exists():
            found.append(_findings(json.loads(path.read_text(encoding="utf-8"))))
    return found


def _findings(saved: dict[str, Any]) -> Findings:
    tables = [Table(**table) for table in saved.pop("tables")]
    charts = [Chart(**chart) for chart in saved.pop("charts")]
    for chart in charts:  # JSON knows no tuples
        chart.bars = [(name, value) for name, value in chart.bars]
        chart.lines = {name: [(x, y) for x, y in line] for name, line in chart.lines.items()}
    return Findings(**saved, tables=tables, charts=charts)


def shown(cell: Cell, digits: int) -> str:
    """As it stands in a table."""
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else f"{cell:,.{digits}f}"


def told_failures(count: int) -> str:
    """A row with failures is marked: its other numbers mean little."""
    return f"**{count} failed**" if count else "0"
