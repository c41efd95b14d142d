"""How good a model is where several classes may apply to an image: by rank, and by yes or no from thresholds on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]


class Figures(TypedDict):
    """Of a part; each lies between 0 and 1, and is None where no image of the part has any label."""

    average_precision: float | None  # the mean over the classes that occur: mAP
    micro_f1: float | None  # of all answers together
    macro_f1: float | None  # the mean over the classes that occur
    classes: list[ClassFigures]


ClassFigures = TypedDict(
    "ClassFigures",
    {"class": str, "images": int, "average_precision": float | None, "f1": float | None, "threshold": float},
)


class Multilabel(TypedDict):
    """What a run of several labels has beside its losses; None where there is no such part."""

    thresholds: dict[str, float]  # by class: the probability from which on it is said to apply
    val: Figures | None  # its thresholds were chosen on these very images
    test: Figures | None


def probabilities(logits: NDArray[Any]) -> Numbers:
    """Return the sigmoid of logits [N, classes] in float64: the probability of each class by itself."""
    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide))
    return np.asarray(np.where(wide >= 0, 1, small) / (1 + small))


def losses_of(logits: NDArray[Any], labels: Labels) -> Numbers:
    """Return the loss [N] of each image: the mean over the classes of the binary cross-entropy, in float64."""
    wide = logits.astype(np.float64)
    each = np.maximum(wide, 0) - labels * wide + np.log1p(np.exp(-np.abs(wide)))
    return np.asarray(each.mean(axis=1))


def average_precisions(logits: NDArray[Any], labels: Labels) -> Numbers:
    """Return the average precision of each class, float64 [classes]; NaN where it applies to no image.

    It is the sum over the distinct scores, highest first, of the recall that each adds times the precision so far, as
    scikit-learn's `average_precision_score` has it. Logits rank as their probabilities do, and do not round to 1.
    """
    return np.array([_average_precision(logits[:, k], labels[:, k]) for k in range(labels.shape[1])])


def _average_precision(scores: NDArray[Any], labels: Labels) -> float:
    positives = int(labels.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], np.cumsum(labels[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of those with equal scores
    gained = np.diff(found[last], prepend=0) / positives
    return float((gained * found[last] / (last + 1)).sum())


def mean_average_precision(logits: NDArray[Any], labels: Labels) -> float:
    """Return the mean of the average precision over the classes that occur (mAP); 0 where none does."""
    values = average_precisions(logits, labels)
    return float(np.nanmean(values)) if labels.any() else 0.0


def choose_thresholds(logits: NDArray[Any], labels: Labels) -> Numbers:
    """Return the probability of each class from which on to say that it applies, float64 [classes].

    It is the one of the highest F1 of the class on these images, half-way between two neighbouring probabilities; of
    equal ones that nearest to 0.5. It is 0.5 where the class applies to no image or to all.
    Source: Lipton, Elkan & Narayanaswamy 2014, "Optimal thresholding of classifiers to maximize F1 measure".
    """
    odds = probabilities(logits)
    return np.array([_threshold(odds[:, k], labels[:, k]) for k in range(labels.shape[1])])


def _threshold(odds: Numbers, labels: Labels) -> float:
    if not 0 < labels.sum() < len(labels):
        return 0.5
    order = np.argsort(-odds, kind="stable")
    ranked, found = odds[order], np.cumsum(labels[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    f1 = 2 * found[last] / (last + 1 + labels.sum())
    cuts = (ranked[last] + np.append(ranked[last[:-1] + 1], 0.0)) / 2
    best = np.flatnonzero(f1 == f1.max())
    return float(cuts[best[np.abs(cuts[best] - 0.5).argmin()]])


def figures(logits: NDArray[Any], labels: Labels, thresholds: Numbers, classes: Sequence[str]) -> Figures:
    """Return the figures of logits [N, classes] against labels of 0 and 1 [N, classes], answered at thresholds."""
    answers = probabilities(logits) >= thresholds
    right, either = (answers & (labels == 1)).sum(axis=0), answers.sum(axis=0) + labels.sum(axis=0)
    f1 = np.divide(2 * right, either, out=np.full(len(classes), np.nan), where=either > 0)
    precision, some = average_precisions(logits, labels), bool(labels.any())
    occurs = labels.any(axis=0)
    return {
        "average_precision": float(np.nanmean(precision)) if some else None,
        "micro_f1": float(2 * right.sum() / either.sum()) if some else None,
        "macro_f1": float(f1[occurs].mean()) if some else None,
        "classes": [
            {
                "class": name,
                "images": int(labels[:, k].sum()),
                "average_precision": _plain(precision[k]),
                "f1": _plain(f1[k]),
                "threshold": float(thresholds[k]),
            }
            for k, name in enumerate(classes)
        ],
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
