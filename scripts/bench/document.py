"""Writes what is kept of a run into docs/performance.md and draws its charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.bench import machine
from scripts.bench.plots import svg
from scripts.bench.results import Findings, load

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- measured: start -->", "<!-- measured: end -->"


def write_page(folder: Path, order: Sequence[str], page: Path = PAGE) -> None:
    """Replace the generated part of the page. The charts stand beside the kept results, in the folder."""
    text = page.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise RuntimeError(f"{page} has no place for results")
    found = load(folder, order)
    charts = page.parent / "performance"
    charts.mkdir(exist_ok=True)
    for findings in found:
        for chart in findings.charts:
            (charts / f"{chart.name}.svg").write_text(svg(chart), encoding="utf-8")
    page.write_text(f"{before}{START}\n{generated(found)}\n{END}{after}", encoding="utf-8")


def generated(found: Sequence[Findings]) -> str:
    """Markdown."""
    parts = []
    facts: dict[str, str] = {}
    for findings in found:
        if _lasting(findings.facts) != _lasting(facts):
            facts = findings.facts
            parts.append(machine.markdown(facts))
        parts.append(f"### {findings.title}\n\n{findings.markdown()}")
        parts += [f"![{chart.title}](performance/{chart.name}.svg)" for chart in findings.charts]
    return "\n\n".join(parts) or "Not measured yet."


def _lasting(facts: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if not name.startswith("load")}
