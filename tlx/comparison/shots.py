"""Accuracy by the number of training images of each class: a curve for each strategy, model and backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tlx.comparison.statistics import interval_of_mean
from tlx.errors import printable

if TYPE_CHECKING:
    from tlx.comparison.choice import Entry
    from tlx.comparison.plan import Arm


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The mean accuracy of several draws of `shots` images a class, and its 95 % interval, which one draw has not."""

    shots: int
    accuracy: float
    low: float | None
    high: float | None
    draws: int


@dataclass(frozen=True, slots=True)
class ShotsCurve:
    """The points of one strategy, model and backend, by ascending shots; `part` says which images were judged."""

    arm: Arm  # without shots
    part: str  # "test", or "val" where the data has no test part
    points: tuple[CurvePoint, ...]

    @property
    def name(self) -> str:
        """What tells it from other curves."""
        return printable(" ".join((self.arm.strategy, self.arm.model, self.arm.backend)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        arm = {name: value for name, value in asdict(self.arm).items() if name != "shots"}
        return {**arm, "part": self.part, "points": [asdict(point) for point in self.points]}


def shots_curves(entries: Sequence[Entry]) -> list[ShotsCurve]:
    """Return the curves of what was chosen; none unless there are two numbers of shots."""
    chosen = [entry for entry in entries if entry.chosen and entry.candidate.arm.shots is not None]
    if len({entry.candidate.arm.shots for entry in chosen}) < 2:
        return []
    part = "test" if any(entry.test_accuracies for entry in chosen) else "val"
    points: dict[Arm, list[CurvePoint]] = {}
    for entry in sorted(chosen, key=lambda entry: entry.candidate.arm.shots or 0):
        of_val = tuple(o.val_accuracy for o in entry.outcomes if o.val_accuracy is not None)
        if values := entry.test_accuracies if part == "test" else of_val:
            shots, (mean, low, high) = entry.candidate.arm.shots or 0, interval_of_mean(values)
            point = CurvePoint(shots, mean, low, high, len(values))
            points.setdefault(replace(entry.candidate.arm, shots=None), []).append(point)
    return [ShotsCurve(arm, part, tuple(found)) for arm, found in sorted(points.items(), key=lambda pair: str(pair[0]))]


def curve_rows(curves: Sequence[ShotsCurve]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the cells of a table: a row for each curve, a column for each number of shots."""
    shots = sorted({point.shots for curve in curves for point in curve.points})
    heads = ["test accuracy" if curves[0].part == "test" else "validation accuracy"]
    heads += [f"{number} a class" for number in shots]
    rows = []
    for curve in curves:
        known = {point.shots: point for point in curve.points}
        rows.append([curve.name, *(_cell(known.get(number)) for number in shots)])
    return heads, rows


def _cell(point: CurvePoint | None) -> str:
    if point is None:
        return "-"
    interval = "" if point.low is None else f" [{point.low:.4f}, {point.high:.4f}]"
    return f"{point.accuracy:.4f}{interval}"
