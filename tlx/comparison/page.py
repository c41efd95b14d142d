"""The page of a comparison: a table, and validation accuracy against seconds, in one file that needs no other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from tlx.errors import printable

if TYPE_CHECKING:
    from tlx.comparison.choice import Entry
    from tlx.comparison.compare import Comparison

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 380.0, 56.0, 16.0, 34.0, 44.0  # of the plot, in its own units


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate in the plot; `number` is its row in the table."""

    x: float
    y: float
    low: float  # y of the mean minus the spread
    high: float
    number: int
    text: str
    mark: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of an axis."""

    at: float
    text: str


def page(comparison: Comparison) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, StrictUndefined

    heads, rows = comparison.rows()
    points, across, up = plot(comparison.entries)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = lambda text: printable(str(text))
    template = environment.from_string(files("tlx.comparison").joinpath("page.html").read_text(encoding="utf-8"))
    size = {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "floor": HEIGHT - BOTTOM,
    }
    facts = {"heads": heads, "rows": rows, "points": points, "across": across, "up": up, **size}
    return template.render(folder=str(comparison.folder), sentences=comparison.sentences(), **facts)


def plot(entries: Sequence[Entry]) -> tuple[list[Point], list[Tick], list[Tick]]:
    """Return the points of the trade-off, seconds (logarithmic) to the right and accuracy upwards, and both axes."""
    known = [(number, e) for number, e in enumerate(entries, 1) if e.val_accuracy is not None and e.seconds]
    if not known:
        return [], [], []
    seconds = [math.log10(e.seconds) for _, e in known if e.seconds]
    spans = [(e.val_accuracy or 0.0, e.val_spread or 0.0) for _, e in known]
    left, right = _around(min(seconds), max(seconds), 0.05)
    bottom, top = _around(min(a - s for a, s in spans), max(a + s for a, s in spans), 0.01)

    def x(value: float) -> float:
        return round(LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    points = []
    for (number, entry), at, (accuracy, spread) in zip(known, seconds, spans, strict=True):
        heights = y(accuracy), y(accuracy - spread), y(accuracy + spread)
        points.append(Point(x(at), *heights, number, _text(entry, number), _mark(entry)))
    values = [10**power * digit for power in range(-4, 8) for digit in (1, 2, 5)]
    across = [Tick(x(math.log10(v)), f"{v:g}") for v in values if left <= math.log10(v) <= right]
    if len(across) < 2:
        across = [Tick(x(at), f"{10**at:.3g}") for at in (left, (left + right) / 2, right)]
    step = next(s for s in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (top - bottom) / s <= 6)
    up = [Tick(y(n * step), f"{n * step:.3g}") for n in range(math.ceil(bottom / step), math.floor(top / step) + 1)]
    return points, across, up


def _around(low: float, high: float, least: float) -> tuple[float, float]:
    margin = max((high - low) * 0.08, least)
    return low - margin, high + margin


def _mark(entry: Entry) -> str:
    return "best" if entry.best else "chosen" if entry.chosen else "other"


def _text(entry: Entry, number: int) -> str:
    cell = entry.candidate.cells[0]
    label = cell.label.rpartition(" seed=")[0]
    return printable(f"{number}: {label}, validation {entry.val_accuracy:.4f}, {entry.seconds:.1f} s")
