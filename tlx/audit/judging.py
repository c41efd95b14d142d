"""From the images of a data set to suspected labels and to classes that are alike: features, probes, rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.audit.labels import STRENGTH, classes_alike, suspects
from tlx.audit.pool import Pool
from tlx.audit.result import Problem, Row
from tlx.runs.display import Display
from tlx.runs.extractor import Extractor, features_of
from tlx.training.out_of_fold import out_of_fold

EXTRACTING, FITTING = "features of the images", "probes of the labels"
SHOWN = 5  # pairs of classes in a line


def judged(
    pool: Pool,
    places: NDArray[np.int64],
    features: NDArray[np.float32],
    groups: Sequence[NDArray[np.int64]],
    display: Display,
) -> tuple[list[Row], list[Problem]]:
    """Return a row for each label that is likely to be wrong, the surest first, and what classes are alike.

    Args:
        pool: the images.
        places: of the images that are judged, int64 [n].
        features: theirs, float32 [n, features].
        groups: of places that are the same image or look alike: none is judged by its like.
        display: shows how far it has come.
    """
    at = np.full(len(pool), -1, np.int64)
    at[places] = np.arange(len(places))
    labels = pool.labels[places]
    probabilities = out_of_fold(features, labels, [at[group] for group in groups], display.counted(FITTING), STRENGTH)
    rows = [
        pool.row("label", int(places[s.place]), suggested=pool.classes[s.suggested], sure=s.sure)
        for s in suspects(labels, probabilities)
    ]
    return rows, _alike(pool.classes, labels, probabilities)


def features_of_pool(
    pool: Pool, extractor: Extractor, places: NDArray[np.int64], display: Display
) -> NDArray[np.float32]:
    """Return the features of the images at these places, float32 [n, features]; DataError where one cannot be had."""
    advance, total, before, rows = display.counted(EXTRACTING), len(places), 0, []
    names = pool.facts["pixels"]
    for number, images in enumerate(pool.parts.values()):
        here = places[pool.part[places] == number]
        index = pool.index[here]
        contents = [bytes(name).hex() for name in names[here].tolist()]
        step = partial(_advance, advance, before, total)
        rows.append(features_of(extractor, images.select(index, images.labels[index]), contents, step))
        before += len(here)
    return np.concatenate(rows)


def _advance(advance: Any, before: int, total: int, done: int, _: int) -> None:
    advance(before + done, total)


def _alike(classes: Sequence[str], labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> list[Problem]:
    pairs = classes_alike(labels, probabilities)
    if not pairs:
        return []
    shown = [f"{classes[a.first]} for {classes[a.second]} {a.there}, back {a.back}" for a in pairs[:SHOWN]]
    text = f"classes that are taken for each other: {'; '.join(shown)}{'; ...' if len(pairs) > SHOWN else ''}"
    return [Problem("alike_classes", len(pairs), text)]
