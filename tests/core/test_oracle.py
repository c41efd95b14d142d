"""The oracle against finite differences, closed forms and invariants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tlx.backend import Array
from tlx.conformance import reference as oracle

BETAS, EPS = (0.9, 0.999), 1e-8


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
    _, gradient = oracle.cross_entropy(logits, labels, targets)
    np.testing.assert_allclose(
        gradient, slope(lambda z: oracle.cross_entropy(z, labels, targets)[0], logits), atol=1e-9
    )


def test_cross_entropy_values() -> None:
    labels = np.array([0, 1])
    assert oracle.cross_entropy(np.zeros((2, 5)), labels)[0] == pytest.approx(math.log(5))
    assert oracle.cross_entropy(np.array([[1e4, 0.0], [0.0, 1e4]]), labels)[0] == 0.0
    # Doubling the batch leaves the mean.
    logits = np.array([[1.0, 2.0], [3.0, -1.0]])
    twice = oracle.cross_entropy(np.concatenate([logits] * 2), np.concatenate([labels] * 2))[0]
    assert twice == pytest.approx(oracle.cross_entropy(logits, labels)[0])


def test_linear_and_relu_gradients(rng: np.random.Generator) -> None:
    x, w, b, up = rng.normal(size=(4, 3)), rng.normal(size=(2, 3)), rng.normal(size=2), rng.normal(size=(4, 2))

    def value(x: Array, w: Array, b: Array) -> float:
        return float((up * oracle.relu(oracle.linear(x, w, b))).sum())

    hidden = oracle.relu_backward(up, oracle.linear(x, w, b))
    dx, dw, db = oracle.linear_backward(hidden, x, w)
    np.testing.assert_allclose(dx, slope(lambda v: value(v, w, b), x), atol=1e-8)
    np.testing.assert_allclose(dw, slope(lambda v: value(x, v, b), w), atol=1e-8)
    np.testing.assert_allclose(db, slope(lambda v: value(x, w, v), b), atol=1e-8)
    assert oracle.relu_backward(np.ones(1), np.zeros(1)) == 0


@pytest.mark.parametrize("batch", [True, False])
def test_normalisation_gradient(rng: np.random.Generator, batch: bool) -> None:
    x, up, fixed = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), (rng.normal(size=3), rng.random(3) + 0.5)

    def normal(v: Array) -> Array:
        mean, var = oracle.moments(v)[:2] if batch else fixed
        return oracle.normalise(v, mean, var, 1e-5)

    var = oracle.moments(x)[1] if batch else fixed[1]
    gradient = oracle.normalise_backward(up, normal(x), var, 1e-5, batch=batch)
    np.testing.assert_allclose(gradient, slope(lambda v: float((up * normal(v)).sum()), x), atol=1e-8)


def test_normalised_batch_has_mean_0_and_biased_variance_1(rng: np.random.Generator) -> None:
    x = rng.normal(3, 7, size=(8, 4))
    z = oracle.normalise(x, *oracle.moments(x), 0.0)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose((z**2).mean(axis=0), 1)


def test_running_statistics_converge_to_mean_and_unbiased_variance(rng: np.random.Generator) -> None:
    x = rng.normal(3, 7, size=(5, 4))
    mean, var = np.zeros(4), np.ones(4)
    for _ in range(400):
        mean, var = oracle.running(mean, var, x, 0.1)
    np.testing.assert_allclose(mean, x.mean(axis=0))
    np.testing.assert_allclose(var, x.var(axis=0, ddof=1))


def test_sgd_closed_forms() -> None:
    p, g = np.array([2.0]), np.array([3.0])
    assert oracle.sgd_step(p, g, {}, lr=0.1, weight_decay=0.5)[0] == pytest.approx(2 - 0.1 * (3 + 0.5 * 2))
    state: dict[str, Array] = {}
    for _ in range(3):  # a constant gradient: m = g (1 + mu + mu^2)
        p, state = oracle.sgd_step(p, g, state, lr=0.1, weight_decay=0.0, momentum=0.5)
    assert state["momentum"] == pytest.approx(3 * 1.75)
    assert p == pytest.approx(2 - 0.1 * 3 * (1 + 1.5 + 1.75))
    first, _ = oracle.sgd_step(np.array([2.0]), g, {}, lr=0.1, weight_decay=0.0, momentum=0.5, nesterov=True)
    assert first == pytest.approx(2 - 0.1 * 3 * 1.5)


def test_momentum_holds_gradients_not_steps() -> None:
    """With the rate inside the momentum, a later drop of the rate would not show at once."""
    p, state = oracle.sgd_step(np.array([0.0]), np.array([1.0]), {}, lr=1.0, weight_decay=0.0, momentum=0.5)
    after, _ = oracle.sgd_step(p, np.array([1.0]), state, lr=0.01, weight_decay=0.0, momentum=0.5)
    assert p - after == pytest.approx(0.01 * 1.5)


def test_adam_moves_by_lr_at_first_whatever_the_gradient(rng: np.random.Generator) -> None:
    g = rng.normal(size=5) * 10.0 ** np.arange(-3, 2)
    p, state = oracle.adam_step(np.zeros(5), g, {}, lr=0.01, weight_decay=0.0, betas=BETAS, eps=EPS)
    np.testing.assert_allclose(p, -0.01 * np.sign(g), rtol=1e-3)
    assert state["step"] == 1
    for _ in range(3):  # and with a constant gradient ever after
        p, state = oracle.adam_step(p, g, state, lr=0.01, weight_decay=0.0, betas=BETAS, eps=EPS)
    np.testing.assert_allclose(p, -0.04 * np.sign(g), rtol=1e-3)


def test_adamw_shrinks_the_parameter_apart_from_the_gradient() -> None:
    p, g = np.array([2.0, -4.0]), np.array([1.0, 3.0])
    found, _ = oracle.adamw_step(p, g, {}, lr=0.1, weight_decay=0.5, betas=BETAS, eps=0.0)
    assert found == pytest.approx(p * (1 - 0.05) - 0.1 * np.sign(g))


def test_rmsprop_closed_forms() -> None:
    p, g = np.array([2.0]), np.array([3.0])
    rule = {"lr": 0.1, "weight_decay": 0.5, "alpha": 0.9, "eps": 0.25}
    plain, state = oracle.rmsprop_step(p, g, {}, **rule)
    assert state["square_avg"] == pytest.approx(0.1 * 4.0**2) and "momentum" not in state
    assert plain == pytest.approx(2 - 0.1 * 4 / (4 * 0.1**0.5 + 0.25))
    for _ in range(3):
        p, state = oracle.rmsprop_step(
            p, np.array([1.0]), {} if _ == 0 else state, momentum=0.5, **{**rule, "weight_decay": 0.0}
        )
    assert state["momentum"] > 1 / (1 + 0.25)  # three pushes add up


def test_adam_adds_decay_to_the_gradient() -> None:
    p, g = np.array([2.0]), np.array([1.0])
    with_decay = oracle.adam_step(p, g, {}, lr=0.1, weight_decay=0.5, betas=BETAS, eps=EPS)
    without = oracle.adam_step(p, g + 1.0, {}, lr=0.1, weight_decay=0.0, betas=BETAS, eps=EPS)
    assert with_decay[0] == without[0] and with_decay[1]["exp_avg"] == without[1]["exp_avg"]


def test_clipping() -> None:
    grads = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    clipped = oracle.clip_by_norm(grads, 1.0)
    assert clipped["a"] == pytest.approx(3 / (5 + 1e-6), rel=1e-12) and clipped["b"] == pytest.approx(
        4 / (5 + 1e-6), rel=1e-12
    )
    untouched = oracle.clip_by_norm(grads, 6.0)
    assert untouched["a"] == 3 and untouched["b"] == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_keep_the_dtype(rng: np.random.Generator, dtype: Any) -> None:
    x = rng.normal(size=(4, 3)).astype(dtype)
    results = [
        *oracle.running(x[0], x[1], x, 0.1),
        *oracle.linear_backward(x, x, x[:3]),
        oracle.cross_entropy(x, np.zeros(4, np.int64))[1],
        oracle.normalise_backward(x, x, x[0] ** 2, 1e-5, batch=True),
        oracle.clip_by_norm({"x": x}, 0.1)["x"],
        oracle.relu_backward(x, x),
    ]
    state: dict[str, Array] = {}
    for _ in range(2):
        p, state = oracle.adam_step(x, x, state, lr=0.1, weight_decay=0.1, betas=BETAS, eps=EPS)
        results += [p, state["exp_avg_sq"]]
    p, state = oracle.sgd_step(x, x, {}, lr=0.1, weight_decay=0.1, momentum=0.9)
    assert {array.dtype for array in [*results, p, state["momentum"]]} == {np.dtype(dtype)}
