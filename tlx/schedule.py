"""Learning-rate schedules: each is a pure function of the step that scales every group's base rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def float32_exact(value: float) -> float:
    """Round to the nearest float32, so that a kernel that rounds scalars and one that does not agree."""
    return float(np.float32(value))


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule over a whole run. `warmup` is in epochs, `step_size` in epochs, `gamma` a factor."""

    name: str
    epochs: int
    steps_per_epoch: int
    warmup: float = 0.0
    step_size: int = 7
    gamma: float = 0.1

    def factor(self, step: int) -> float:
        """Return the factor of step ``0 .. epochs * steps_per_epoch - 1``.

        Warm-up rises linearly and reaches 1 after `warmup` epochs; the schedule itself begins there.
        """
        warm = round(self.warmup * self.steps_per_epoch)
        if step < warm:
            return (step + 1) / warm
        return SCHEDULES[self.name](self, step, warm)


def _constant(schedule: Schedule, step: int, warm: int) -> float:
    return 1.0


def _step(schedule: Schedule, step: int, warm: int) -> float:
    return schedule.gamma ** (step // schedule.steps_per_epoch // schedule.step_size)


def _cosine(schedule: Schedule, step: int, warm: int) -> float:
    # Loshchilov & Hutter 2017, equation 5, without restarts: 1 at the start, towards 0 after the last step.
    total = schedule.epochs * schedule.steps_per_epoch
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / (total - warm)))


SCHEDULES: dict[str, Callable[[Schedule, int, int], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
}
