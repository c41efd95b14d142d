"""Labels that are likely to be wrong, by confident learning, and classes that are taken for each other.

A logistic regression on frozen features gives each image the probabilities of the classes, without having seen the
image or a copy of it ("out of fold"). A label is suspected by its self-confidence, as in confident learning (Northcutt,
Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels", section 3.2): where another class
is the most probable one, and the label is less probable than `CHANCE` times what it would be by chance. A regression
that is held back is less sure than it is right, so a temperature is fitted to its probabilities first (Guo et al.
2017).

That cut is a rule of our own. The paper's counts (its library cleanlab 2.9, "prune by noise rate") take all that a weak
model does not know for noise: of 5 % planted swaps in CIFAR-10 they find 84 %, and three times as many images that are
labelled right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlx.runs.confidence import fit_temperature

# Chosen on the training part of the ants and bees and on images 10,000 to 18,000 of CIFAR-10, for two models;
# benchmarks/planted_labels.py measures on others. Margins, votes of the nearest images, ten folds, several divisions
# into folds and a second fit without the suspects found no more there, within two points.
CHANCE = 0.6  # of 1 / classes
STRENGTH = 0.003  # of the regression; see `tlx.training.out_of_fold`
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


def suspects(labels: Labels, probabilities: Numbers) -> list[Suspect]:
    """Return the images whose label is likely to be wrong, the surest first; see the module.

    Args:
        labels: int64 [N].
        probabilities: of the classes, out of fold, [N, classes].
    """
    rows, logits = np.arange(len(labels)), np.log(np.maximum(probabilities, 1e-300))
    logits /= fit_temperature(lambda: iter([(logits, labels)])) or 1.0
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    judged = np.bincount(labels)[labels] >= LEAST
    least = CHANCE / len(np.unique(labels))
    others = probabilities.copy()
    own, others[rows, labels] = probabilities[rows, labels], -1.0
    best = others.argmax(axis=1)
    sure = others[rows, best] / np.maximum(others[rows, best] + own, 1e-300)
    wrong = np.flatnonzero(judged & (sure > 0.5) & (own < least))
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
