"""The NumPy reference against finite differences, closed forms and invariants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tlx.backend import Array
from tlx.conformance import reference


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def slope(function: Callable[[Array], float], x: Array) -> Array:
    """The gradient by central differences."""
    result = np.empty_like(x)
    for i in np.ndindex(*x.shape):
        h = np.zeros_like(x)
        h[i] = 1e-6
        result[i] = (function(x + h) - function(x - h)) / 2e-6
    return result


@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_gradient(rng: np.random.Generator, soft: bool) -> None:
    logits, labels = rng.normal(size=(4, 3)), np.array([0, 2, 1, 2])
    targets = rng.uniform(size=(4, 3)) if soft else None
    _, gradient = reference.cross_entropy(logits, labels, targets)
    np.testing.assert_allclose(
        gradient, slope(lambda z: reference.cross_entropy(z, labels, targets)[0], logits), atol=1e-9
    )


def test_cross_entropy_values() -> None:
    labels = np.array([0, 1])
    assert reference.cross_entropy(np.zeros((2, 5)), labels)[0] == pytest.approx(math.log(5))
    assert reference.cross_entropy(np.array([[1e4, 0.0], [0.0, 1e4]]), labels)[0] == 0.0
    # Doubling the batch leaves the mean.
    logits = np.array([[1.0, 2.0], [3.0, -1.0]])
    twice = reference.cross_entropy(np.concatenate([logits] * 2), np.concatenate([labels] * 2))[0]
    assert twice == pytest.approx(reference.cross_entropy(logits, labels)[0])


def test_linear_and_relu_gradients(rng: np.random.Generator) -> None:
    x, w, b, up = rng.normal(size=(4, 3)), rng.normal(size=(2, 3)), rng.normal(size=2), rng.normal(size=(4, 2))

    def value(x: Array, w: Array, b: Array) -> float:
        return float((up * reference.relu(reference.linear(x, w, b))).sum())

    hidden = reference.relu_backward(up, reference.linear(x, w, b))
    dx, dw, db = reference.linear_backward(hidden, x, w)
    np.testing.assert_allclose(dx, slope(lambda v: value(v, w, b), x), atol=1e-8)
    np.testing.assert_allclose(dw, slope(lambda v: value(x, v, b), w), atol=1e-8)
    np.testing.assert_allclose(db, slope(lambda v: value(x, w, v), b), atol=1e-8)
    assert reference.relu_backward(np.ones(1), np.zeros(1)) == 0


@pytest.mark.parametrize("batch", [True, False])
def test_normalisation_gradient(rng: np.random.Generator, batch: bool) -> None:
    x, up, fixed = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), (rng.normal(size=3), rng.random(3) + 0.5)

    def normal(v: Array) -> Array:
        mean, var = reference.moments(v)[:2] if batch else fixed
        return reference.normalise(v, mean, var, 1e-5)

    var = reference.moments(x)[1] if batch else fixed[1]
    gradient = reference.normalise_backward(up, normal(x), var, 1e-5, batch=batch)
    np.testing.assert_allclose(gradient, slope(lambda v: float((up * normal(v)).sum()), x), atol=1e-8)


def test_normalised_batch_has_mean_0_and_biased_variance_1(rng: np.random.Generator) -> None:
    x = rng.normal(3, 7, size=(8, 4))
    z = reference.normalise(x, *reference.moments(x), 0.0)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose((z**2).mean(axis=0), 1)


def test_running_statistics_converge_to_mean_and_unbiased_variance(rng: np.random.Generator) -> None:
    x = rng.normal(3, 7, size=(5, 4))
    mean, var = np.zeros(4), np.ones(4)
    for _ in range(400):
        mean, var = reference.running(mean, var, reference.moments(x), len(x), 0.1)
    np.testing.assert_allclose(mean, x.mean(axis=0))
    np.testing.assert_allclose(var, x.var(axis=0, ddof=1))


def test_clipping() -> None:
    grads = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    clipped = reference.clip_by_norm(grads, 1.0)
    assert clipped["a"] == pytest.approx(3 / (5 + 1e-6), rel=1e-12) and clipped["b"] == pytest.approx(
        4 / (5 + 1e-6), rel=1e-12
    )
    untouched = reference.clip_by_norm(grads, 6.0)
    assert untouched["a"] == 3 and untouched["b"] == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_keep_the_dtype(rng: np.random.Generator, dtype: Any) -> None:
    x = rng.normal(size=(4, 3)).astype(dtype)
    results = [
        *reference.running(x[0], x[1], reference.moments(x), len(x), 0.1),
        *reference.linear_backward(x, x, x[:3]),
        reference.cross_entropy(x, np.zeros(4, np.int64))[1],
        reference.normalise_backward(x, x, x[0] ** 2, 1e-5, batch=True),
        reference.clip_by_norm({"x": x}, 0.1)["x"],
        reference.relu_backward(x, x),
    ]
    assert {array.dtype for array in results} == {np.dtype(dtype)}
