"""Real photos and real pretrained weights through the whole job, on both stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tlx
from tests.parity.test_two_stacks import STACKS, pytestmark  # noqa: F401

JOBS: dict[str, dict[str, Any]] = {
    "CIFAR-10": {"data": "cifar10", "weights": "weights/resnet18-imagenet200-32px.safetensors", "image_size": 64},
    "ants and bees": {
        "data": "hymenoptera_data",
        "model": "squeezenet1_0",
        "weights": "weights/squeezenet1_0-imagenet.safetensors",
        "image_size": 96,
        "augment": "photo",
        "optimizer": "adam",
    },
}


@pytest.mark.parametrize("job", JOBS)
def test_transfer_beats_chance_alike_and_crosses_over(job: str, test_data: Path, tmp_path: Path) -> None:
    fields = {**JOBS[job], "weights": str(test_data / JOBS[job]["weights"]), "data_root": str(test_data)}
    runs = [
        tlx.run(
            **fields,
            backend=stack,
            strategy="feature_extract",
            limit_train=160,
            limit_test=100,
            val_fraction=0,
            batch_size=16,
            epochs=3,
            precision="float32",
            out=str(tmp_path / stack),
            quiet=True,
        )
        for stack in STACKS
    ]
    chance = 0.5 if job == "ants and bees" else 0.1
    assert all(run.test_accuracy > chance + 0.1 for run in runs)
    # A frozen backbone leaves no room for float32 chaos: the two may differ by one image on a tie.
    assert abs(runs[0].test_accuracy - runs[1].test_accuracy) <= 0.01
    assert runs[0].history[-1]["train_loss"] == pytest.approx(runs[1].history[-1]["train_loss"], rel=1e-4)
    for run, other in zip(runs, reversed(STACKS), strict=True):
        crossed = tlx.evaluate(run.run_dir, other, quiet=True)
        assert crossed["backend"] == other and abs(crossed["test_accuracy"] - run.test_accuracy) <= 0.01
