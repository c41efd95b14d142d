"""Paired tests of two classifiers on the same images, and the correction for making several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlx import rng

REPEATS = 10_000  # of the bootstrap: the interval's bounds then move by about a hundredth of its width
LEVEL = 0.95  # of the interval


@dataclass(frozen=True, slots=True)
class McNemar:
    """The images that one of two classifiers alone has right, and how likely such a split is if both are as good."""

    first_alone: int
    second_alone: int
    exact: float  # two-sided p
    mid_p: float  # two-sided


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Compare which images two classifiers have right: bool [N] each, of the same images.

    Given n images that only one of them has right, each is as likely the first's as the second's if both are as good,
    so the smaller count b is binomial. The exact p is ``min(1, 2 P(X <= b))``; the mid-p counts b itself by half,
    ``2 P(X < b) + P(X = b)``, which errs less on the safe side.

    Sources: McNemar, Psychometrika 12 (1947) 153-157; the mid-p in Fagerland, Lydersen & Laake, BMC Medical Research
    Methodology 13 (2013) 91, which recommends it.
    """
    from scipy.stats import binom  # type: ignore[import-untyped]

    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    low, n = min(b, c), b + c
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0)
    exact = min(1.0, 2 * float(binom.cdf(low, n, 0.5)))
    mid_p = min(1.0, 2 * float(binom.cdf(low - 1, n, 0.5)) + float(binom.pmf(low, n, 0.5)))
    return McNemar(b, c, exact, mid_p)


def bootstrap(differences: Sequence[NDArray[np.float64]]) -> tuple[float, float, float]:
    """Return the mean paired difference and the bounds of its 95 % interval.

    Args:
        differences: of each image, what the second classifier scores minus the first, [N]. Several arrays are sets of
            images that were drawn apart from each other; each set counts the same.

    Images are drawn with replacement, both classifiers' answers together, and the interval lies between quantiles of
    the mean: the percentile interval of Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. How
    often each value of a difference is drawn is multinomial, so that 10,000 repeats take no time on any number of
    images.
    """
    means = np.zeros(REPEATS)
    for number, values in enumerate(differences):
        distinct, counts = np.unique(values, return_counts=True)
        draws = rng.stream(0, "paired bootstrap", number).multinomial(len(values), counts / len(values), REPEATS)
        means += draws @ distinct / (len(values) * len(differences))
    return float(np.mean([values.mean() for values in differences])), *percentiles(means)


def percentiles(means: NDArray[np.float64]) -> tuple[float, float]:
    """Return the bounds between which 95 % of a bootstrap's repeats lie."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for being several, so that all stay below a level with its probability.

    The i-th smallest of m is multiplied by m - i + 1, and none is smaller than the one before it. Source: Holm,
    Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[at]))
        corrected[at] = highest
    return corrected


def interval_of_mean(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean of accuracies that were measured on separate draws, and the bounds of its 95 % interval.

    The bounds are those of Student's t with N - 1 degrees of freedom (Student, Biometrika 6 (1908) 1-25), cut off at 0
    and 1; one value has none.
    """
    from scipy.stats import t

    mean, spread = mean_and_spread(values)
    if spread is None:
        return mean, None, None
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, which one value does not have."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None
