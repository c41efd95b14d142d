"""The page of a check: one file of HTML that needs nothing else, and stays small however many images there are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlx.atomic import write_atomic
from tlx.audit.result import Check, Problem, Row
from tlx.data import Images
from tlx.errors import DataError, printable
from tlx.runs.report.album import data_uri

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
    """An image with its thumbnail, None where it cannot be had or there is no room left."""

    row: Row
    tile: int | None


@dataclass(frozen=True, slots=True)
class Section:
    """A problem with the images that are shown, alone or in groups; `more` are not shown."""

    problem: Problem
    items: list[Shot]
    groups: list[list[Shot]]
    more: int
    hint: str


class _Album:
    """Collects thumbnails while there is room. Each image has one, whatever the problems that show it."""

    def __init__(self, parts: dict[str, Images]) -> None:
        self.parts, self.room = parts, ROOM
        self.uris: list[str] = []
        self._numbers: dict[tuple[str, int], int | None] = {}

    def shot(self, row: Row) -> Shot:
        key = (row.part, row.index)
        if key not in self._numbers and self.room > 0 and row.content:  # of what cannot be read there is none
            self._numbers[key] = self._add(*key)
        return Shot(row, self._numbers.get(key))

    def _add(self, part: str, index: int) -> int | None:
        chosen, images = np.array([index]), self.parts[part]
        one = images.select(chosen, images.labels[chosen])  # alone: `FileImages` tries all others where one fails
        try:
            image = one.open(0)
        except DataError:
            return None
        image.thumbnail((SIDE, SIDE))
        uri = data_uri(image)
        self.room -= len(uri)
        self.uris.append(uri)
        return len(self.uris) - 1


def write_page(path: str | Path, result: Check) -> None:
    """Write the page of a check; TlxError where the file cannot be written."""
    write_atomic(os.path.realpath(path), page(result).encode(errors="backslashreplace"))


def page(result: Check) -> str:
    """Return the page of a check."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # else: it is HTML, or no text
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    album = _Album(result.parts)
    sections = [_section(problem, album) for problem in result.problems]
    counts = list(zip(result.classes, np.array(list(result.counts.values())).T.tolist(), strict=True))
    values: dict[str, Any] = {"check": result, "sections": sections, "uris": album.uris}
    more = max(0, len(counts) - CLASSES)
    verdict = _verdict(result)
    template = environment.get_template("check.html.j2")
    return template.render(**values, classes=counts[:CLASSES], more_classes=more, verdict=verdict)


def _verdict(result: Check) -> str:
    serious = [problem for problem in result.problems if problem.severity == "serious"]
    warnings = sum(problem.severity == "warning" for problem in result.problems)
    if serious:
        return f"{len(serious)} serious {'problem' if len(serious) == 1 else 'problems'} to mend before training"
    return f"Nothing serious, {warnings} {'warning' if warnings == 1 else 'warnings'}" if warnings else "Nothing wrong"


def _section(problem: Problem, album: _Album) -> Section:
    groups = problem.groups
    if groups:
        shown = [_shots(group[:IN_GROUP], album) for group in groups[:GROUPS]]
        left = len(problem.rows) - sum(map(len, shown))
        return Section(problem, [], shown, left, HINTS.get(problem.kind, ""))
    items = _shots(problem.rows[: IMAGES * 2 if problem.kind == "label" else IMAGES], album)
    return Section(problem, items, [], len(problem.rows) - len(items), HINTS.get(problem.kind, ""))


def _shots(rows: Sequence[Row], album: _Album) -> list[Shot]:
    return [album.shot(row) for row in rows]
