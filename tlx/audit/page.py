"""The page of a check: one file of HTML that needs nothing else, and stays small however many images there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.atomic import write_atomic
from tlx.audit.result import Check, Problem, Row
from tlx.data import Images
from tlx.runs.report.album import Album
from tlx.runs.report.page import environment

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 160  # pixels of a thumbnail
ROOM = 1_400_000  # bytes of all thumbnails
IMAGES, GROUPS, IN_GROUP = 24, 12, 6  # that are shown of one kind of problem; of the suspected labels twice as many
CLASSES = 50  # rows of the table
HINTS = {
    "label": "The surest first. Say relabel in the file of decisions where the suggestion is right.",
    "two_labels": "Say in the file of decisions which of them to relabel or to drop.",
    "leak": "A model that has seen them in training knows them by heart, so that the test flatters it.",
    "near_leak": "If they are the same thing, drop those in the training part.",
}


@dataclass(frozen=True, slots=True)
class Shot:
    """An image with the number of its thumbnail in the album, below 0 where there is none."""

    row: Row
    tile: int


@dataclass(frozen=True, slots=True)
class Section:
    """A problem with the images that are shown, alone or in groups; `more` are not shown."""

    problem: Problem
    items: list[Shot]
    groups: list[list[Shot]]
    more: int
    hint: str


def _shots(rows: Sequence[Row], album: Album, parts: Mapping[str, Images]) -> list[Shot]:
    return [Shot(row, album.add((row.part, row.index), _taking(row, parts))) for row in rows]


def _taking(row: Row, parts: Mapping[str, Images]) -> Callable[[], Image] | None:
    """Return what opens the thumbnail of a row; None where the image cannot be read."""
    return partial(_thumbnail, parts[row.part], row.index) if row.content else None


def _thumbnail(images: Images, index: int) -> Image:
    chosen = np.array([index])
    image = images.select(chosen, images.labels[chosen]).open(0)  # alone: `FileImages` tries all others where one fails
    image.thumbnail((SIDE, SIDE))
    return image


def write_page(path: str | Path, result: Check) -> None:
    """Write the page of a check; TlxError where the file cannot be written."""
    write_atomic(os.path.realpath(path), page(result).encode(errors="backslashreplace"))


def page(result: Check) -> str:
    """Return the page of a check."""
    from jinja2 import FileSystemLoader

    filling = environment().overlay(loader=FileSystemLoader(Path(__file__).parent))
    album = Album(ROOM)
    sections = [_section(problem, album, result.parts) for problem in result.problems]
    counts = list(zip(result.classes, np.array(list(result.counts.values())).T.tolist(), strict=True))
    values: dict[str, Any] = {"check": result, "sections": sections, "album": album}
    more = max(0, len(counts) - CLASSES)
    verdict = _verdict(result)
    template = filling.get_template("check.html.j2")
    return template.render(**values, classes=counts[:CLASSES], more_classes=more, verdict=verdict)


def _verdict(result: Check) -> str:
    serious = [problem for problem in result.problems if problem.severity == "serious"]
    warnings = sum(problem.severity == "warning" for problem in result.problems)
    if serious:
        return f"{len(serious)} serious {'problem' if len(serious) == 1 else 'problems'} to mend before training"
    return f"Nothing serious, {warnings} {'warning' if warnings == 1 else 'warnings'}" if warnings else "Nothing wrong"


def _section(problem: Problem, album: Album, parts: Mapping[str, Images]) -> Section:
    groups = problem.groups
    if groups:
        shown = [_shots(group[:IN_GROUP], album, parts) for group in groups[:GROUPS]]
        left = len(problem.rows) - sum(map(len, shown))
        return Section(problem, [], shown, left, HINTS.get(problem.kind, ""))
    items = _shots(problem.rows[: IMAGES * 2 if problem.kind == "label" else IMAGES], album, parts)
    return Section(problem, items, [], len(problem.rows) - len(items), HINTS.get(problem.kind, ""))
