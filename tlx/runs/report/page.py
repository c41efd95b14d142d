"""The page of one run: its sections, filled with what a run left."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.errors import TlxError, one_line, printable
from tlx.runs.report import verdict as words
from tlx.runs.report.album import FULL, Album, heated
from tlx.runs.report.charts import Curve, Mark, curves, reliability_chart
from tlx.runs.report.contents import Contents
from tlx.runs.report.figures import confusion, interval, least_sure, most_wrong, reliability
from tlx.runs.report.judged import Judged
from tlx.runs.report.several import Several, shown_of
from tlx.runs.report.summary import NONE, Summary, changes
from tlx.runs.scores import class_scores

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

WRONG, UNSURE = 18, 12  # images of the most wrong and the least sure that are shown
CELL_ROWS, CELL_IMAGES = 6, 200  # images of a cell of the matrix, and of all cells
POINTS, POINT_IMAGES = 2000, 300  # of a map, and how many of them have a thumbnail
LONGEST = 80  # characters of a name in the page's data; tables wrap what is longer
SECTIONS = ("batch", "wrong", "unsure", "matrix", "classes", "trust", "map", "several")  # that a template may lack
GENERATOR = "tlx report"  # by which a page is known as one of tlx's

Heat = Mapping[int, NDArray[np.float64]]


def page(contents: Contents, points: NDArray[Any] | None = None, explanations: Heat | None = None) -> str:
    """Return the page of a run: HTML that needs nothing else.

    Args:
        contents: what there is to show.
        points: a map of the images of the part that the page judges by (`verdict.main_part`): [N, 2], in the order of
            the rows of its table. A point that is not finite is left out.
        explanations: for some rows of that table, where the model looked: a heat map [h, w] of 0 to 1, of any size.
    """
    pictures = Pictures(contents, explanations or {})
    part = words.main_part(contents)
    judged = None if part is None else contents.parts.get(part)
    several = None if part is None else contents.several.get(part)
    sections: dict[str, Any] = {"batch": pictures.batch()}
    if judged is not None:
        sections |= _of_judged(judged, contents, pictures)
    if several is not None:
        sections["several"] = shown_of(several, contents.classes, WRONG, pictures.tile)
    if judged is not None and points is not None:
        sections["map"] = _map(points, judged, pictures)
    changed, settled = changes(contents.summary.recipe)
    return (
        environment()
        .get_template("run.html.j2")
        .render(
            contents=contents,
            summary=contents.summary,
            verdict=words.verdict_of(contents),
            words=words,
            part=part,
            part_name=words.PARTS.get(part or "", ""),
            changed=changed,
            settled=settled,
            charts=charts(contents.summary),
            album=pictures.album,
            gone=pictures.album.gone,
            data=pictures.data,
            explained=bool(explanations),
            **{name: sections.get(name) for name in SECTIONS},
        )
    )


@cache
def environment() -> Environment:
    """Return what fills templates: every text is escaped, and made printable."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # else: it is HTML, or no text
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        auto_reload=False,
    )
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    # A template prints what is marked as it is; both files are tlx's own.
    made.globals.update(style=Markup(style), script=Markup(script), generator=GENERATOR, interval=interval)
    made.filters.update(svg=Markup, json=_json, last=_last, percent=_percent, short=short, first_clause=_first_clause)
    return made


def _json(value: Any) -> Any:
    """Write data into a script: no text in it can end the script, and no number is NaN."""
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _last(path: str, parts: int = 1) -> str:
    return "/".join(path.rsplit("/", parts)[-parts:])


def _first_clause(text: str) -> str:
    clause = re.split(r"; | \(", text)[0].replace("`", "")
    return clause if len(clause) <= LONGEST else f"{clause[: clause.rindex(' ', 0, LONGEST)]} …"


def _percent(share: float | None) -> str:
    return NONE if share is None or not np.isfinite(share) else words.percent(float(share))


def short(text: str, most: int = LONGEST) -> str:
    """Return a text for the page's data: printable, and not longer than what a page can show."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 + 1 :]}"


class Pictures:
    """The thumbnails of a page, and what is said of each image when one looks at it."""

    def __init__(self, contents: Contents, explanations: Heat) -> None:
        self.contents, self.explanations, self.album = contents, explanations, Album()
        self.data: dict[str, Any] = {"names": [], "images": {}, "cells": {}, "map": None, "charts": []}
        self._names: dict[int, int] = {}
        self.data["charts"] = chart_data(contents.summary)

    def batch(self) -> Any:
        """The first batch, or why there is none."""
        if self.contents.batch is None:
            return None
        try:
            samples = self.contents.batch()
        except TlxError as error:
            return {"problem": error.problem, "shots": []}
        except Exception as error:  # of a data set of the user's own
            return {"problem": one_line(f"{type(error).__name__}: {error}"), "shots": []}
        shots = [
            (self.album.add(("batch", place), lambda sample=sample: sample.image), sample.label)  # type: ignore[misc]
            for place, sample in enumerate(samples)
        ]
        smaller = any(sample.side < self.contents.size for sample in samples)
        return {"problem": "", "shots": shots, "smaller": smaller}

    def tile(self, judged: Judged | Several, row: int) -> int:
        """The number of an image's thumbnail."""
        return self.album.add(row, None if judged.open is None else partial(judged.open, row))

    def shot(self, judged: Judged, row: int, explain: bool = False) -> dict[str, Any]:
        """An image with what was predicted."""
        classes, heat = self.contents.classes, self.explanations.get(row) if explain else None
        return {
            "tile": self.tile(judged, row),
            "heat": None if heat is None else self.album.add(("heat", row), partial(self._heated, judged, row, heat)),
            "label": classes[judged.labels[row]],
            "prediction": classes[judged.predictions[row]],
            "correct": bool(judged.labels[row] == judged.predictions[row]),
            "probability": float(judged.probability[row]),
            "margin": float(judged.margin[row]),
            "path": judged.name(row),
        }

    def _heated(self, judged: Judged, row: int, heat: NDArray[np.float64]) -> Image:
        assert judged.open is not None
        return heated(judged.open(row), heat)

    def know(self, judged: Judged, row: int, tile: int) -> None:
        """Let the page's script show an image."""
        probability = float(judged.probability[row])
        self.data["images"][row] = [
            tile,
            self.name(int(judged.labels[row])),
            self.name(int(judged.predictions[row])),
            round(probability, 4) if np.isfinite(probability) else None,
            short(judged.name(row)),
        ]

    def name(self, place: int) -> int:
        """The number of a class's name in the page's data."""
        if place not in self._names:
            self._names[place] = len(self.data["names"])
            self.data["names"].append(short(self.contents.classes[place]))
        return self._names[place]


def _of_judged(judged: Judged, contents: Contents, pictures: Pictures) -> dict[str, Any]:
    """The sections that are made of predictions."""
    table = class_scores(judged.labels, judged.predictions, len(contents.classes))
    wrong = [pictures.shot(judged, row, explain=True) for row in most_wrong(judged, WRONG)]
    unsure = [pictures.shot(judged, row) for row in least_sure(judged, UNSURE)]
    bins = {"c0": reliability(judged.probability, judged.correct)}
    if judged.calibrated is not None:
        bins["c1"] = reliability(judged.calibrated, judged.correct)
    return {
        "wrong": wrong,
        "unsure": unsure,
        "matrix": _matrix(judged, contents, pictures),
        "classes": {"table": table, "rows": table.rows()},
        "trust": {"chart": reliability_chart(list(bins.items())), "bins": bins},
    }


def _matrix(judged: Judged, contents: Contents, pictures: Pictures) -> dict[str, Any]:
    """The matrix of confusions, with the images behind its cells."""
    classes = len(contents.classes)
    shown = confusion(judged, classes)
    loss = np.nan_to_num(judged.loss, nan=np.inf)
    key = judged.labels * classes + judged.predictions
    order = np.lexsort((-loss, key))
    ordered = key[order]
    cells: dict[tuple[int, int], list[int]] = {}
    for i, j in zip(*map(np.ndarray.tolist, np.nonzero(shown.counts)), strict=True):
        start = int(np.searchsorted(ordered, shown.classes[i] * classes + shown.classes[j]))
        cells[i, j] = order[start : start + min(int(shown.counts[i, j]), CELL_ROWS)].tolist()
    chosen = dict[int, None]()
    for place in range(CELL_ROWS):  # the first of each cell, mistakes before the others; then the second of each
        for rows in [cells[cell] for cell in sorted(cells, key=lambda cell: cell[0] == cell[1])]:
            if place < len(rows) and len(chosen) < CELL_IMAGES:
                chosen[rows[place]] = None
    tiles = {row: pictures.tile(judged, row) for row in chosen}
    for cell, rows in cells.items():
        known = [row for row in rows if tiles.get(row, FULL) != FULL]
        for row in known:
            pictures.know(judged, row, tiles[row])
        pictures.data["cells"]["{},{}".format(*cell)] = known
    totals = shown.counts.sum(axis=1)
    return {
        "names": [contents.classes[place] for place in shown.classes],
        "numbers": [pictures.name(place) for place in shown.classes],
        "counts": shown.counts.tolist(),
        "shares": np.divide(shown.counts, totals[:, None], where=totals[:, None] > 0, out=np.zeros(shown.counts.shape)),
        "pairs": [(contents.classes[a], contents.classes[b], n) for a, b, n in shown.pairs],
        "outside": shown.outside,
        "all": len(shown.classes) == len(np.union1d(judged.labels, judged.predictions)),
    }


def _map(points: NDArray[Any], judged: Judged, pictures: Pictures) -> dict[str, Any]:
    """The map of embeddings: where each point lies, between 0 and 1 in both directions, and which image it is."""
    if points.shape != (len(judged), 2):
        raise TlxError(f"the map has points {list(points.shape)}; expected [{len(judged)}, 2]")
    rows = np.flatnonzero(np.isfinite(points).all(axis=1))
    left_out = len(judged) - len(rows)
    if not len(rows):
        return {"points": 0, "left_out": left_out, "of": len(judged)}
    kept = rows[:: -(-len(rows) // POINTS)]
    places = points[kept].astype(np.float64)
    low, span = places.min(axis=0), np.ptp(places, axis=0).max() or 1.0  # one scale, so that distances are true
    middle = (1 - np.ptp(places, axis=0) / span) / 2
    places = (places - low) / span + middle
    with_image = {*kept[:: -(-len(kept) // POINT_IMAGES)].tolist()}
    for row in kept.tolist():
        known = row in with_image or row in pictures.data["images"]
        pictures.know(judged, row, pictures.tile(judged, row) if known else FULL)
    pictures.data["map"] = {"rows": kept.tolist(), "at": np.round(places, 4).ravel().tolist()}
    return {"points": len(kept), "left_out": left_out, "of": len(judged)}


def charts(summary: Summary) -> list[tuple[str, str]]:
    """The curves of a run; none where no steps were taken."""
    if summary.fitted:
        return []
    marks, before = list[Mark](), ""
    for number, epoch in enumerate(summary.epochs, 1):
        if epoch.phase != before:
            marks.append(Mark(number, epoch.phase))
            before = epoch.phase
    marks = marks if len(marks) > 1 else []
    best = summary.best_epoch if summary.epochs[0].val_loss is not None else None
    return [(name, curves(name, lines, marks, best, percent=name == "Accuracy")) for name, lines in _lines(summary)]


_TITLES = {"loss": "Loss", "accuracy": "Accuracy", "average_precision": "Mean average precision"}


def _lines(summary: Summary) -> list[tuple[str, list[Curve]]]:
    parts = (("train", "training", "c0"), ("val", "validation", "c1"))
    lines: list[tuple[str, list[Curve]]] = []
    for name in ("loss", "average_precision" if summary.multilabel else "accuracy"):
        columns = [[getattr(epoch, f"{part}_{name}", None) for epoch in summary.epochs] for part, _, _ in parts]
        drawn = [
            Curve(label, colour, values)
            for (_, label, colour), values in zip(parts, columns, strict=True)
            if any(value is not None for value in values)
        ]
        if drawn:
            lines.append((_TITLES[name], drawn))
    return lines


def chart_data(summary: Summary) -> list[dict[str, Any]]:
    """What the script says of a chart's epoch."""
    if summary.fitted:
        return []
    step = -(-len(summary.epochs) // 400)
    return [
        {
            "percent": name == "Accuracy",
            "epochs": len(summary.epochs),
            "step": step,
            "lines": [
                [line.name, [None if v is None else float(f"{v:.4g}") for v in line.values[::step]]] for line in lines
            ],
        }
        for name, lines in _lines(summary)
    ]


def is_page(text: str) -> bool:
    """Whether a text begins as a page of tlx's does."""
    return re.search(rf'<meta name="generator" content="{GENERATOR}', text[:1000]) is not None
