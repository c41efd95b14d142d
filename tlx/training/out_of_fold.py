"""Predictions of images by a regression that has not seen them: cross-validation on frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.errors import DataError
from tlx.training.one_thread import one_thread

FOLDS = 5
ITERATIONS, TOLERANCE = 300, 1e-3
STRENGTH, IMAGES = 0.001, 2400  # of the regression, C; for more images it is smaller in proportion

Labels = NDArray[np.int64]
Numbers = NDArray[np.float64]


def out_of_fold(
    features: NDArray[np.float32],
    labels: Labels,
    groups: Sequence[NDArray[np.int64]] = (),
    advance: Callable[[int, int], object] | None = None,
    strength: float = STRENGTH,
) -> Numbers:
    """Return the probabilities of the classes for each image by a regression that has not seen it, [N, classes].

    Classes are divided over the folds in proportion. The images of a group, such as copies, are in one fold. `strength`
    is the regression's C at up to `IMAGES` images.

    Raises:
        DataError: fewer than two classes have images enough.
    """
    classes = int(labels.max()) + 1
    fold = folds_of(labels, groups)
    probabilities = np.zeros((len(labels), classes))
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        present, compact = np.unique(labels[outside], return_inverse=True)
        if len(present) < 2:
            raise DataError("too few images to judge labels by: expected two classes of several images each")
        probabilities[np.ix_(inside, present)] = _fitted(features, inside, outside, compact, strength)
        if advance is not None:
            advance(number + 1, FOLDS)
    return probabilities


def _fitted(features: NDArray[np.float32], inside: Labels, outside: Labels, labels: Labels, strength: float) -> Numbers:
    """Learn from the images outside a fold, and return the probabilities of those inside, [n, classes].

    Features are centred and scaled as in `tlx.training.logistic`, so that the strength means the same for any model.
    """
    from sklearn.linear_model import LogisticRegression

    known, asked = features[outside].astype(np.float64), features[inside].astype(np.float64)
    mean = known.mean(axis=0)
    scale = float(np.sqrt(np.mean((known - mean) ** 2))) or 1.0
    factor = 2.0 if labels.max() == 1 else 1.0  # scikit-learn has one row for two classes, which pays alone
    strength *= factor * min(1.0, IMAGES / len(known))  # the loss is a sum over images
    model = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore")  # of a fit that needs more iterations: it is near enough
        model.fit((known - mean) / scale, labels)
        return np.asarray(model.predict_proba((asked - mean) / scale))


def folds_of(labels: Labels, groups: Sequence[NDArray[np.int64]] = ()) -> Labels:
    """Return the fold of each image, int64 [N], always the same: `out_of_fold` says how they are divided."""
    draw = rng.words(0, "check", 0, len(labels), 1)[:, 0]
    order = np.lexsort((draw, labels))
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    for group in groups:
        fold[group] = fold[group[0]]
    return fold
