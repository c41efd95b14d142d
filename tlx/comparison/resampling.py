"""The bootstrap of a difference of two models, by figures that are no mean over the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.comparison.statistics import bootstrap, percentiles
from tlx.runs.scores import class_scores
from tlx.training.multilabel import mean_average_precision

By = Literal["accuracy", "balanced_accuracy", "macro_f1", "average_precision"]
NAMES: dict[By, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "average_precision": "mAP",
}
REPEATS = 2000  # the interval's bounds then move by about a fiftieth of its width
ROOM = 1 << 22  # numbers of the draws that are held at a time

Labels = NDArray[np.int64]
Numbers = NDArray[np.float64]
Draws = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a cell said of N test images with K classes.

    Attributes:
        names: of the images.
        labels: class of each image [N]; or of 0 and 1 [N, K], where several may apply.
        said: the predicted class [N]; or the probability of each class [N, K].
        classes: K.
    """

    names: tuple[str, ...]
    labels: Labels
    said: NDArray[Any]
    classes: int

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image was classified correctly [N]; where each has one label."""
        return np.equal(self.labels, self.said)

    def figures(self) -> dict[By, float]:
        """Return all that the answers are judged by."""
        if self.labels.ndim == 2:
            return {"average_precision": mean_average_precision(self.said, self.labels)}
        scores = class_scores(self.labels, self.said, self.classes)
        figures = scores.accuracy, scores.balanced_accuracy, scores.macro_f1
        return {"accuracy": figures[0], "balanced_accuracy": figures[1], "macro_f1": figures[2]}


def paired_interval(pairs: Sequence[tuple[Answers, Answers]], by: By) -> tuple[float, float, float]:
    """Return how much higher the first's figure is than the second's, and the bounds of its 95 % interval.

    Images are drawn with replacement, and the figures of both are computed of the images that were drawn; the interval
    is that of `statistics.bootstrap`, which serves where the figure is a mean over the images. Pairs, of a seed each,
    that share their images are drawn together, others apart; each pair counts the same.
    """
    same = all(one.names == pairs[0][0].names for one, _ in pairs)
    if by == "accuracy":
        each = [one.right.astype(np.float64) - two.right for one, two in pairs]
        return bootstrap([np.mean(each, axis=0)] if same else each)
    known = [one.figures()[by] - two.figures()[by] for one, two in pairs]
    means = np.zeros(REPEATS)
    for number, together in enumerate([[*pairs]] if same else [[pair] for pair in pairs]):
        judges = [(_judge(one, by), _judge(two, by)) for one, two in together]
        images = len(together[0][0].names)
        source, step = rng.stream(0, "paired bootstrap", number), max(1, ROOM // images)
        for first in range(0, REPEATS, step):
            size = min(step, REPEATS - first)
            draws = source.multinomial(images, np.full(images, 1 / images), size)
            means[first : first + size] += sum(one(draws) - two(draws) for one, two in judges) / len(pairs)
    return float(np.mean(known)), *percentiles(means)


def _judge(answers: Answers, by: By) -> Callable[[Draws], Numbers]:
    """Return what computes a figure [B] of draws [B, N]: how often each image was drawn."""
    return _precision_judge(answers) if answers.labels.ndim == 2 else _class_judge(answers, by)


def _class_judge(answers: Answers, by: By) -> Callable[[Draws], Numbers]:
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    images, right = np.arange(len(answers.labels)), answers.right
    shape = (answers.classes, len(images))

    def counter(classes: Labels, rows: Labels) -> Callable[[Draws], Draws]:
        ones = csr_matrix((np.ones(len(rows), np.int64), (classes, rows)), shape=shape)
        return lambda draws: np.asarray(ones @ draws.T)

    support, predicted = counter(answers.labels, images), counter(answers.said, images)
    hits = counter(answers.labels[right], images[right])

    def judge(draws: Draws) -> Numbers:
        found, of_label = hits(draws), support(draws)
        whole = of_label if by == "balanced_accuracy" else of_label + predicted(draws)
        part = found if by == "balanced_accuracy" else 2 * found
        # A class that was not drawn is left out of the mean, as in `scores_of_counts`.
        each = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
        return np.asarray(each.sum(axis=0) / (whole > 0).sum(axis=0))

    return judge


def _precision_judge(answers: Answers) -> Callable[[Draws], Numbers]:
    occurring = np.flatnonzero(answers.labels.any(axis=0))
    columns = [_ranked(answers.said[:, k], answers.labels[:, k]) for k in occurring.tolist()]

    def judge(draws: Draws) -> Numbers:
        total, drawn_at_all = np.zeros(len(draws)), np.zeros(len(draws))
        by_image = np.ascontiguousarray(draws.T.astype(np.int32))  # rows are gathered fast
        for order, starts, positives, last in columns:
            above = np.cumsum(np.add.reduceat(by_image[order], starts, axis=0), axis=0)
            gained = np.add.reduceat(by_image[positives], last, axis=0)
            found = np.asarray(np.cumsum(gained, axis=0))
            sums = (gained * np.divide(found, above, out=np.zeros(found.shape), where=above > 0)).sum(axis=0)
            total += np.divide(sums, found[-1], out=np.zeros(len(draws)), where=found[-1] > 0)
            drawn_at_all += found[-1] > 0
        return np.asarray(total / np.maximum(drawn_at_all, 1))

    return judge


def _ranked(scores: Numbers, labels: Labels) -> tuple[Labels, Labels, Labels, Labels]:
    """Return what the average precision of a class needs, whatever images are drawn.

    Of the scores that some image of the class has, highest first: the order of the images down to the lowest of them,
    where in it those begin that lie above each and not above the one before, the images of the class, and where in
    these each score begins.
    """
    order = np.argsort(-scores, kind="stable")
    positives = order[labels[order] == 1]
    distinct, first = np.unique(-scores[positives], return_index=True)  # ascending, so the highest scores come first
    ends = np.asarray(np.searchsorted(-scores[order], distinct, side="right"))
    return order[: ends[-1]], np.concatenate([[0], ends[:-1]]), positives, first
