"""The learning-rate range test: steps at a rate that rises from one to the next, and what the losses say of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tlx.backend import Batch, Hyper, float32_exact
from tlx.training.loop import State, Training, begin_phase

SMOOTHING = 0.9  # of the loss: each step counts by a tenth
DIVERGED = 4.0  # times the lowest smoothed loss, which ends the test
LEAST = 10  # steps before that


@dataclass(frozen=True, slots=True)
class Trial:
    """One step: the rate of the head, or of everything, the loss of its batch in nats, and the smoothed loss."""

    lr: float
    loss: float
    smoothed: float


def rates(low: float, high: float, steps: int) -> list[float]:
    """Return rates from low to high, each the same factor above the one before, float32-exact."""
    ratio = math.log(high / low) / max(steps - 1, 1)
    return [float32_exact(low * math.exp(ratio * step)) for step in range(steps)]


def range_test(training: Training, lr: float, low: float, high: float, steps: int) -> Iterator[Trial]:
    """Take steps at rising rates; the training's model is of no use afterwards.

    Each group trains in the first phase's proportion to the rate `lr`, which is what rises; schedules and warm-up do
    not count. The smoothed loss is an exponential average with its bias corrected, as Adam's moments are. The test ends
    where that is four times the lowest so far, or where a loss is not finite.

    Sources: Smith 2017, Cyclical Learning Rates for Training Neural Networks, section 3.3; that the rate rises by a
    factor, and where the test ends: Gugger 2018, How Do You Find A Good Learning Rate.
    """
    backend, model, plan = training.backend, training.model, training.plan
    for _ in begin_phase(training, State()):
        pass
    phase, average, lowest = plan.phase_at(0), 0.0, math.inf
    batches = _batches(training)
    for number, rate in enumerate(rates(low, high, steps), 1):
        groups = ((phase.lr.get(group.name, 0.0), group.weight_decay) for group in plan.groups)
        hyper = [Hyper(float32_exact(base / lr * rate), float32_exact(decay)) for base, decay in groups]
        backend.set_hyper(training.optimizer, hyper)
        batch, total = next(batches), 0.0
        results = [
            backend.backward(model, backend.put(model, part), len(part) / len(batch))
            for part in batch.parts(training.micro_batch)
        ]
        backend.update(model, training.optimizer, training.clip_norm)
        total = sum(float(value) for value in backend.fetch([loss for loss, _ in results]))
        loss = total / len(batch)
        if not math.isfinite(loss):
            return
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed = average / (1 - SMOOTHING**number)
        yield Trial(rate, loss, smoothed)
        lowest = min(lowest, smoothed)
        if number >= LEAST and smoothed > DIVERGED * lowest:
            return


def _batches(training: Training) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from training.loader.epoch(epoch)
        epoch += 1


def steepest(trials: list[Trial]) -> int:
    """Return the step at which the smoothed loss falls most from one factor of the rate to the next."""
    falls = [(trials[at + 1].smoothed - trials[at - 1].smoothed) / 2 for at in range(1, len(trials) - 1)]
    return 1 + min(range(len(falls)), key=falls.__getitem__)


def valley(trials: list[Trial]) -> tuple[int, int]:
    """Return the first and the last step of the longest fall of the smoothed loss.

    It is the longest sequence of steps, others left out, in which each loss is below the one before: a bump within the
    fall does not end it. Source: `valley` of fastai's learning-rate finder, after ESRI's, by whom it was contributed.
    """
    losses = [trial.smoothed for trial in trials]
    length, before = [1] * len(losses), list(range(len(losses)))
    for at, loss in enumerate(losses):
        for earlier in range(at):
            if loss < losses[earlier] and length[earlier] + 1 > length[at]:
                length[at], before[at] = length[earlier] + 1, earlier
    last = max(range(len(losses)), key=length.__getitem__)
    first = last
    while before[first] != first:
        first = before[first]
    return first, last


def middle_of(first: int, last: int) -> int:
    """Return the middle of a valley, as fastai does: a third of it and half of another third after its first step."""
    return first + (last - first) // 3 + (last - first) // 6
