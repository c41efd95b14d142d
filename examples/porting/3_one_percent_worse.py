"""Tutorial 3. Why your port is 1 % worse: the differences that a loss curve does not show, planted one at a time.

Each line of `SUSPECTS` is a mistake that ports really have: it trains, it converges, and it ends a little worse. One
side is a backend as it is, the other the same backend with the mistake, so whatever is found is the mistake. For each
it prints what you would have looked at, the last epoch's training loss on both sides, and what `tlx parity` says.

    python examples/porting/3_one_percent_worse.py
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tlx import Recipe
from tlx.backend import registry
from tlx.proof.artifact import Capture
from tlx.proof.capture import capture
from tlx.proof.compare import compare
from tlx.proof.faults import CoupledDecay, DecayOnAll, FrozenNormAdapts, Nearest, RateInsideMomentum, reseeded
from tlx.proof.module_faults import Edited, network
from tlx.proof.pair import drawn_images
from tlx.proof.trajectory import steps_of

STAGES = ("P1", "P2", "P3", "P4", "P5", "P6", "P7")


def keras_momentum(fw: Any, net: Any) -> None:
    """PyTorch's momentum is the weight of the new value, 0.1; Keras's that of the old one, 0.9."""
    net.norm.momentum = 0.9


def keras_eps(fw: Any, net: Any) -> None:
    net.norm.eps = 1e-3


# What, where it is planted (a backend, or what happens to the loader), and the optimizer it lies in.
SUSPECTS: list[tuple[str, Any, str]] = [
    ("data order: the port shuffles by its own random stream", reseeded, "sgd"),
    ("augmentation: the port enlarges images by the nearest pixel, not bilinearly", Nearest, "sgd"),
    ("BatchNorm: 0.9 where 0.1 was meant, the other framework's convention", partial(Edited, keras_momentum), "sgd"),
    ("BatchNorm: eps 1e-3, the other framework's default", partial(Edited, keras_eps), "sgd"),
    ("BatchNorm: the frozen backbone's statistics go on adapting", FrozenNormAdapts, "sgd"),
    ("optimizer: the rate sits inside the momentum, so a drop of the rate acts late", RateInsideMomentum, "sgd"),
    ("optimizer: weight decay also on norms and biases", DecayOnAll, "sgd"),
    ("optimizer: Adam with L2 where AdamW was meant", CoupledDecay, "adamw"),
]


def main() -> int:
    backend = registry.load("torch")
    torch.manual_seed(0)
    recipe = Recipe(
        model=network(torch),
        head="fc",
        data=drawn_images(classes=5, size=16),
        image_size=32,
        strategy="head_then_full",
        epochs=4,
        lr=0.05,
        backbone_lr=0.02,
        decay_on="weights",
        schedule="step",
        step_size=1,
    )
    missed = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        clean = {name: replace(recipe, optimizer=name) for name in ("sgd", "adamw")}
        for name, each in clean.items():
            capture(each, backend, home / name, quick=True, stages=STAGES)
        for number, (said, plant, optimizer) in enumerate(SUSPECTS):
            reference, port = home / optimizer, home / str(number)
            # These two calls are `tlx parity capture` and `tlx parity compare`.
            loader = {"feed": plant} if plant is reseeded else {}
            side = backend if loader else plant(backend)
            capture(clean[optimizer], side, port, reference, quick=True, stages=STAGES, **loader)
            report = compare(reference, port)
            print(f"{number + 1}. {said}")
            print(f"   loss of the last epoch: {last_loss(reference)} and {last_loss(port)}")
            print(f"   {report.verdict.name}: {report.first}\n")
            if not report.first:
                missed.append(said)
    print(f"{len(SUSPECTS) - len(missed)} of {len(SUSPECTS)} found")
    return int(bool(missed))


def last_loss(folder: Path) -> str:
    """The mean training loss of the last epoch of a capture's trajectory, where it came that far."""
    captured = Capture(folder)
    recipe, steps = captured.manifest["recipe"], list(steps_of(captured).values())
    if "P6/error" in captured.records:
        return "none (the run refused to go on)"
    epoch = steps[-(len(steps) // recipe["epochs"]) :]
    return f"{sum(float.fromhex(step.facts['loss']) for step in epoch) / recipe['limit_train']:.4f}"


if __name__ == "__main__":
    sys.exit(main())
