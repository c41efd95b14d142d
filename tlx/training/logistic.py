"""A multinomial logistic regression with an L2 penalty, for a range of strengths of which validation chooses one.

This is the evaluation of frozen features by DINOv2 (Oquab et al. 2023; `dinov2/eval/log_regression.py`): 45 strengths C
from 1e-6 to 1e5, at most 1,000 iterations, in float64, and the highest accuracy on held-out images. As there,

    sum over images of -log softmax(x W' + b)[label]  +  |W|^2 / (2 C),  with b free

is minimised. Two things differ, and neither changes for which W that is least. The features are centred, which the free
b takes up, and divided by one number, the root of their mean variance, so that C counts in the same unit whatever the
backbone; both are undone in W and b. And each fit starts from the one before, whose C is the next smaller.

Where several labels may apply to an image, each class has a regression of its own, of those that it applies to against
all others (one-vs-rest); all have the same C, that of the highest mean average precision.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.multilabel import class_counts, is_multilabel
from tlx.training.metrics import Metrics, Stepped, Tried, better
from tlx.training.multilabel import losses_of, mean_average_precision
from tlx.training.one_thread import one_thread

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]

STRENGTHS = tuple(float(10**power) for power in np.linspace(-6, 5, 45))
USUAL = 0.01  # without validation: the best was 0.018 for ants and bees, 0.002 for CIFAR-10
ITERATIONS = 1000
TOLERANCE = 1e-4  # of the gradient of the mean loss, while strengths are compared; scikit-learn's default
FINAL_TOLERANCE = 1e-6  # for the strength that was chosen; the longer it iterates, the more rounding differences grow


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """Logits are ``x @ weight.T + bias``: weight [classes, features] and bias [classes]."""

    weight: Numbers
    bias: Numbers

    def logits(self, features: NDArray[Any]) -> Numbers:
        """Return the logits [N, classes] of features [N, features]."""
        with one_thread():
            return np.asarray(features.astype(np.float64) @ self.weight.T + self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A regression with the strength that was chosen, those that were tried, and what is to be said of it."""

    linear: Linear
    strength: float
    tried: tuple[Tried, ...]
    notes: tuple[str, ...]


def fit_logistic(
    features: NDArray[Any],
    labels: Labels,
    classes: int,
    *,
    val: tuple[NDArray[Any], Labels] | None,
    balanced: bool = False,
    bias: bool = True,
) -> Generator[Stepped, None, Probe]:
    """Fit for each strength, choose by validation, and fit more closely for that one; an event follows each fit.

    The highest validation accuracy is chosen, or mAP of several labels; of equal ones the lowest loss, of these the
    smallest strength. Without validation images the strength is `USUAL`. All is computed in float64 by one thread, so
    the number of threads changes no bit.

    Args:
        features: of the training images, [N, features].
        labels: of the training images, int64 [N], or of 0 and 1 [N, classes] where several may apply; each class
            occurs, which the data layer sees to.
        classes: how many there are.
        val: features and labels that are held out.
        balanced: each class weighs the same in all, as scikit-learn's ``class_weight="balanced"``; of several labels,
            the images of a class as much as the others.
        bias: whether there is a bias; otherwise features are not centred.
    """
    from sklearn.linear_model import LogisticRegression

    assert class_counts(labels, classes).all(), "a class has no training image"
    x = features.astype(np.float64)
    mean = x.mean(axis=0) if bias else np.zeros(x.shape[1])
    x -= mean
    scale = float(np.sqrt(np.mean(x * x))) or 1.0
    x /= scale
    several = is_multilabel(labels)
    # The two rows of a softmax share what scikit-learn's one row for two classes pays alone: |w|^2 / 4, not / 2.
    factor = 2.0 if classes == 2 and not several else 1.0
    targets = [*labels.T] if several else [labels]
    models = [
        LogisticRegression(
            max_iter=ITERATIONS, warm_start=True, fit_intercept=bias, class_weight="balanced" if balanced else None
        )
        for _ in targets
    ]
    constant = [several and bool(target.all()) for target in targets]
    for model in (model for model, same in zip(models, constant, strict=True) if same):  # there is nothing to fit
        model.coef_, model.intercept_ = np.zeros((1, x.shape[1])), np.full(1, np.log(len(x) + 1.0) if bias else 0.0)

    def fit(strength: float, tolerance: float) -> Generator[Stepped, None, int]:
        most = 0
        for number, (model, target) in enumerate(zip(models, targets, strict=True)):
            if constant[number]:
                continue
            if most:
                yield Stepped()
            model.set_params(C=factor * strength, tol=tolerance)
            with warnings.catch_warnings(), one_thread():
                warnings.simplefilter("ignore")  # of a fit that needs more iterations, which a note says
                model.fit(x, target)
            most = max(most, int(model.n_iter_.max()))
        return most

    def linear() -> Linear:
        coef, intercept = (np.concatenate([getattr(m, name) for m in models]) for name in ("coef_", "intercept_"))
        return (
            Linear(coef / scale, intercept - coef / scale @ mean) if several else _linear(coef / scale, intercept, mean)
        )

    tried: list[Tried] = []
    chosen, best = USUAL, None
    for strength in () if val is None else STRENGTHS:
        assert val is not None
        iterations = yield from fit(strength, TOLERANCE)
        metrics = metrics_of(linear().logits(val[0]), val[1])
        tried.append(Tried(strength, metrics, iterations))
        if best is None or better(metrics, best[0]):
            chosen, best = strength, (metrics, [(np.array(m.coef_), np.array(m.intercept_)) for m in models])
        yield Stepped()
    if best is not None:
        for model, (coef, intercept) in zip(models, best[1], strict=True):
            model.coef_, model.intercept_ = coef, intercept
    iterations = yield from fit(chosen, FINAL_TOLERANCE)
    yield Stepped()
    notes = [*_notes(val is not None, chosen, iterations, tried)]
    if any(constant):
        notes.append(f"{sum(constant)} of {classes} classes apply to all training images, so their logits are constant")
    return Probe(linear(), chosen, tuple(tried), tuple(notes))


def _linear(coef: Numbers, intercept: Numbers, mean: Numbers) -> Linear:
    """Return one row for each class, summing to zero, from what scikit-learn fitted to features less their mean."""
    if len(coef) == 1:  # of two classes: the logit of the second, less that of the first
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    coef, intercept = coef - coef.mean(axis=0), intercept - intercept.mean()
    return Linear(coef, intercept - coef @ mean)


def _notes(validated: bool, chosen: float, iterations: int, tried: list[Tried]) -> Generator[str, None, None]:
    if not validated:
        yield f"there is no validation part to choose the strength C by, so it is {USUAL:g}"
    elif chosen in (STRENGTHS[0], STRENGTHS[-1]):
        yield f"the strength C that was chosen, {chosen:g}, is at the end of those that were tried"
    short = sum(trial.iterations == ITERATIONS for trial in tried)
    if iterations == ITERATIONS:
        yield f"the fit has not converged in {ITERATIONS} iterations"
    elif short:
        yield f"{short} of {len(tried)} fits did not converge in {ITERATIONS} iterations; the chosen one did"


def metrics_of(logits: Numbers, labels: Labels) -> Metrics:
    """Return the mean cross-entropy and the accuracy of logits [N, classes]; of equal logits the first counts.

    Of several labels, [N, classes], the mean binary cross-entropy, the part of the images of which all are right at
    probability 0.5, and mAP.
    """
    if is_multilabel(labels):
        right = ((logits > 0) == (labels == 1)).all(axis=1)
        figures = float(losses_of(logits, labels).mean()), float(right.mean())
        return Metrics(*figures, len(labels), mean_average_precision(logits, labels))
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(labels)), labels]
    return Metrics(float(losses.mean()), float((logits.argmax(axis=1) == labels).mean()), len(labels))
