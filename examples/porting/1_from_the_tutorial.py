"""Tutorial 1. From the PyTorch transfer-learning tutorial to tlx, then to OneFlow.

You have the loop that everybody has: a pretrained ResNet-18, a new last layer, SGD with two learning rates, a schedule.
You want the same on another framework, and you want to be sure that it is the same. Three steps: write the loop as a
recipe; show that the recipe computes what the loop computes; show that it computes the same on both frameworks.

    python examples/porting/1_from_the_tutorial.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from safetensors.numpy import load_file
from torch import nn

import tlx
from tlx.backend import Preprocess
from tlx.data import Augment, Loader

EPOCHS, BATCH, SIZE, CLASSES = 4, 8, 32, 10

# 1. The tutorial's job as a recipe: every line of the loop below is one field.
RECIPE: dict[str, Any] = {
    "model": "resnet18",
    "strategy": "diff_lr",
    "lr": 1e-3,
    "backbone_lr": 1e-4,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "step",
    "step_size": 2,
    "gamma": 0.1,
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "image_size": SIZE,
    "augment": "flips",
    "data": "digits",
    "limit_train": 80,
    "limit_test": 80,
    "val_fraction": 0,
    "precision": "float64",
    "quiet": True,
}


def by_hand(start: dict[str, np.ndarray], exact: bool) -> dict[str, np.ndarray]:
    """The tutorial's loop, on the images that tlx serves: the framework's own shuffle would have another order."""
    model = torchvision.models.resnet18()
    model.fc = nn.Linear(model.fc.in_features, CLASSES)
    model.double().load_state_dict({name: torch.from_numpy(array) for name, array in start.items()})
    round32 = np.float32 if exact else float  # see below
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = float(round32(1e-5)), 1 - float(round32(0.9))
    body = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    groups = [{"params": body}, {"params": list(model.fc.parameters())}]
    decay, momentum = float(round32(5e-4)), float(round32(0.9))
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=momentum, weight_decay=decay)
    loss_of = nn.CrossEntropyLoss()

    data = tlx.load_data("digits", limit_train=80, limit_test=80, val_fraction=0)
    batches = Loader(
        data.train, Preprocess(SIZE), batch_size=BATCH, augment=Augment.parse("flips"), shuffle=True, workers=0
    )
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (batches.preprocess.mean, batches.preprocess.std)
    )
    model.train()
    for epoch in range(EPOCHS):
        for group, rate in zip(optimizer.param_groups, (1e-4, 1e-3), strict=True):
            group["lr"] = float(round32(rate * 0.1 ** (epoch // 2)))  # StepLR(step_size=2, gamma=0.1)
        for batch in batches.epoch(epoch):
            pixels = torch.from_numpy(batch.images).double()
            pixels = nn.functional.interpolate(pixels, size=SIZE, mode="bilinear")
            loss = loss_of(model((pixels / 255 - mean) / std), torch.from_numpy(batch.labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative L2 distance of two arrays of one name, and that name."""
    distances = {
        name: float(np.linalg.norm(a[name].astype(float) - b[name]) / (np.linalg.norm(a[name].astype(float)) or 1))
        for name in a
    }
    worst = max(distances, key=lambda name: distances[name])
    return distances[worst], worst


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        # Weights to transfer. With a network you would leave `weights` out and get ImageNet's.
        first = {"strategy": "scratch", "epochs": 1, "out": f"{scratch}/pretrained", "precision": "float32"}
        pretrained = tlx.run(**{**RECIPE, "backbone_lr": None, **first})
        result = tlx.run(**RECIPE, weights=str(pretrained.run_dir), out=f"{scratch}/run")
        trained = load_file(result.run_dir / "model.safetensors")
        start = beginning(pretrained.run_dir)

        print("2. Is the recipe the loop? All arrays after 40 float64 steps, by hand against tlx on PyTorch:")
        distance, name = apart(by_hand(start, exact=False), trained)
        print(f"   the loop as everybody writes it: {distance:.1e} apart, most in {name}")
        equal, name = apart(by_hand(start, exact=True), trained)
        print(f"   with scalars rounded to float32, as tlx hands them to every backend: {equal:.1e} apart")
        print("   So they are one job. What was left: 0.9 and 1e-5 are not float32 numbers, and OneFlow's kernels")
        print("   round them, so tlx rounds them on every backend.")

        print("3. Is it the same on OneFlow?")
        fields = {key: value for key, value in RECIPE.items() if key not in ("quiet", "precision")}
        report = tlx.parity({**fields, "weights": str(Path(pretrained.run_dir))}, quick=True)
        print(report)
    return 0 if equal < 1e-9 and report.verdict == 0 else 1


def beginning(run_dir: Path) -> dict[str, np.ndarray]:
    """The values that a run with these weights starts from: those of that run, whose classes are the same."""
    from tlx.backend import ModelSpec, registry
    from tlx.models.initial_values import initial_values
    from tlx.models.zoo import architecture

    backend, arch = registry.load("torch"), architecture("resnet18")
    specs = backend.param_specs(backend.build(ModelSpec(arch.name, CLASSES, arch.head), "cpu", "float64"))
    return initial_values(specs, arch, str(run_dir), seed=0, classes=[str(digit) for digit in range(CLASSES)])[0]


if __name__ == "__main__":
    sys.exit(main())
