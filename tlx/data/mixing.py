"""What the labels of a batch become: smoothed, weighted, and mixed with those of other images together with pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.data.multilabel import is_multilabel

SHARES = 256  # a mixed image's own share is a whole number of these parts


@dataclass(frozen=True, slots=True)
class Targets:
    """How labels enter the loss: target[n, c] = class_weights[c] * t[n, c].

    t is 1 at the label, or at each of several, and 0 elsewhere; mixing makes it share * t + (1 - share) * t of the
    partner; smoothing then makes it (1 - e) * t + e / classes (Szegedy et al. 2016, section 7), or (1 - e) * t + e / 2
    where there may be several labels, each of which is a choice between two (Keras: `BinaryCrossentropy`). `mixup` and
    `cutmix` are the alpha of the Beta(alpha, alpha) that the share is drawn from, 0 for none; with both, a fair coin
    decides for each batch.
    """

    classes: int
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed with those of others."""
        return bool(self.mixup or self.cutmix)

    def apply(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int, epoch: int, step: int
    ) -> NDArray[np.float64] | None:
        """Mix a batch [N, 3, h, w] in place and return its targets [N, classes], or None where the labels suffice.

        The partner of an image is the one at the same place counted from the other end of the batch.
        """
        if not (self.mixes or self.label_smoothing or self.class_weights):
            return None
        several = is_multilabel(labels)
        if several:
            target = labels.astype(np.float64)
        else:  # not taken from an identity matrix: 10,000 classes make it 800 MB
            target = np.zeros((len(labels), self.classes))
            target[np.arange(len(labels)), labels] = 1
        if self.mixes:
            share = self._mix(images, seed, epoch, step)
            target = share * target + (1 - share) * target[::-1]
        target = (1 - self.label_smoothing) * target + self.label_smoothing / (2 if several else self.classes)
        return target if self.class_weights is None else target * np.array(self.class_weights)

    def _mix(self, images: NDArray[np.uint8], seed: int, epoch: int, step: int) -> float:
        words = rng.stream(seed, "mix", epoch, step).bit_generator.random_raw(4)
        coin, place, across, down = (int(word) for word in words)
        cut = bool(self.cutmix) and not (self.mixup and coin & 1)
        own = beta(self.cutmix if cut else self.mixup, place)
        if not cut:
            return mixup(images, own)
        return cutmix(images, own, across, down)


def beta(alpha: float, word: int) -> int:
    """A share from Beta(alpha, alpha) as a whole number of `SHARES`, by the inverse of its distribution function.

    Rounding to so few parts hides the last bits, in which builds of SciPy may differ.
    """
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    alpha = max(alpha, 1e-100)  # shares of 0 or 1 alone, as below it, where SciPy has NaN
    return round(SHARES * float(betaincinv(alpha, alpha, ((word >> 11) + 0.5) * 2.0**-53)))


def mixup(images: NDArray[np.uint8], own: int) -> float:
    """Blend each image with its partner, `own` parts of `SHARES` its own: Zhang et al. 2018. Returns the share."""
    wide = images.astype(np.uint32)
    images[...] = (wide * own + wide[::-1] * (SHARES - own) + SHARES // 2) // SHARES
    return own / SHARES


def cutmix(images: NDArray[np.uint8], own: int, across: int, down: int) -> float:
    """Put a box of its partner into each image: Yun et al. 2019. Returns the exact share of its own pixels.

    The box has about ``1 - own / SHARES`` of the area; the 64-bit words `across` and `down` place its centre.
    """
    height, width = images.shape[2:]
    half_h, half_w = (isqrt(side * side * (SHARES - own) // SHARES) // 2 for side in (height, width))
    y, x = height * down >> 64, width * across >> 64
    top, bottom = max(0, y - half_h), min(height, y + half_h)
    left, right = max(0, x - half_w), min(width, x + half_w)
    box = (slice(None), slice(None), slice(top, bottom), slice(left, right))
    images[box] = images[::-1][box].copy()
    return 1 - (bottom - top) * (right - left) / (height * width)


def balanced_weights(labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    """Weights N / (classes * count) of each class, so that their mean over the images is 1.

    Source: scikit-learn's ``class_weight="balanced"``, after King & Zeng 2001.
    """
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(len(labels) / (classes * count)) for count in counts)


def balanced_order(labels: NDArray[np.int64], classes: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """An epoch of as many samples as there are, each class equally often, to within one.

    A class with too few images shows all of them before any comes again; one with too many leaves some out, others in
    each epoch. Exact counts vary less than draws with replacement, and see more images.
    """
    by_class, ends = [], np.cumsum(np.bincount(labels, minlength=classes))
    for label, own in enumerate(np.split(np.argsort(labels, kind="stable"), ends[:-1])):
        count = (len(labels) + (label - epoch) % classes) // classes
        rounds = -(-count // len(own))
        words = rng.words(seed, f"balance/{label}", epoch, rounds * len(own), 1).reshape(rounds, len(own))
        by_class.append(own[np.argsort(words, axis=1, kind="stable").ravel()[:count]])
    together = np.concatenate(by_class)
    return np.asarray(together[rng.permutation(seed, epoch, len(together))])


def assign_slots(order: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Which row of an epoch's random words each place takes: its image's own, or a new one where the image comes again.

    Args:
        order: index of the image at each place, int64 [places].
        n: number of images.
    """
    first = np.zeros(len(order), dtype=bool)
    first[np.unique(order, return_index=True)[1]] = True
    return np.where(first, order, n + np.cumsum(~first) - 1)
