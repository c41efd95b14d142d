"""How far a run's probabilities can be relied on, judged by its validation part.

A temperature T divides the logits, so that softmax(logits / T) fits the validation labels best: Guo et al. 2017, "On
calibration of modern neural networks", section 4.2. A threshold says from which probability on to answer, so that few
answers are wrong: Geifman & El-Yaniv 2017, "Selective classification for deep neural networks", algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from tlx.backend import Array
from tlx.data import Data, Images
from tlx.errors import TlxError, shown
from tlx.runs.logits import Spool
from tlx.runs.table import load_predictions, measured

BINS = 15  # of the expected calibration error, as in Guo et al.
TEMPERATURES = (0.05, 20.0)  # networks are between 1 and 5; without a best one between these, there is none
DOUBT = 0.05  # the probability that a promised error rate does not hold

Numbers = NDArray[np.float64]
Pairs = Callable[[], Iterator[tuple[Array, NDArray[np.int64]]]]  # logits [n, classes] and labels [n], block by block


class Calibration(TypedDict):
    """How well a run's probabilities fit, before and after a temperature; errors lie between 0 and 1."""

    temperature: float
    ece: float | None  # expected calibration error on the test part; None where there is none
    ece_calibrated: float | None  # with the temperature


def calibrate(data: Data, spools: dict[str, Spool]) -> Calibration | None:
    """Fit a temperature to the validation part of a run, and measure it on the test part.

    None where there is no validation part, or no temperature fits it best: see `fit_temperature`.
    """
    if data.val is None or "val" not in spools:
        return None
    temperature = fit_temperature(_pairs(data.val, spools["val"]))
    if temperature is None:
        return None
    errors: list[float | None] = [None, None]
    if data.test is not None and "test" in spools:
        errors = [_error(_pairs(data.test, spools["test"]), t) for t in (1.0, temperature)]
    return {"temperature": temperature, "ece": errors[0], "ece_calibrated": errors[1]}


def _pairs(images: Images, spool: Spool) -> Pairs:
    def pairs() -> Iterator[tuple[Array, NDArray[np.int64]]]:
        at = 0
        for logits in spool.blocks():
            yield logits, images.labels[at : at + len(logits)]
            at += len(logits)

    return pairs


def fit_temperature(pairs: Pairs) -> float | None:
    """Return the T for which softmax(logits / T) gives labels the least mean negative log-likelihood.

    That is convex in 1 / T, so it is found by Newton's method, halved where a step leaves the bracket, in float64. None
    where it lies outside of `TEMPERATURES`: where every image is classified correctly, the least is at 0, which would
    make every probability 1.
    """
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    if not _slope(pairs, low)[0] < 0 < _slope(pairs, high)[0]:
        return None
    beta = 1.0
    for _ in range(100):
        slope, curvature = _slope(pairs, beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curvature if curvature > 0 else math.inf
        after = step if low < step < high else (low + high) / 2
        if abs(after - beta) <= 1e-10 * beta:
            break
        beta = after
    return 1 / beta


def _slope(pairs: Pairs, beta: float) -> tuple[float, float]:
    """The first and second derivative of the summed negative log-likelihood of softmax(beta * logits)."""
    slope = curvature = 0.0
    for logits, labels in pairs():
        above = logits.astype(np.float64)
        above -= above.max(axis=1, keepdims=True)
        odds = np.exp(beta * above)
        odds /= odds.sum(axis=1, keepdims=True)
        mean = (odds * above).sum(axis=1)
        slope += float((mean - above[np.arange(len(labels)), labels]).sum())
        curvature += float((odds * (above - mean[:, None]) ** 2).sum())
    return slope, curvature


def _error(pairs: Pairs, temperature: float) -> float:
    probabilities, correct = list[Numbers](), list[NDArray[np.bool_]]()
    for logits, labels in pairs():
        first, probability, _, _ = measured(logits / np.float64(temperature), labels)
        probabilities.append(probability)
        correct.append(first == labels)
    return calibration_error(np.concatenate(probabilities), np.concatenate(correct))


def calibration_error(probability: Numbers, correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Return the expected calibration error: the mean over images of |accuracy - mean probability| of their bin.

    Bins are of equal width, open below and closed above: Naeini et al. 2015, "Obtaining well calibrated probabilities
    using Bayesian binning", and Guo et al. 2017, equation 3.

    Args:
        probability: of the prediction [N].
        correct: whether it is the label [N].
        bins: how many.
    """
    place = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, correct - probability, bins)
    return float(np.abs(gaps).sum() / len(place))


@dataclass(frozen=True, slots=True)
class Answering:
    """How predictions are answered: by which temperature, and only above which probability."""

    temperature: float = 1.0
    threshold: float = -1.0
    note: str = ""  # what the threshold promises


def answering(run_dir: Path, temperature: float | None, reject: float | None, calibrated: bool) -> Answering:
    """Return how a run answers.

    Args:
        run_dir: its folder.
        temperature: that of its card.
        reject: the error rate that answers may have; None: everything is answered.
        calibrated: use the temperature.

    Raises:
        TlxError: the run's validation part does not allow it.
    """
    if calibrated and temperature is None:
        raise TlxError(
            f"{run_dir} has no temperature: it has no validation part, or one that none fits, as where all of it is "
            "classified correctly, or an earlier tlx wrote it",
            fix="leave calibrated out, or train with val_fraction above 0",
        )
    used = temperature if calibrated and temperature is not None else 1.0
    if reject is None:
        return Answering(used)
    if isinstance(reject, bool) or not isinstance(reject, (int, float)) or not 0 < reject < 1:
        raise TlxError(f"reject is {shown(reject)}; expected the part of answers that may be wrong, such as 0.05")
    table = load_predictions(run_dir, "val")
    count, correct = len(table["label"]), np.array(table["label"]) == np.array(table["prediction"])
    _, probability, _, _ = measured(table["logits"] / np.float64(used), np.zeros(count, np.int64))
    threshold = choose_threshold(probability, correct, reject)
    if threshold is None:
        least = math.ceil(math.log(DOUBT / _tests(count)) / math.log1p(-reject))
        raise TlxError(
            f"reject: no threshold keeps the errors of {run_dir} at or under {reject:g} with {1 - DOUBT:.0%} "
            f"confidence, judged by its {count} validation images; even without a mistake it takes about {least}",
            fix="allow more with reject, or train with more validation images (val_fraction) or to a higher accuracy",
        )
    answered = int((probability > threshold).sum())
    note = (
        f"answers need a probability above {max(threshold, 0):.4f}, as {answered} of {count} validation images have: "
        f"with {1 - DOUBT:.0%} confidence at most {reject:g} of such answers are wrong"
    )
    return Answering(used, threshold, note)


def choose_threshold(probability: Numbers, correct: NDArray[np.bool_], risk: float) -> float | None:
    """Return a probability above which the error rate is at most `risk`, with a confidence of 1 - `DOUBT`; or None.

    Images above a threshold that is the z-th highest probability of a sample are a sample of all images above it, so
    the upper bound of Clopper & Pearson 1934 holds for their errors. It is tried for all images, then by bisection for
    about log2(N) thresholds, and `DOUBT` is divided by how often it is tried, so that all bounds hold together. Images
    must be independent and like those that are answered later.

    Args:
        probability: of the prediction [N].
        correct: whether it is the label [N].
        risk: between 0 and 1.

    Returns:
        The threshold: -1 where everything may be answered.
    """
    count = len(probability)
    doubt = DOUBT / _tests(count)
    order = np.sort(probability)[::-1]

    def holds(threshold: float) -> bool:
        answered = probability > threshold
        return error_bound(int((answered & ~correct).sum()), int(answered.sum()), doubt) <= risk

    if holds(-1.0):
        return -1.0
    chosen, low, high = None, 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if holds(float(order[middle])):
            chosen, low = float(order[middle]), middle + 1
        else:
            high = middle
    return chosen


def _tests(count: int) -> int:
    """How many thresholds are tried at most."""
    return 1 + max(1, math.ceil(math.log2(max(count, 2))))


def error_bound(errors: int, count: int, doubt: float) -> float:
    """Return the one-sided upper bound of Clopper & Pearson for an error rate, which fails with probability `doubt`."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    return 1.0 if errors == count else float(betaincinv(errors + 1, count - errors, 1 - doubt))
