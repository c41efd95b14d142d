"""The schedules that carry a name from PyTorch give PyTorch's rates."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from support.backends import skip_module_without
from tlx.strategy.schedule import Schedule

skip_module_without("torch")

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau


@pytest.mark.parametrize(("epochs", "steps"), [(1, 10), (3, 7), (10, 71)])
def test_one_cycle(epochs: int, steps: int) -> None:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = OneCycleLR(optimizer, max_lr=1.0, total_steps=epochs * steps, cycle_momentum=False)
    ours = Schedule("one_cycle", epochs, steps)
    for step in range(epochs * steps):
        assert ours.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no step of the optimizer was taken
            theirs.step()


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_plateau(patience: int) -> None:
    rng = np.random.default_rng(patience)
    losses = [float(loss) for loss in np.cumsum(rng.normal(0.0, 0.1, 60)) + 5]
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = ReduceLROnPlateau(optimizer, patience=patience - 1, factor=0.5, min_lr=0, eps=0)
    ours = Schedule("plateau", 61, 3, step_size=patience, gamma=0.5)
    for epoch in range(61):
        rate = optimizer.param_groups[0]["lr"]
        assert ours.factor(epoch * 3 + 1, losses[:epoch]) == pytest.approx(rate, rel=1e-12), epoch
        if epoch < 60:
            theirs.step(losses[epoch])
    assert optimizer.param_groups[0]["lr"] < 0.3
