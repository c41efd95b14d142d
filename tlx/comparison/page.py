"""The page of a comparison: a table, and validation accuracy against seconds, in one file that needs no other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from tlx.comparison.resampling import NAMES
from tlx.comparison.shots import curve_rows
from tlx.errors import printable

if TYPE_CHECKING:
    from tlx.comparison.choice import Entry
    from tlx.comparison.compare import Comparison
    from tlx.comparison.shots import ShotsCurve

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 380.0, 56.0, 16.0, 34.0, 44.0  # of the plot, in its own units
STYLES = 8  # of lines: four colours, whole and dashed


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
    curves = comparison.curves()
    few = {"curves": draw_curves(curves), "curve_table": curve_rows(curves)} if curves else {"curves": None}
    score = "mAP" if comparison.by == "average_precision" else "accuracy"
    said = {"by": NAMES[comparison.by], "score": score, "sentences": comparison.sentences()}
    return template.render(folder=str(comparison.folder), **said, **facts, **few)


def plot(entries: Sequence[Entry]) -> tuple[list[Point], list[Tick], list[Tick]]:
    """Return the points of the trade-off, seconds (logarithmic) to the right and accuracy upwards, and both axes."""
    known = [(number, e) for number, e in enumerate(entries, 1) if e.val_score is not None and e.seconds]
    if not known:
        return [], [], []
    seconds = [math.log10(e.seconds) for _, e in known if e.seconds]
    spans = [(e.val_score or 0.0, e.val_spread or 0.0) for _, e in known]
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
    return points, across, [Tick(y(value), f"{value:.3g}") for value in _round_values(bottom, top)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A curve in the plot: its points (x, y, and y of the interval's bounds, with what each says), and its style."""

    name: str
    line: str
    points: list[Point]
    style: int  # of `STYLES` kinds of lines


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """The plot of accuracy against the number of images of a class."""

    curves: list[Drawn]
    across: list[Tick]
    up: list[Tick]
    part: str


def draw_curves(curves: Sequence[ShotsCurve]) -> CurvePlot:
    """Return accuracy (upwards) by images of a class (logarithmic, to the right), with its interval."""
    points = [point for curve in curves for point in curve.points]
    shots = sorted({point.shots for point in points})
    left, right = _around(math.log10(shots[0]), math.log10(shots[-1]), 0.05)
    lows, highs = ([getattr(p, name) for p in points if p.low is not None] for name in ("low", "high"))
    means = [point.accuracy for point in points]
    bottom, top = _around(min(*means, *lows, 1.0), max(*means, *highs, 0.0), 0.01)

    def x(value: float) -> float:
        return round(LEFT + (math.log10(value) - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = []
    for number, curve in enumerate(curves):
        shift = 3.0 * (number - (len(curves) - 1) / 2)  # so that intervals do not hide each other
        marks = []
        for p in curve.points:
            low, high = (p.accuracy if bound is None else bound for bound in (p.low, p.high))
            text = f"{curve.name}, {p.shots} a class: {p.accuracy:.4f}"
            text += "" if p.low is None else f", 95 % interval {low:.4f} to {high:.4f}"
            marks.append(Point(round(x(p.shots) + shift, 1), y(p.accuracy), y(low), y(high), p.shots, text, ""))
        line = " ".join(f"{mark.x},{mark.y}" for mark in marks)
        drawn.append(Drawn(curve.name, line, marks, number % STYLES))
    up = [Tick(y(value), f"{value:.3g}") for value in _round_values(bottom, top)]
    return CurvePlot(
        drawn, [Tick(x(n), str(n)) for n in shots], up, "test" if curves[0].part == "test" else "validation"
    )


def _round_values(bottom: float, top: float) -> list[float]:
    """Round values of an axis, six at most."""
    step = next(s for s in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (top - bottom) / s <= 6)
    return [n * step for n in range(math.ceil(bottom / step), math.floor(top / step) + 1)]


def _around(low: float, high: float, least: float) -> tuple[float, float]:
    margin = max((high - low) * 0.08, least)
    return low - margin, high + margin


def _mark(entry: Entry) -> str:
    return "best" if entry.best else "chosen" if entry.chosen else "other"


def _text(entry: Entry, number: int) -> str:
    cell = entry.candidate.cells[0]
    label = cell.label.rpartition(" seed=")[0]
    return printable(f"{number}: {label}, validation {entry.val_score:.4f}, {entry.seconds:.1f} s")
