"""What a page counts in predictions: confusions, mistakes, and how far probabilities can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlx.runs.confidence import BINS
from tlx.runs.report.judged import Judged, Numbers, Places

MATRIX = 20  # classes of which a matrix shows all; of more, those that are confused most
MOST_CONFUSED = 12  # classes of the matrix then
PAIRS = 12  # confusions that are listed
Z = 1.959964  # of a normal distribution, for 95 %


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Which classes are taken for which.

    Attributes:
        classes: those that the matrix shows, in their order.
        counts: images by their class (rows) and the predicted class (columns), of these classes.
        pairs: the most frequent mistakes: the class, what it is taken for, and how often.
        outside: images of which the matrix shows nothing, as another class is their label or their prediction.
    """

    classes: list[int]
    counts: Places
    pairs: list[tuple[int, int, int]]
    outside: int


def confusion(judged: Judged, classes: int) -> Confusion:
    """Count confusions; the matrix holds all classes that occur, or of many those that are confused most."""
    labels, predictions = judged.labels, judged.predictions
    wrong = ~judged.correct
    keys, often = np.unique(labels[wrong] * classes + predictions[wrong], return_counts=True)
    order = np.argsort(-often, kind="stable")
    ordered = [
        (int(key) // classes, int(key) % classes, int(n)) for key, n in zip(keys[order], often[order], strict=True)
    ]
    shown = np.union1d(labels, predictions).tolist()
    if len(shown) > MATRIX:
        chosen = dict[int, None]()
        for label, prediction, _ in ordered:
            if len(chosen) >= MOST_CONFUSED:
                break
            chosen |= {label: None, prediction: None}
        for label in shown:  # without so many mistakes
            if len(chosen) >= MOST_CONFUSED:
                break
            chosen[label] = None
        shown = sorted(chosen)
    place = np.full(classes, -1)
    place[shown] = np.arange(len(shown))
    inside = (place[labels] >= 0) & (place[predictions] >= 0)
    flat = place[labels[inside]] * len(shown) + place[predictions[inside]]
    counts = np.bincount(flat, minlength=len(shown) ** 2).reshape(len(shown), len(shown))
    return Confusion(shown, counts, ordered[:PAIRS], int((~inside).sum()))


def most_wrong(judged: Judged, count: int) -> list[int]:
    """Return the rows of mistakes, the highest loss first; a loss that is no number counts as the highest."""
    wrong = np.flatnonzero(~judged.correct)
    loss = np.nan_to_num(judged.loss[wrong], nan=np.inf, posinf=np.inf)
    return [int(row) for row in wrong[np.argsort(-loss, kind="stable")[:count]]]


def least_sure(judged: Judged, count: int) -> list[int]:
    """Return the rows whose two highest probabilities lie nearest to each other."""
    margin = np.nan_to_num(judged.margin, nan=-1.0)
    return [int(row) for row in np.argsort(margin, kind="stable")[:count]]


@dataclass(frozen=True, slots=True)
class Bin:
    """Images whose probability lies in one of `BINS` bins of equal width."""

    images: int
    confidence: float  # their mean probability
    accuracy: float


def reliability(probability: Numbers, correct: NDArray[np.bool_]) -> list[Bin]:
    """Return the bins that have images; those of `tlx.runs.confidence.calibration_error`."""
    finite = np.isfinite(probability)
    probability, correct = probability[finite], correct[finite]
    place = np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images, sums, right = (np.bincount(place, w, BINS) for w in (None, probability, correct))
    return [
        Bin(int(n), float(total / n), float(hits / n)) for n, total, hits in zip(images, sums, right, strict=True) if n
    ]


def interval(accuracy: float, images: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy: Wilson 1927, "Probable inference", the score interval."""
    middle = (accuracy + Z * Z / (2 * images)) / (1 + Z * Z / images)
    half = Z / (1 + Z * Z / images) * math.sqrt(accuracy * (1 - accuracy) / images + Z * Z / (4 * images * images))
    return max(0.0, middle - half), min(1.0, middle + half)
