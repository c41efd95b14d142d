"""Schedules are pure functions of the step."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tlx.strategy.schedule import SCHEDULES, Schedule, drops, float32_exact


def factors(name: str, **fields: float) -> list[float]:
    schedule = Schedule(name, epochs=4, steps_per_epoch=5, **fields)  # type: ignore[arg-type]
    return [schedule.factor(step) for step in range(20)]


def test_constant() -> None:
    assert factors("constant") == [1.0] * 20


def test_step_drops_at_epoch_boundaries() -> None:
    assert factors("step", step_size=2, gamma=0.5) == [1.0] * 10 + [0.5] * 10


def test_cosine_falls_from_one_towards_zero() -> None:
    found = factors("cosine")
    assert found[0] == 1.0 and found[10] == pytest.approx(0.5) and 0 < found[-1] < 0.01
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[5] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_linearly_and_then_the_schedule_begins(name: str) -> None:
    found = factors(name, warmup=0.8)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_one_cycle_rises_over_three_tenths_and_ends_near_nothing() -> None:
    found = factors("one_cycle")
    assert found[0] == pytest.approx(1 / 25) and found[5] == pytest.approx(1.0) and found[-1] == pytest.approx(4e-6)
    assert all(a < b for a, b in itertools.pairwise(found[:6])) and all(a > b for a, b in itertools.pairwise(found[5:]))


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_one_cycle_of_very_few_steps_stays_within_its_bounds(epochs: int) -> None:
    schedule = Schedule("one_cycle", epochs, steps_per_epoch=1)
    assert all(0 < schedule.factor(step) <= 1 for step in range(epochs))


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([], 0),
        ([3.0, 2.0, 1.0], 0),
        ([1.0, 1.0], 0),
        ([1.0, 1.0, 1.0], 1),
        ([1.0, 2.0, 0.5, 0.6, 0.4, 0.9, 0.9], 1),
        ([1.0, 2.0, 2.0, 2.0, 2.0], 2),
        ([1.0, 0.99995, 0.9999], 1),  # better by less than a ten-thousandth
    ],
)
def test_plateau_drops_after_two_epochs_without_a_lower_loss(losses: list[float], count: int) -> None:
    assert drops(losses, 2) == count
    schedule = Schedule("plateau", epochs=9, steps_per_epoch=5, step_size=2, gamma=0.5)
    assert schedule.factor(5 * len(losses), losses) == 0.5**count


def test_rates_are_float32_numbers() -> None:
    value = float32_exact(0.1)
    assert value != 0.1 and float(np.float32(value)) == value == float32_exact(value)
