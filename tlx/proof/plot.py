"""The errors of a stage as a plot on a logarithmic axis: only where its marks go, for the page to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from tlx.proof.result import Margins, Row, Stage


@dataclass(frozen=True, slots=True)
class Mark:
    """One row in a plot, in the plot's units."""

    x: float
    y: float
    row: Row


@dataclass(frozen=True, slots=True)
class Plot:
    """Errors on a logarithmic axis, in order of execution; zeros lie below the axis, what has no size above it."""

    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]  # height, label
    limit: float | None
    width: int = 720
    height: int = 220
    left: int = 56


def plot(stage: Stage) -> Plot | None:
    """Lay out a stage's rows; None where there are no errors to draw, or each is in a measure of its own."""
    if any(row.kind in get_args(Margins) for row in stage.rows):
        return None
    sizes = [row.error for row in stage.rows if 0 < row.error < math.inf]
    if not any(row.error for row in stage.rows):
        return None
    edges = [*sizes, stage.limit] if stage.limit else sizes
    low, high = _decades(edges)
    shape = Plot((), (), None)
    top, bottom = 28.0, shape.height - 34.0

    def y(error: float) -> float:
        if error == 0:
            return shape.height - 14.0
        if not math.isfinite(error):
            return 12.0
        return bottom - (math.log10(error) - low) / (high - low) * (bottom - top)

    step = (shape.width - shape.left - 24) / max(1, len(stage.rows) - 1)
    marks = tuple(Mark(shape.left + 12 + i * step, y(row.error), row) for i, row in enumerate(stage.rows))
    every = -(-(high - low) // 6)
    ticks = [(y(10.0**decade), f"1e{decade}") for decade in range(low, high + 1, every)]
    ticks += [(y(0.0), "0")] * any(row.error == 0 for row in stage.rows)
    ticks += [(y(math.inf), "inf")] * any(not math.isfinite(row.error) for row in stage.rows)
    return Plot(marks, tuple(ticks), y(stage.limit) if stage.limit else None)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten between which all values lie, at least one apart."""
    if not values:
        return -1, 0
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)
