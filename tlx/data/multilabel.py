"""Images to which several classes may apply: labels of 0 and 1, int64 [N, classes], in place of class numbers [N]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tlx import rng

JOIN = "|"  # between the names of an image's labels where a table shows them

Labels = NDArray[np.int64]


def is_multilabel(labels: Labels) -> bool:
    """Whether labels say of each class whether it applies."""
    return labels.ndim == 2


def class_counts(labels: Labels, classes: int) -> Labels:
    """Return how many images each class has, int64 [classes]; of several labels each counts."""
    if is_multilabel(labels):
        return np.asarray(labels.sum(axis=0))
    return np.bincount(labels, minlength=classes)


def joined(row: NDArray[np.bool_] | Labels, classes: Sequence[str]) -> str:
    """Return the names of the classes that apply to an image, by its row [classes]; "" where none does."""
    return JOIN.join(classes[i] for i in np.flatnonzero(row))


def divide(labels: Labels, count: int, *, seed: int, purpose: str) -> tuple[Labels, Labels]:
    """Divide samples into `count` and the rest, each class in proportion; returns their indices, each ascending.

    This is iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, algorithm 1) into two subsets: the class with
    the fewest samples left goes first, each of its samples to the subset that lacks it most, of equals to the one that
    lacks most samples, of these to the rest. Two things are added: a subset that is full takes nothing more, so that
    `count` is exact, and samples are visited in an order that is drawn, so that chance chooses among equals.

    Args:
        labels: of 0 and 1, int64 [N, classes].
        count: size of the first subset.
        seed: of the order.
        purpose: the random stream of the order.
    """
    n = len(labels)
    order = np.argsort(rng.words(seed, purpose, 0, n, 1)[:, 0], kind="stable")
    rows = labels[order]
    size = np.array([count, n - count])
    lacking = np.outer(size / n, rows.sum(axis=0))  # [2, classes]: samples of each class that each subset is to get yet
    side = np.full(n, -1)
    left = rows.sum(axis=0)
    while left.any():
        rarest = int(np.where(left > 0, left, n + 1).argmin())
        for place in np.flatnonzero((side < 0) & (rows[:, rarest] == 1)):
            mine, other = (lacking[0, rarest], size[0]), (lacking[1, rarest], size[1])
            chosen = 0 if size[0] and (not size[1] or mine > other) else 1
            side[place] = chosen
            size[chosen] -= 1
            lacking[chosen] -= rows[place]
        left = rows[side < 0].sum(axis=0)
    bare = np.flatnonzero(side < 0)  # no class applies to these
    side[bare] = np.where(np.arange(len(bare)) < size[0], 0, 1)
    return np.sort(order[side == 0]), np.sort(order[side == 1])
