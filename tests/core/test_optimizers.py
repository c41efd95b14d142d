"""The table of optimizers: its rules against closed forms, and its rows against what reads them."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from tlx.backend import Array, Hyper, OptimizerSpec
from tlx.backend.optimizers import RULES, OptimizerName, adam_step, adamw_step, rmsprop_step, sgd_step
from tlx.recipe import Recipe

BETAS, EPS = (0.9, 0.999), 1e-8


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_sgd_closed_forms() -> None:
    p, g = np.array([2.0]), np.array([3.0])
    assert sgd_step(p, g, {}, lr=0.1, weight_decay=0.5)[0] == pytest.approx(2 - 0.1 * (3 + 0.5 * 2))
    state: dict[str, Array] = {}
    for _ in range(3):  # a constant gradient: m = g (1 + mu + mu^2)
        p, state = sgd_step(p, g, state, lr=0.1, weight_decay=0.0, momentum=0.5)
    assert state["momentum"] == pytest.approx(3 * 1.75)
    assert p == pytest.approx(2 - 0.1 * 3 * (1 + 1.5 + 1.75))
    first, _ = sgd_step(np.array([2.0]), g, {}, lr=0.1, weight_decay=0.0, momentum=0.5, nesterov=True)
    assert first == pytest.approx(2 - 0.1 * 3 * 1.5)


def test_momentum_holds_gradients_not_steps() -> None:
    """With the rate inside the momentum, a later drop of the rate would not show at once."""
    p, state = sgd_step(np.array([0.0]), np.array([1.0]), {}, lr=1.0, weight_decay=0.0, momentum=0.5)
    after, _ = sgd_step(p, np.array([1.0]), state, lr=0.01, weight_decay=0.0, momentum=0.5)
    assert p - after == pytest.approx(0.01 * 1.5)


def test_adam_moves_by_lr_at_first_whatever_the_gradient(rng: np.random.Generator) -> None:
    g = rng.normal(size=5) * 10.0 ** np.arange(-3, 2)
    p, state = adam_step(np.zeros(5), g, {}, lr=0.01, weight_decay=0.0, betas=BETAS, eps=EPS)
    np.testing.assert_allclose(p, -0.01 * np.sign(g), rtol=1e-3)
    assert state["step"] == 1
    for _ in range(3):  # and with a constant gradient ever after
        p, state = adam_step(p, g, state, lr=0.01, weight_decay=0.0, betas=BETAS, eps=EPS)
    np.testing.assert_allclose(p, -0.04 * np.sign(g), rtol=1e-3)


def test_adamw_shrinks_the_parameter_apart_from_the_gradient() -> None:
    p, g = np.array([2.0, -4.0]), np.array([1.0, 3.0])
    found, _ = adamw_step(p, g, {}, lr=0.1, weight_decay=0.5, betas=BETAS, eps=0.0)
    assert found == pytest.approx(p * (1 - 0.05) - 0.1 * np.sign(g))


def test_rmsprop_closed_forms() -> None:
    p, g = np.array([2.0]), np.array([3.0])
    rule = {"lr": 0.1, "weight_decay": 0.5, "alpha": 0.9, "eps": 0.25}
    plain, state = rmsprop_step(p, g, {}, **rule)
    assert state["square_avg"] == pytest.approx(0.1 * 4.0**2) and "momentum" not in state
    assert plain == pytest.approx(2 - 0.1 * 4 / (4 * 0.1**0.5 + 0.25))
    for _ in range(3):
        p, state = rmsprop_step(
            p, np.array([1.0]), {} if _ == 0 else state, momentum=0.5, **{**rule, "weight_decay": 0.0}
        )
    assert state["momentum"] > 1 / (1 + 0.25)  # three pushes add up


def test_adam_adds_decay_to_the_gradient() -> None:
    p, g = np.array([2.0]), np.array([1.0])
    with_decay = adam_step(p, g, {}, lr=0.1, weight_decay=0.5, betas=BETAS, eps=EPS)
    without = adam_step(p, g + 1.0, {}, lr=0.1, weight_decay=0.0, betas=BETAS, eps=EPS)
    assert with_decay[0] == without[0] and with_decay[1]["exp_avg"] == without[1]["exp_avg"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rule_keeps_the_dtype_and_returns_the_slots_it_declares(
    rng: np.random.Generator, name: str, dtype: Any
) -> None:
    spec, slots = OptimizerSpec(name, momentum=0.5), dict[str, Array]()
    p, g = rng.normal(size=(2, 4, 3)).astype(dtype)
    for _ in range(2):
        p, slots = RULES[name](spec, p, g, slots, Hyper(lr=0.1, weight_decay=0.1))
        assert p.dtype == dtype and tuple(slots) == spec.slots
        assert {array.dtype for slot, array in slots.items() if slot != "step"} == {np.dtype(dtype)}


@pytest.mark.parametrize("name", RULES)
def test_a_recipe_can_name_every_rule(name: Any) -> None:
    assert Recipe(optimizer=name).optimizer == name


def test_an_editor_completes_every_rule() -> None:
    assert get_args(OptimizerName) == tuple(RULES)


def test_an_unknown_optimizer_has_no_slots() -> None:
    assert OptimizerSpec("adamant").slots == ()
