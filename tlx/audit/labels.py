"""Labels that are likely to be wrong, by confident learning, and classes that are taken for each other.

A logistic regression on frozen features gives each image the probabilities of the classes, without having seen the
image or a copy of it ("out of fold"), and labels are ranked by how much more probable another class is, as in
confident learning (Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels",
section 3.2).

Where the ranking is cut off is a rule of our own: the more often the regression differs from the labels, the surer it
must be. That paper's counts (its library cleanlab 2.9, "prune by noise rate") take all that a weak model does not know
for noise: of 5 % planted swaps in CIFAR-10 they find 84 %, and three times as many images that are labelled right.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.errors import DataError
from tlx.training.one_thread import one_thread

FOLDS = 5
ITERATIONS, TOLERANCE = 300, 1e-3
DOUBT, SUREST = 1.49, 0.95  # a suspect is as sure as `DOUBT` less the accuracy, and `SUREST` is enough: see the module
STRENGTH, IMAGES = 0.001, 2400  # of the regression, C; for more images it is smaller in proportion
# Both were chosen on seeds 0 to 2 of benchmarks/planted_labels.py, which measures on other ones.
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
        probabilities[np.ix_(inside, present)] = _fitted(features, inside, outside, compact)
        if advance is not None:
            advance(number + 1, FOLDS)
    return probabilities


def _fitted(features: NDArray[np.float32], inside: Labels, outside: Labels, labels: Labels) -> Numbers:
    """Learn from the images outside a fold, and return the probabilities of those inside, [n, classes].

    Features are centred and scaled as in `tlx.training.logistic`, so that the strength means the same for any model.
    """
    from sklearn.linear_model import LogisticRegression

    known, asked = features[outside].astype(np.float64), features[inside].astype(np.float64)
    mean = known.mean(axis=0)
    scale = float(np.sqrt(np.mean((known - mean) ** 2))) or 1.0
    factor = 2.0 if labels.max() == 1 else 1.0  # scikit-learn has one row for two classes, which pays alone
    strength = factor * STRENGTH * min(1.0, IMAGES / len(known))  # the loss is a sum over images
    model = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")  # of a fit that needs more iterations: it is near enough
        model.fit((known - mean) / scale, labels)
        return np.asarray(model.predict_proba((asked - mean) / scale))


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
    rows = np.arange(len(labels))
    judged = np.bincount(labels)[labels] >= LEAST
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    others = probabilities.copy()
    own, others[rows, labels] = probabilities[rows, labels], -1.0
    best = others.argmax(axis=1)
    sure = others[rows, best] / np.maximum(others[rows, best] + own, 1e-300)
    wrong = np.flatnonzero(judged & (sure > 0.5) & (sure >= min(DOUBT - accuracy, SUREST)))
    result = [Suspect(place, int(best[place]), float(sure[place])) for place in wrong.tolist()]
    return sorted(result, key=lambda suspect: (-suspect.sure, suspect.place))


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
