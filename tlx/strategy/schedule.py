"""Learning-rate schedules: each is a pure function of the step that scales every group's base rate.

Only `plateau` looks at more than the step: at the validation losses of the epochs before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tlx.backend import float32_exact as float32_exact  # older backends import it from here

ScheduleName = Literal["constant", "step", "cosine", "one_cycle", "plateau"]  # a test holds it equal to SCHEDULES


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule over a whole run. `warmup` and `step_size` are in epochs, `gamma` is the factor of a drop."""

    name: str
    epochs: int
    steps_per_epoch: int
    warmup: float = 0.0
    step_size: int = 7
    gamma: float = 0.1

    def factor(self, step: int, losses: Sequence[float] = ()) -> float:
        """Return the factor of step ``0 .. epochs * steps_per_epoch - 1``.

        Warm-up rises linearly and reaches 1 after `warmup` epochs; the schedule itself begins there. `losses` are the
        validation losses of all epochs before this one.
        """
        return self.factor_after(drops(losses, self.step_size), step)

    def factor_after(self, drops: int, step: int) -> float:
        """Return the factor of a step before which `plateau` has dropped so often: see `Plateau`."""
        warm = round(self.warmup * self.steps_per_epoch)
        if step < warm:
            return (step + 1) / warm
        if self.name == "plateau":
            return self.gamma**drops
        return SCHEDULES[self.name](self, step - warm, self.epochs * self.steps_per_epoch - warm)


class Plateau:
    """Counts how often `patience` epochs in a row had no loss below the lowest so far; each count starts anew.

    Below means by a ten-thousandth of it. Source: torch.optim.lr_scheduler.ReduceLROnPlateau, whose patience is one
    less: it drops at the first epoch *beyond* its patience.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.lowest, self.waited, self.drops = patience, math.inf, 0, 0

    def add(self, loss: float) -> None:
        """Take the validation loss of the next epoch."""
        if loss < self.lowest * (1 - 1e-4):
            self.lowest, self.waited = loss, 0
        else:
            self.waited += 1
        if self.waited == self.patience:
            self.waited, self.drops = 0, self.drops + 1


def drops(losses: Sequence[float], patience: int) -> int:
    """Return how often a plateau drops over all these losses."""
    plateau = Plateau(patience)
    for loss in losses:
        plateau.add(loss)
    return plateau.drops


def _constant(schedule: Schedule, step: int, total: int) -> float:
    return 1.0


def _step(schedule: Schedule, step: int, total: int) -> float:
    done = schedule.epochs * schedule.steps_per_epoch - total + step
    return schedule.gamma ** (done // schedule.steps_per_epoch // schedule.step_size)


def _cosine(schedule: Schedule, step: int, total: int) -> float:
    # Loshchilov & Hutter 2017, equation 5, without restarts: 1 at the start, towards 0 after the last step.
    return 0.5 * (1.0 + math.cos(math.pi * step / total))


def _one_cycle(schedule: Schedule, step: int, total: int) -> float:
    # Smith & Topin 2018 with the constants of torch.optim.lr_scheduler.OneCycleLR, without its cycle of the momentum:
    # from 1/25 up to 1 over 30 % of the steps, then down to 1/250,000, along half cosines. A warm-up replaces the rise.
    top = -1.0 if schedule.warmup else 0.3 * total - 1
    if step <= top:
        start, end, part = 1 / 25, 1.0, step / top if top else 1.0
    else:
        peak = max(top, 0.0)
        start, end, part = 1.0, 1 / 25 / 1e4, (step - peak) / max(total - 1 - peak, 1.0)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


SCHEDULES: dict[str, Callable[[Schedule, int, int], float]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "plateau": _constant,  # and drops with the losses: see `factor_after`
}
