"""One page for several runs: figures and curves beside each other, and which images only one of them gets right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.runs.confidence import calibration_error
from tlx.runs.listing import differing
from tlx.runs.report import verdict as words
from tlx.runs.report.album import Album
from tlx.runs.report.charts import Curve, curves
from tlx.runs.report.contents import Contents
from tlx.runs.report.judged import Judged
from tlx.runs.report.page import environment
from tlx.runs.report.several import Shown, shown_of
from tlx.runs.report.summary import plain
from tlx.runs.scores import class_scores

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = 8  # of the style; more runs are dashed
SHOTS = 12  # images of each kind that are shown


@dataclass(frozen=True, slots=True)
class Line:
    """The final figures of a run; None: it has none."""

    name: str
    colour: str
    dashed: bool
    contents: Contents
    accuracy: float | None  # on the test part
    images: int
    balanced_accuracy: float | None
    macro_f1: float | None
    ece: float | None
    several: Shown | None = None  # the figures of several labels on the test part

    @property
    def score(self) -> float | None:
        """What runs are ordered by: mAP of several labels, otherwise the accuracy."""
        return self.accuracy if self.several is None else self.several.figures["average_precision"]

    @property
    def val_score(self) -> float | None:
        """The same on the validation part."""
        summary = self.contents.summary
        return (
            summary.epochs[summary.best_epoch - 1].val_average_precision if summary.multilabel else summary.val_accuracy
        )


@dataclass(frozen=True, slots=True)
class Duel:
    """A run against the best one, on the images that both were tested on."""

    name: str
    best_alone: int  # images that only the best gets right
    alone: int
    chance: float  # that two equally good models differ at least so much: see `mcnemar`


def comparison_of(runs: Sequence[Contents]) -> str:
    """Return the page that compares runs: HTML that needs nothing else."""
    names = names_of([run.run_dir for run in runs])
    lines = [_line(name, place, run) for place, (name, run) in enumerate(zip(names, runs, strict=True))]
    ranked = sorted(lines, key=lambda line: (-(line.score or 0), -(line.val_score or 0)))
    fields = differing([{"recipe": _recipe(run)} for run in runs])  # type: ignore[typeddict-item]
    drawn = [chart for chart in _charts(lines) if chart[1]]
    album = Album()
    together = _together(ranked, album)
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            lines=ranked,
            multilabel=runs[0].summary.multilabel,
            words=words,
            fields=[(name, [plain(_recipe(line.contents).get(name)) for line in ranked]) for name in fields],
            charts=drawn,
            together=together,
            album=album,
            data={"names": [], "images": {}, "cells": {}, "map": None, "charts": [chart[2] for chart in drawn]},
        )
    )


def names_of(folders: Sequence[str]) -> list[str]:
    """Return the shortest ends of the paths that tell the runs apart."""
    parts = [PurePath(folder).parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len({*names}) == len(names):
            return names
    return [f"{folder} ({number})" for number, folder in enumerate(folders, 1)]  # one is given twice


def _line(name: str, place: int, run: Contents) -> Line:
    judged, colour = run.parts.get("test"), f"c{place % COLOURS}"
    if run.summary.multilabel:
        part = run.several.get("test")
        shown = None if part is None else shown_of(part, run.classes, 0)
        images = 0 if part is None else len(part)
        return Line(name, colour, place >= COLOURS, run, None, images, None, None, None, shown)
    if judged is None:
        return Line(name, colour, place >= COLOURS, run, run.summary.test_accuracy, 0, None, None, run.summary.ece)
    accuracy, finite = float(judged.correct.mean()), np.isfinite(judged.probability)
    ece = calibration_error(judged.probability[finite], judged.correct[finite]) if finite.any() else None
    scores = class_scores(judged.labels, judged.predictions, len(run.classes))
    return Line(
        name, colour, place >= COLOURS, run, accuracy, len(judged), scores.balanced_accuracy, scores.macro_f1, ece
    )


def _recipe(run: Contents) -> dict[str, Any]:
    return {name: value for name, value in run.summary.recipe.items() if name != "out"}


def _charts(lines: Sequence[Line]) -> list[tuple[str, str, dict[str, Any]]]:
    """A chart for each figure, with a curve for each run that takes steps: its title, SVG, and the script's data."""
    charts = []
    stepping = [line for line in lines if not line.contents.summary.fitted]
    for field, title in (
        ("train_loss", "Training loss"),
        ("val_loss", "Validation loss"),
        ("train_accuracy", "Training accuracy"),
        ("val_accuracy", "Validation accuracy"),
        ("val_average_precision", "Validation mAP"),
    ):
        if lines[0].contents.summary.multilabel == field.endswith("accuracy") and not field.endswith("loss"):
            continue
        drawn = [
            Curve(
                line.name, line.colour, [getattr(epoch, field) for epoch in line.contents.summary.epochs], line.dashed
            )
            for line in stepping
        ]
        percent = field.endswith("accuracy")
        epochs = max((len(curve.values) for curve in drawn), default=0)
        step = -(-epochs // 400) or 1
        data = {
            "percent": percent,
            "epochs": epochs,
            "step": step,
            "lines": [[c.name, [None if v is None else float(f"{v:.4g}") for v in c.values[::step]]] for c in drawn],
        }
        charts.append((title, curves(title, drawn, percent=percent), data))
    return charts


def _together(ranked: Sequence[Line], album: Album) -> dict[str, Any] | None:
    """What runs get right of the images that they were all tested on; None where no two have the same test part."""
    groups: list[list[Line]] = []
    for line in (line for line in ranked if "test" in line.contents.parts):
        group = next((group for group in groups if _same(group[0].contents, line.contents)), None)
        if group is None:
            groups.append([line])
        else:
            group.append(line)
    same = max(groups, key=len, default=[])
    if len(same) < 2:
        return None
    right = np.stack([line.contents.parts["test"].correct for line in same])
    alone = [(line, np.flatnonzero(row & (right.sum(axis=0) == 1))) for line, row in zip(same, right, strict=True)]
    none, every = np.flatnonzero(~right.any(axis=0)), int(right.all(axis=0).sum())
    shots = partial(_shots, same, album)
    return {
        "images": right.shape[1],
        "runs": len(same),
        "others": [line.name for line in ranked if line not in same],
        "every": every,
        "none": len(none),
        "none_shots": shots(none),
        "alone": [(line.name, len(rows), shots(rows)) for line, rows in alone],
        "duels": [_duel(line.name, right[0], row) for line, row in zip(same[1:], right[1:], strict=True)],
        "best": same[0].name,
    }


def _same(one: Contents, other: Contents) -> bool:
    a, b = one.parts["test"], other.parts["test"]
    labels = [one.classes[label] for label in a.labels] == [other.classes[label] for label in b.labels]
    return len(a) == len(b) and labels and all(a.name(row) == b.name(row) for row in range(len(a)))


def _shots(same: Sequence[Line], album: Album, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Some images, with what each run says of them: those first of which the runs were surest."""
    parts = [line.contents.parts["test"] for line in same]
    loss = np.nan_to_num(sum(part.loss[rows] for part in parts), nan=np.inf)
    opening = next((part.open for part in parts if part.open is not None), None)
    classes = same[0].contents.classes
    return [
        {
            "tile": album.add(row, _take(opening, row)),
            "label": classes[parts[0].labels[row]],
            "said": [_said(line, part, row) for line, part in zip(same, parts, strict=True)],
            "path": parts[0].name(row),
        }
        for row in rows[np.argsort(-loss, kind="stable")[:SHOTS]].tolist()
    ]


def _take(opening: Callable[[int], Image] | None, row: int) -> Callable[[], Image] | None:
    return None if opening is None else partial(opening, row)


def _said(line: Line, part: Judged, row: int) -> tuple[str, str, bool]:
    return line.name, line.contents.classes[part.predictions[row]], bool(part.correct[row])


def _duel(name: str, best: NDArray[np.bool_], other: NDArray[np.bool_]) -> Duel:
    ahead, behind = int((best & ~other).sum()), int((other & ~best).sum())
    return Duel(name, ahead, behind, mcnemar(ahead, behind))


def mcnemar(one: int, other: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, by the images that only one of two models gets right.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions"; for models, Dietterich
    1998, "Approximate statistical tests for comparing supervised classification learning algorithms", section 3.1.
    """
    total = one + other
    tail, term = 0.0, -total * math.log(2)  # the logarithm of the binomial's terms, which overflow
    for k in range(min(one, other) + 1):
        tail += math.exp(term)
        term += math.log((total - k) / (k + 1)) if k < total else 0.0
    return min(1.0, 2 * tail)
