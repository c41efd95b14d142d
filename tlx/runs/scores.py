"""Figures of the classes, and their means, in which a rare class counts as much as a frequent one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlx.data import Images
from tlx.runs.logits import Spool

CLASS_ROWS = 100  # rows of the table of classes; of more, those with the lowest F1
MEANS = ("balanced_accuracy", "macro_f1")

Counts = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ClassScores:
    """Each class's figures [K], NaN where there is none, and their means.

    Balanced accuracy is the mean recall over the classes that have images: Brodersen et al. 2010, "The balanced
    accuracy and its posterior distribution". F1 is 2 TP / (2 TP + FP + FN), and macro F1 the mean over the classes that
    occur, as a label or a prediction: van Rijsbergen, Information Retrieval, 1979, chapter 7; the "averaged F1" of
    Opitz & Burst, "Macro F1 and Macro F1", 2019. They equal scikit-learn's `balanced_accuracy_score` and
    ``f1_score(average="macro")``.
    """

    support: Counts
    predicted: Counts
    precision: Numbers
    recall: Numbers
    f1: Numbers
    accuracy: float
    balanced_accuracy: float
    macro_f1: float

    def rows(self, most: int = CLASS_ROWS) -> list[int]:
        """Return the classes to show: all that occur, or those with the lowest F1, in the order of the classes."""
        occurring = np.flatnonzero(self.support + self.predicted)
        lowest = occurring[np.argsort(self.f1[occurring], kind="stable")[:most]]
        return [int(place) for place in np.sort(lowest)]


def class_scores(labels: Counts, predictions: Counts, classes: int) -> ClassScores:
    """Return the figures of labels and predictions, int64 [N] each, without a matrix of classes by classes."""
    counts = (np.bincount(column, minlength=classes) for column in (labels, predictions))
    return scores_of_counts(np.bincount(labels[labels == predictions], minlength=classes), *counts)


def scores_of_counts(right: Counts, support: Counts, predicted: Counts) -> ClassScores:
    """Return the figures of each class's images that are classified correctly, that have it, and that are given it."""
    precision, recall, f1 = _over(right, predicted), _over(right, support), _over(2 * right, support + predicted)
    means = (float(np.nanmean(column)) for column in (recall, f1))
    return ClassScores(support, predicted, precision, recall, f1, float(right.sum() / support.sum()), *means)


def scores_of_part(images: Images, spool: Spool) -> ClassScores:
    """Return the figures of a part of a run's data, by its logits."""
    predictions = np.concatenate([block.astype(np.float64).argmax(axis=1) for block in spool.blocks()])
    return class_scores(images.labels, predictions, spool.classes)


def _over(part: Counts, whole: Counts) -> Numbers:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
