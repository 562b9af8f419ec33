"""Charts as SVG, written by hand so that nothing has to be installed. Readable on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from scripts.bench.results import Chart

WIDTH, BAR_HEIGHT, LEFT, RIGHT, TOP = 760, 24, 190, 110, 44
PLOT_HEIGHT = 260
COLOURS = ("#2f6fb3", "#c2571a", "#2e8b57", "#8a4fb0", "#a3862a", "#b03a5b")
_STYLE = (
    "<style>text{font:13px sans-serif;fill:#333}.t{font-weight:bold}.g{stroke:#8884;stroke-width:1}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>"
)


def svg(chart: Chart) -> str:
    """The whole picture."""
    return _bars(chart) if chart.bars else _lines(chart)


def ticks(low: float, high: float, *, logarithmic: bool, count: int = 5) -> list[float]:
    """Round numbers that cover a range."""
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return [10.0**power for power in range(first, max(last, first + 1) + 1)]
    step = 10.0 ** math.floor(math.log10(high / count)) if high > 0 else 1.0
    step *= next(factor for factor in (1, 2, 5, 10) if high / (step * factor) <= count)
    return [step * number for number in range(math.ceil(high / step - 1e-9) + 1)]


class Scale:
    """Values to pixels."""

    def __init__(self, marks: Sequence[float], start: float, end: float, *, logarithmic: bool) -> None:
        self._to = math.log10 if logarithmic else float
        self._low, self._high = self._to(marks[0]), self._to(marks[-1])
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (self._to(value) - self._low) / ((self._high - self._low) or 1)
        return self._start + share * (self._end - self._start)


def _bars(chart: Chart) -> str:
    values = [value for _, value in chart.bars if value > 0]
    marks = ticks(min(values), max(values), logarithmic=chart.logarithmic)
    scale = Scale(marks, LEFT, WIDTH - RIGHT, logarithmic=chart.logarithmic)
    height = TOP + BAR_HEIGHT * len(chart.bars) + 30
    bottom = height - 24
    parts = [_text(LEFT, 20, chart.title, "t"), _text(WIDTH - RIGHT, 20, chart.unit, anchor="end")]
    for mark in marks:
        parts.append(f'<line class="g" x1="{scale(mark):.1f}" x2="{scale(mark):.1f}" y1="{TOP - 10}" y2="{bottom}"/>')
        parts.append(_text(scale(mark), bottom + 16, _short(mark), anchor="middle"))
    for index, (name, value) in enumerate(chart.bars):
        y = TOP + BAR_HEIGHT * index
        end = scale(max(value, marks[0]))
        colour = COLOURS[1] if name.startswith("gateway") else COLOURS[0]
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{max(1, end - LEFT):.1f}" height="{BAR_HEIGHT - 6}" fill="{colour}"/>')
        parts.append(_text(LEFT - 8, y + 14, name, anchor="end"))
        parts.append(_text(end + 6, y + 14, _short(value)))
    return _picture(height, parts)


def _lines(chart: Chart) -> str:
    points = [point for line in chart.lines.values() for point in line]
    x_marks = ticks(*_range([x for x, _ in points]), logarithmic=chart.logarithmic)
    y_marks = ticks(0, max(y for _, y in points), logarithmic=False)
    bottom = TOP + PLOT_HEIGHT
    x_of = Scale(x_marks, 70, WIDTH - RIGHT - 60, logarithmic=chart.logarithmic)
    y_of = Scale(y_marks, bottom, TOP, logarithmic=False)
    parts = [_text(70, 20, f"{chart.title} ({chart.unit})", "t"), _text(320, bottom + 36, chart.x_label, anchor="middle")]
    for mark in y_marks:
        parts.append(f'<line class="g" x1="70" x2="{WIDTH - RIGHT - 60}" y1="{y_of(mark):.1f}" y2="{y_of(mark):.1f}"/>')
        parts.append(_text(62, y_of(mark) + 4, _short(mark), anchor="end"))
    parts += [_text(x_of(mark), bottom + 18, _short(mark), anchor="middle") for mark in x_marks]
    for index, (name, line) in enumerate(chart.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        y = TOP + 20 * index
        parts.append(f'<rect x="{WIDTH - RIGHT - 45}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT - 28, y + 11, name))
    return _picture(bottom + 50, parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    if value >= 1e4:
        return f"{value / 1e3:,.0f} k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _picture(height: float, parts: Sequence[str]) -> str:
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}">'
    return "\n".join([frame, _STYLE, *parts, "</svg>", ""])
