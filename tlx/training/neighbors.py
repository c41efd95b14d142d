"""A weighted k-nearest-neighbour classifier on frozen features.

This is the evaluation of DINO (Caron et al. 2021, `eval_knn.py`) and DINOv2 (`dinov2/eval/knn.py`), after Wu et al.
2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4: the k training images
with the most similar features, by cosine, vote for their classes, each with the weight exp(similarity / 0.07).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.multilabel import is_multilabel
from tlx.training.logistic import Labels, Numbers, metrics_of
from tlx.training.metrics import Metrics, Stepped, Tried, better
from tlx.training.one_thread import one_thread

TEMPERATURE = 0.07
NEIGHBORS = (10, 20, 100, 200)  # of which validation chooses, as in DINOv2
FLOOR = 1e-12  # probability of a class without a vote: its logarithm is finite
LEFT_OUT = 2000  # training images, at most, that are classified by all others
QUERIES, BLOCK = 256, 8192  # images, and rows of the bank, that are compared at once


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """The training images by which others are classified.

    Args:
        features: of length 1, float32 or float64 [n, features].
        labels: int64 [n], below `classes`; or of 0 and 1 [n, classes], where several may apply to an image.
        classes: how many there are.
        k: neighbours that vote.
        temperature: by which similarities are divided before they are exponentiated.
    """

    features: NDArray[Any]
    labels: Labels
    classes: int
    k: int
    temperature: float = TEMPERATURE

    def logits(self, features: NDArray[Any]) -> Numbers:
        """Return for features [N, features] the logarithms of each class's share of the votes, [N, classes].

        Where several labels may apply, a neighbour votes for each class whether it applies, and these are the log-odds.
        """
        return self.votes(*self.nearest(features, self.k), self.k)

    def nearest(self, features: NDArray[Any], k: int, own: Labels | None = None) -> tuple[Numbers, Labels]:
        """Return the similarities of the k nearest, the nearest first, and their rows in the bank: [N, k] each.

        Similarities are computed in float64 and rounded to float32, so that neither the size of a batch nor the number
        of threads changes them. Of equal ones the earlier row is the nearer.

        Args:
            features: [N, features], of any length.
            k: at most the number of rows, less one where `own` is given.
            own: the row of each, which is no neighbour of itself.
        """
        similar, rows = np.empty((len(features), k)), np.empty((len(features), k), np.int64)
        for at in range(0, len(features), QUERIES):
            here = slice(at, at + QUERIES)
            keys = self._keys(unit(features[here]), k, None if own is None else own[here])
            similar[here], rows[here] = _unpacked(keys)
        return similar, rows

    def _keys(self, queries: NDArray[Any], k: int, own: Labels | None) -> NDArray[np.uint64]:
        """The k greatest keys of each query over all rows, in falling order: see `_packed`."""
        kept = np.zeros((len(queries), 0), np.uint64)
        for at in range(0, len(self.features), BLOCK):
            block = self.features[at : at + BLOCK].astype(np.float64)
            with one_thread():
                similar = (queries.astype(np.float64) @ block.T).astype(np.float32)
            keys = _packed(similar, np.arange(at, at + len(block)))
            if own is not None:
                keys[own[:, None] == np.arange(at, at + len(block))] = 0  # below all others
            kept = np.concatenate([kept, keys], axis=1)
            if kept.shape[1] > k:
                kept = np.partition(kept, kept.shape[1] - k, axis=1)[:, -k:]
        return np.sort(kept, axis=1)[:, ::-1]

    def votes(self, similar: Numbers, rows: Labels, k: int) -> Numbers:
        """Return the logits [N, classes] that the first k of the nearest give."""
        weights = np.exp((similar[:, :k] - similar[:, :1]) / self.temperature)
        if is_multilabel(self.labels):
            share = (weights[:, None] @ self.labels[rows[:, :k]])[:, 0] / weights.sum(axis=1, keepdims=True)
            return np.asarray(np.log(np.maximum(share, FLOOR)) - np.log(np.maximum(1 - share, FLOOR)))
        votes = np.zeros((len(rows), self.classes))
        np.add.at(votes, (np.arange(len(rows))[:, None], self.labels[rows[:, :k]]), weights)
        return np.asarray(np.log(np.maximum(votes / votes.sum(axis=1, keepdims=True), FLOOR)))


@dataclass(frozen=True, slots=True)
class Choice:
    """How many neighbours vote: the metrics of the training images, each classified by the others, and the rest."""

    k: int
    train: Metrics
    val: Metrics | None
    tried: tuple[Tried, ...]
    notes: tuple[str, ...]
    val_logits: Numbers | None = None  # [N, classes] of the validation images


def choose_neighbors(
    bank: Bank, val: tuple[NDArray[Any], Labels] | None, k: int | None
) -> Generator[Stepped, None, Choice]:
    """Choose how many neighbours vote by the validation accuracy; an event follows each pass over images.

    With several labels it is mAP. Of equal ones the lowest loss is taken, of equal losses the fewest neighbours.
    Without validation images, each of at most `LEFT_OUT` training images is classified by the others instead.

    Args:
        bank: of the training images.
        val: features and labels that are held out.
        k: the number, where it is given.
    """
    count = len(bank.labels)
    able = [k] if k is not None else [n for n in NEIGHBORS if n < count] or [count - 1]
    some = np.unique(np.linspace(0, count - 1, min(count, LEFT_OUT)).astype(np.int64))
    left_out = bank.nearest(bank.features[some], max(able), some)
    yield Stepped()
    held_out = None if val is None else bank.nearest(val[0], max(able))
    yield Stepped()
    of_train = {n: metrics_of(bank.votes(*left_out, n), bank.labels[some]) for n in able}
    of_val = {} if val is None or held_out is None else {n: metrics_of(bank.votes(*held_out, n), val[1]) for n in able}
    judged = of_val or of_train
    chosen = able[0]
    for n in able[1:]:
        chosen = n if better(judged[n], judged[chosen]) else chosen
    notes = []
    if val is None and k is None:
        notes.append("there is no validation part, so each training image was classified by the others to choose k")
    tried = tuple(Tried(n, of_val.get(n)) for n in able)
    logits = None if held_out is None else bank.votes(*held_out, chosen)
    return Choice(chosen, of_train[chosen], of_val.get(chosen), tried, tuple(notes), logits)


def unit(features: NDArray[Any]) -> NDArray[Any]:
    """Return features [N, features] divided by their lengths, in their dtype; zeros stay zeros."""
    wide = features.astype(np.float64)
    length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return np.asarray(wide / np.where(length > 0, length, 1), features.dtype)


def _packed(similar: NDArray[np.float32], rows: Labels) -> NDArray[np.uint64]:
    """Return one number for each similarity and its row that is the greater the nearer, of equal ones the earlier."""
    bits = (similar + np.float32(0)).view(np.uint32)  # -0 becomes 0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # as the numbers are ordered
    return np.asarray((ordered.astype(np.uint64) << np.uint64(32)) | (np.uint64(2**32 - 1) - rows.astype(np.uint64)))


def _unpacked(keys: NDArray[np.uint64]) -> tuple[Numbers, Labels]:
    """Undo `_packed`."""
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ordered >> 31, ordered & np.uint32(2**31 - 1), ~ordered)
    rows = np.uint64(2**32 - 1) - (keys & np.uint64(2**32 - 1))
    return bits.view(np.float32).astype(np.float64), rows.astype(np.int64)
