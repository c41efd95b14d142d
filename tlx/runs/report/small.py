"""A run in a notebook: its verdict, its curves, three of its mistakes, and where the page is."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tlx.errors import as_html
from tlx.files import read_regular
from tlx.manifest import REPORT
from tlx.runs.report.album import uris_in
from tlx.runs.report.verdict import clock, count, percent

if TYPE_CHECKING:
    from tlx.runs.result import HistoryEntry, Result

MISTAKES = 3
LARGEST = 1 << 23  # bytes of a page, which has less than 2 MB
# A notebook's theme is not the browser's: text takes the colour of what is around it, and lines are of a medium tone.
TRAIN, VAL = "#3d8fd1", "#d9762b"


def small(result: Result) -> str:
    """Return a result as a piece of HTML that stands in any page, light or dark; no name in it can break that."""
    lines = [f'<div style="font-size:1.2em;font-weight:600">{as_html(_verdict(result))}</div>']
    chosen = result.chosen or f"epoch {result.best_epoch} of {result.epochs_run}"
    facts = (
        f"{result.recipe.model_name}, strategy {result.strategy}, on {result.backend}",
        f"{chosen}, {count(result.trainable_parameters, 'parameter')} trained, {clock(result.wall_seconds)}",
    )
    lines += [f'<div style="opacity:.75">{as_html(fact)}</div>' for fact in facts]
    names = ("loss", "accuracy" if result.multilabel is None else "average_precision")
    charts = "" if result.chosen else "".join(_sparkline(result.history, name) for name in names)
    pictures = "".join(
        f'<img alt="a mistake" src="{uri}" style="width:64px;height:64px;object-fit:contain;display:inline-block;'
        f'margin:0 6px 0 0;border-radius:4px;image-rendering:auto">'
        for uri in _mistakes(result.run_dir)
    )
    if charts or pictures:
        row = "display:flex;flex-wrap:wrap;gap:8px 24px;align-items:end;margin:8px 0"
        most_wrong = f'<div><div style="opacity:.75">most wrong</div>{pictures}</div>' if pictures else ""
        lines.append(f'<div style="{row}">{charts}{most_wrong}</div>')
    where = as_html(result.run_dir)
    if (result.run_dir / REPORT).is_file():
        where = f'<a href="{as_html(_address(result.run_dir / REPORT))}" target="_blank">{where}/{REPORT}</a>'
    return f'<div style="line-height:1.45">{"".join(lines)}<div>{where}</div></div>'


def _verdict(result: Result) -> str:
    if result.multilabel is not None:
        for part, name in (("test", "test"), ("val", "validation")):
            figures = result.multilabel[part]  # type: ignore[literal-required]
            if figures is not None and figures["average_precision"] is not None:
                return f"The mean average precision on the {name} images is {figures['average_precision']:.3f}"
        return "There was no image to judge the model by"
    for part, accuracy in (("test", result.test_accuracy), ("validation", result.val_accuracy)):
        if accuracy is not None:
            return f"{percent(accuracy)} of the {part} images are classified correctly"
    return "There was no image to judge the model by"


def _sparkline(history: Sequence[HistoryEntry], name: str, width: int = 150, height: int = 44) -> str:
    """Draw the curves of one figure, with its last values."""
    columns: list[list[Any]] = [[epoch.get(f"{part}_{name}") for epoch in history] for part in ("train", "val")]
    known = [value for column in columns for value in column if value is not None]
    if len(history) < 2 or not known:
        return ""
    low, span = min(known), max(known) - min(known) or 1.0
    lines, said = "", []
    for column, colour, part in zip(columns, (TRAIN, VAL), ("training", "validation"), strict=True):
        shown = [(place, value) for place, value in enumerate(column) if value is not None][:: -(-len(column) // 200)]
        if not shown:
            continue
        points = " ".join(
            f"{2 + (width - 4) * place / (len(column) - 1):.1f},{2 + (height - 4) * (1 - (value - low) / span):.1f}"
            for place, value in shown
        )
        lines += f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'
        last = percent(shown[-1][1]) if name == "accuracy" else f"{shown[-1][1]:.3g}"
        said.append(f'<span style="color:{colour}">{part} {last}</span>')
    name = name.replace("_", " ")
    svg = f'<svg width="{width}" height="{height}" role="img" aria-label="{name} by epoch">{lines}</svg>'
    return f'<div><div style="opacity:.75">{name}</div>{svg}<div style="font-size:.85em">{", ".join(said)}</div></div>'


def _mistakes(run_dir: Path) -> list[str]:
    """The thumbnails of the first mistakes that the page of a run shows."""
    try:
        text = read_regular(run_dir / REPORT, LARGEST).decode(errors="replace")
    except OSError:
        return []
    section = text.partition('<section id="wrong">')[2].partition("</section>")[0]
    return uris_in(text, [int(number) for number in re.findall(r'class="pic p(\d+) "', section)[:MISTAKES]])


def _address(path: Path) -> str:
    """A link to a file: relative where it lies below the present folder, as a notebook's server has it."""
    below = os.path.relpath(path)
    return Path(path).absolute().as_uri() if below.startswith("..") else quote(below, errors="surrogateescape")
