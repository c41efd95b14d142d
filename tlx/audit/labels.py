"""Labels that are likely to be wrong, by confident learning, and classes that are taken for each other.

A logistic regression on frozen features gives each image the probabilities of the classes, without having seen the
image or a copy of it ("out of fold"). Confident learning (Northcutt, Jiang and Chuang 2021, "Confident learning:
estimating uncertainty in dataset labels", section 3) then counts an image as mislabelled where another class is as
probable as it usually is for the images of that class. The library cleanlab, by its authors, does the counting.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.errors import DataError, TlxError
from tlx.runs.display import follow
from tlx.training.logistic import fit_logistic

FOLDS = 5
LEAST = 2  # images of a class that can be judged: one to learn from, and one to judge
ALIKE = 2  # confusions from which on two classes are listed
PAIRS = 10  # of classes that are listed

Labels = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label may be wrong: its place, the class that it more likely has, and how sure that is.

    `sure` is the probability of the suggested class among the two, from 0.5 to 1.
    """

    place: int
    suggested: int
    sure: float


@dataclass(frozen=True, slots=True)
class Alike:
    """Two classes that are taken for each other: how many of the images of the first for the second, and back."""

    first: int
    second: int
    there: int
    back: int


def require_cleanlab() -> None:
    """Raise TlxError where the library is not installed."""
    if find_spec("cleanlab") is None:
        raise TlxError("labels=True needs the library cleanlab", fix='pip install "tlx[check]"')


def out_of_fold(
    features: NDArray[np.float32],
    labels: Labels,
    groups: Sequence[NDArray[np.int64]] = (),
    advance: Callable[[int, int], object] | None = None,
) -> Numbers:
    """Return the probabilities of the classes for each image by a regression that has not seen it, [N, classes].

    Classes are divided over the folds in proportion. The images of a group, such as copies, are in one fold.

    Raises:
        DataError: fewer than two classes have images enough.
    """
    classes = int(labels.max()) + 1
    fold = _folds(labels, groups)
    probabilities = np.zeros((len(labels), classes))
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        present, compact = np.unique(labels[outside], return_inverse=True)
        if len(present) < 2:
            raise DataError("too few images to judge labels by: expected two classes of several images each")
        probe = follow(fit_logistic(features[outside], compact, len(present), val=None), [])
        logits = probe.linear.logits(features[inside])
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities[np.ix_(inside, present)] = odds / odds.sum(axis=1, keepdims=True)
        if advance is not None:
            advance(number + 1, FOLDS)
    return probabilities


def _folds(labels: Labels, groups: Sequence[NDArray[np.int64]]) -> Labels:
    draw = rng.words(0, "check", 0, len(labels), 1)[:, 0]
    order = np.lexsort((draw, labels))
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    for group in groups:
        fold[group] = fold[group[0]]
    return fold


def suspects(labels: Labels, probabilities: Numbers) -> list[Suspect]:
    """Return the images whose label is likely to be wrong, the surest first; see the module.

    Args:
        labels: int64 [N].
        probabilities: of the classes, out of fold, [N, classes].
    """
    from cleanlab.filter import find_label_issues

    counts = np.bincount(labels, minlength=probabilities.shape[1])
    judged = np.flatnonzero(counts[labels] >= LEAST)
    present, compact = np.unique(labels[judged], return_inverse=True)
    if len(present) < 2:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = find_label_issues(compact, _normalised(probabilities[np.ix_(judged, present)]), n_jobs=1)
    result = []
    for place in judged[wrong].tolist():
        own = probabilities[place, labels[place]]
        others = probabilities[place].copy()
        others[labels[place]] = -1.0
        best = int(others.argmax())
        if others[best] > own:
            result.append(Suspect(place, best, float(others[best] / (others[best] + own))))
    return sorted(result, key=lambda suspect: (-suspect.sure, suspect.place))


def _normalised(probabilities: Numbers) -> Numbers:
    total = probabilities.sum(axis=1, keepdims=True)
    return np.where(total > 0, probabilities / np.maximum(total, 1e-300), 1 / probabilities.shape[1])


def classes_alike(labels: Labels, probabilities: Numbers) -> list[Alike]:
    """Return the pairs of classes that are taken for each other most often, out of fold."""
    guess = probabilities.argmax(axis=1)
    wrong = guess != labels
    pairs, counts = np.unique(np.stack([labels[wrong], guess[wrong]]), axis=1, return_counts=True)
    confusions = {(int(a), int(b)): int(n) for a, b, n in zip(*pairs, counts, strict=True)}
    found = {
        (a, b): Alike(a, b, confusions.get((a, b), 0), confusions.get((b, a), 0))
        for a, b in {(min(pair), max(pair)) for pair in confusions}
    }
    listed = [alike for alike in found.values() if alike.there + alike.back >= ALIKE]
    return sorted(listed, key=lambda alike: (-alike.there - alike.back, alike.first, alike.second))[:PAIRS]
