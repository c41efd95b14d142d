"""The logistic regression of strategy probe: the minimum that it finds, what it chooses, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_info, threadpool_limits

from tlx.training import logistic
from tlx.training.logistic import STRENGTHS, USUAL, Probe, fit_logistic
from tlx.training.one_thread import one_thread


def blobs(classes: int, count: int = 90, width: int = 7, seed: int = 0) -> tuple[Any, Any]:
    """Features far from zero and of unequal variance, whose classes overlap; and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    labels[: count // 4] = 0  # so that the classes are not equally large
    centres = np.random.default_rng(classes).normal(0, 1, (classes, width))
    noise = generator.normal(0, 1, (count, width)) * np.linspace(0.5, 3, width)
    return (40 + centres[labels] + noise).astype(np.float32), labels


def fitted(features: Any, labels: Any, classes: int, **options: Any) -> Probe:
    fit = fit_logistic(features, labels, classes, **{"val": None, **options})
    while True:
        try:
            next(fit)
        except StopIteration as stop:
            value: Probe = stop.value
            return value


def scale_of(features: Any, bias: bool = True) -> float:
    x = features.astype(np.float64)
    return float(np.sqrt(np.mean((x - x.mean(axis=0) * bias) ** 2)))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_gradient_of_the_objective_that_is_documented_is_zero(classes: int, balanced: bool) -> None:
    features, labels = blobs(classes)
    linear = fitted(features, labels, classes, balanced=balanced).linear
    logits = linear.logits(features)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = odds / odds.sum(axis=1, keepdims=True) - np.eye(classes)[labels]
    if balanced:
        errors *= (len(labels) / classes / np.bincount(labels))[labels][:, None]
    scale = scale_of(features)
    gradient = errors.T @ ((features - features.mean(axis=0)) / scale) + linear.weight * scale / USUAL
    assert np.abs(gradient).max() < 1e-5 * len(labels) and np.abs(errors.sum(axis=0)).max() < 1e-5 * len(labels)
    assert np.abs(linear.weight * scale / USUAL).max() > 1  # so that a wrong penalty would show
    assert np.abs(linear.weight.sum(axis=0)).max() < 1e-12


def test_with_several_labels_each_class_has_the_regression_of_scikit_learn() -> None:
    features, classes = blobs(4)
    labels = np.stack([classes == 0, classes > 1, classes % 2 == 0, np.ones(len(classes), bool)], axis=1).astype(int)
    x = features.astype(np.float64)
    x = (x - x.mean(axis=0)) / scale_of(features)
    for balanced in (False, True):
        probe = fitted(features, labels, 4, balanced=balanced)
        logits = probe.linear.logits(features)
        for k in range(3):
            alone = LogisticRegression(C=USUAL, tol=1e-8, class_weight="balanced" if balanced else None)
            assert np.abs(logits[:, k] - alone.fit(x, labels[:, k]).decision_function(x)).max() < 1e-4
            assert np.ptp(logits[:, k]) > 0.1
        assert np.ptp(logits[:, 3]) == 0 and logits[0, 3] == pytest.approx(np.log(91))  # of a class of all images
        assert probe.notes[-1] == "1 of 4 classes apply to all training images, so their logits are constant"


def test_with_several_labels_map_chooses_the_strength() -> None:
    (features, train), (held_out, val) = blobs(3, seed=1), blobs(3, seed=2)
    of_train, of_val = (np.stack([labels > 0, labels == 1], axis=1).astype(int) for labels in (train, val))
    probe = fitted(features, of_train, 2, val=(held_out, of_val))
    scores = [trial.val.average_precision for trial in probe.tried if trial.val is not None]
    assert len(scores) == len(STRENGTHS) and len({*scores}) > 3
    best = max(probe.tried, key=lambda trial: (trial.val.score, -trial.val.loss))
    assert probe.strength == best.value
    assert average_precision_score(of_val, probe.linear.logits(held_out)) == pytest.approx(max(scores), abs=0.01)


@pytest.mark.parametrize("classes", [2, 4])
def test_logits_are_the_decision_function_of_scikit_learn(classes: int) -> None:
    features, labels = blobs(classes)
    x = (features - features.mean(axis=0, dtype=np.float64)) / scale_of(features)
    # Two rows of a softmax pay half of what one row pays: see `fit_logistic`.
    model = LogisticRegression(C=USUAL * (2 if classes == 2 else 1), tol=1e-10, max_iter=10_000).fit(x, labels)
    decision = model.decision_function(x)
    logits = fitted(features, labels, classes).linear.logits(features)
    if classes == 2:
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], decision, atol=1e-4)
        np.testing.assert_allclose(logits[:, 1], -logits[:, 0], atol=1e-9)
    else:
        np.testing.assert_allclose(logits, decision - decision.mean(axis=1, keepdims=True), atol=1e-4)


def test_without_a_bias_nothing_is_centred() -> None:
    features, labels = blobs(3)
    linear = fitted(features, labels, 3, bias=False).linear
    x = features / scale_of(features, bias=False)
    model = LogisticRegression(C=USUAL, tol=1e-10, max_iter=10_000, fit_intercept=False).fit(x, labels)
    expected = model.decision_function(x)
    assert not linear.bias.any()
    np.testing.assert_allclose(linear.logits(features), expected - expected.mean(axis=1, keepdims=True), atol=1e-3)


def test_the_highest_validation_accuracy_is_chosen_and_then_the_lowest_loss() -> None:
    features, labels = blobs(4, count=60)
    val = blobs(4, count=40, seed=9)
    probe = fitted(features, labels, 4, val=val)
    assert [trial.value for trial in probe.tried] == list(STRENGTHS) and len(STRENGTHS) == 45
    assert STRENGTHS[0] == 1e-6 and STRENGTHS[-1] == 1e5
    best = max(probe.tried, key=lambda trial: (trial.val.accuracy, -trial.val.loss, -trial.value))
    assert probe.strength == best.value and len({trial.val.accuracy for trial in probe.tried}) > 3
    accuracy = (probe.linear.logits(val[0]).argmax(axis=1) == val[1]).mean()
    assert accuracy == best.val.accuracy
    assert probe.notes == ()


def test_a_fit_that_needs_more_iterations_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(4)
    monkeypatch.setattr(logistic, "ITERATIONS", 3)
    assert "the fit has not converged in 3 iterations" in fitted(features, labels, 4).notes


def test_without_validation_the_usual_strength_is_taken_and_said() -> None:
    probe = fitted(*blobs(3), 3)
    assert probe.strength == USUAL and probe.tried == ()
    assert probe.notes == ("there is no validation part to choose the strength C by, so it is 0.01",)


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_one_thread_multiplies_and_what_was_set_comes_back() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with one_thread():
            assert threads() == {1}
        assert threads() == before
