"""Which strategy: the textbooks' rule names one, and what was measured may move it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# From the cheapest to what trains most. Of the first two one stands for frozen features: `probe`, which fits the head
# that feature_extract trains by steps, unless `knn` proves better.
FROZEN, NEAREST = "probe", "knn"
CANDIDATES = (FROZEN, NEAREST, "feature_extract", "partial", "diff_lr", "full")
TRAINED = ("partial", "diff_lr", "full")  # of which trials are worth while
FEW, MANY = 1_000, 10_000  # training images: the bounds of the rule
DISTANT = 2 / 3  # of the way to noise: docs/advise.md has the distances of data sets
CEILING = 0.99  # accuracy of the frozen features from which there is less than a point to gain
CLOSE = 2.0  # standard errors

Right = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Decision:
    """A strategy, why, and whether the evidence leaves another in the running."""

    strategy: str
    reasons: tuple[str, ...]
    close: bool


def rule_of(images: int, distance: float | None) -> tuple[str, str]:
    """Return the strategy of the textbooks' rule, and the rule in words.

    The less data, and the nearer to the pretraining, the more of the network stays as it is: CS231n, "Transfer
    learning", "When and how to fine-tune"; Chollet 2021, Deep Learning with Python, section 8.3.
    """
    if distance is not None and distance > DISTANT:
        return "full", f"the images lie far from the pretraining (distance {distance:.2f}, above {DISTANT:.2f})"
    near = "" if distance is None else f", near the pretraining (distance {distance:.2f})"
    if images < FEW:
        return "feature_extract", f"fewer than {FEW:,} training images{near}"
    if images <= MANY:
        return "partial", f"{FEW:,} to {MANY:,} training images{near}"
    return "full", f"more than {MANY:,} training images"


def frozen_of(probe: Right, knn: Right) -> tuple[str, str]:
    """Return what stands for frozen features, and a sentence where that is `knn`: by the same rule as below."""
    gain, error = paired(knn, probe)
    if gain <= error:
        return FROZEN, ""
    points = f"{100 * gain:.1f} ± {100 * error:.1f} points"
    return NEAREST, f"of frozen features, {NEAREST} was better than {FROZEN} by {points}; its runs are not exported"


def decide(
    rule: str,
    right: Mapping[str, Right],
    seconds: Mapping[str, float],
    left: float | None = None,
    frozen: str = FROZEN,
) -> Decision:
    """Keep the rule's strategy unless another was better by more than the standard error of the difference.

    Both are judged on the same images, so the error is that of the mean of their paired differences. Where the frozen
    features are right about 99 % of the images or more, they are kept, because less than a point is left to gain.

    Args:
        rule: the strategy of the rule.
        right: by strategy, whether it was right about each image, [N], those of the frozen features among them.
        seconds: that a run takes, by strategy, in the order of `CANDIDATES`.
        left: seconds that a run may take; None: any.
        frozen: what stands for frozen features; nothing else does in `right` and `seconds`.
    """
    able = [name for name in seconds if left is None or seconds[name] <= left]
    reasons = []
    start = frozen if rule == "feature_extract" else rule
    if not able:
        quickest = min(seconds, key=seconds.__getitem__)
        return Decision(quickest, ("no strategy fits into the time; this one takes the least",), False)
    if start not in able:
        cheaper = [name for name in able if CANDIDATES.index(name) < CANDIDATES.index(start)] or able
        reasons.append(f"{start} does not fit into the time")
        start = frozen if frozen in cheaper and cheaper[-1] == "feature_extract" else cheaper[-1]
    known = float(right[frozen].mean())
    if known >= CEILING and frozen in able:
        text = f"the frozen features are right about {known:.1%} of the images, so less than a point is left to gain"
        return Decision(frozen, (*reasons, text), False)
    rivals = {name: paired(right[name], right[start]) for name in right if name in able and name != start}
    if start not in right or not rivals:
        return Decision(start, (*reasons, f"{start} was compared with no other, so the rule stands"), True)
    better = {name: gain for name, (gain, error) in rivals.items() if gain > error}
    chosen = max(better, key=better.__getitem__) if better else start
    if chosen == start:
        reasons.append(f"in trials no other was better than {start} by more than the standard error")
    else:
        gain, error = rivals[chosen]
        reasons.append(f"in trials {chosen} was better than {start} by {100 * gain:.1f} ± {100 * error:.1f} points")
    near = []
    for name in right:
        if name in able and name != chosen:
            gain, error = paired(right[name], right[chosen])
            near += [name] if abs(gain) <= CLOSE * error else []
    if near:
        reasons.append(
            f"it is close: within {CLOSE:g} standard errors of it {'is' if len(near) == 1 else 'are'} "
            f"{' and '.join(near)}"
        )
    gains = {name: paired(values, right[frozen]) for name, values in right.items() if name != frozen}
    if all(gain < -CLOSE * error for gain, error in gains.values()):
        # What trains more could have stayed where the frozen features are.
        reasons.append(
            "what trains more fell behind the frozen features, so it has too few steps here, or another rate "
            "than it needs: more --epochs, or tlx find-lr, may change the advice"
        )
    return Decision(chosen, tuple(reasons), bool(near))


def paired(one: Right, other: Right) -> tuple[float, float]:
    """Return how much more accurate one is than the other on the same images, and the standard error of that.

    Where they differ in too few images for a spread, it is that of one image.
    """
    differences = one.astype(np.float64) - other
    count = len(differences)
    return float(differences.mean()), max(float(differences.std(ddof=1)) / math.sqrt(count), 1 / count)


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy."""
    return math.sqrt(accuracy * (1 - accuracy) / images)
