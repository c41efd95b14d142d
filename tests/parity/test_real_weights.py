"""Real photos and real pretrained weights through the whole job, on both backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tlx
from support.backends import FRAMEWORKS

pytestmark = [pytest.mark.slow, pytest.mark.needs(*FRAMEWORKS)]

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


@pytest.mark.parametrize("job", [pytest.param("CIFAR-10", marks=pytest.mark.thorough), "ants and bees"])
def test_transfer_beats_chance_alike_and_crosses_over(job: str, test_data: Path, tmp_path: Path) -> None:
    fields = {**JOBS[job], "weights": str(test_data / JOBS[job]["weights"]), "data_root": str(test_data)}
    runs = [
        tlx.run(
            **fields,
            backend=backend,
            strategy="feature_extract",
            limit_train=160,
            limit_test=100,
            val_fraction=0,
            batch_size=16,
            epochs=3,
            precision="float32",
            out=str(tmp_path / backend),
            quiet=True,
        )
        for backend in FRAMEWORKS
    ]
    chance = 0.5 if job == "ants and bees" else 0.1
    assert all(run.test_accuracy > chance + 0.1 for run in runs)
    # A frozen backbone leaves no room for float32 chaos: the two may differ by one image on a tie.
    assert abs(runs[0].test_accuracy - runs[1].test_accuracy) <= 0.01
    assert runs[0].history[-1]["train_loss"] == pytest.approx(runs[1].history[-1]["train_loss"], rel=1e-4)
    for run, other in zip(runs, reversed(FRAMEWORKS), strict=True):
        crossed = tlx.evaluate(run.run_dir, other, quiet=True)
        assert crossed["backend"] == other and abs(crossed["test_accuracy"] - run.test_accuracy) <= 0.01
