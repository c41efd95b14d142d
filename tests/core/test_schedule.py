"""Schedules are pure functions of the step."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tlx.schedule import SCHEDULES, Schedule, float32_exact


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


def test_rates_are_float32_numbers() -> None:
    value = float32_exact(0.1)
    assert value != 0.1 and float(np.float32(value)) == value == float32_exact(value)
