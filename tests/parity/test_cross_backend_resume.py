"""A run killed on one backend and resumed on the other ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.backends import FRAMEWORKS
from support.processes import free_port, variables
from support.run_files import saved_step

pytestmark = [pytest.mark.slow, pytest.mark.needs(*FRAMEWORKS)]

FIELDS: dict[str, Any] = {
    "data": "digits",
    "limit_train": 40,
    "limit_test": 100,
    "val_fraction": 0,
    "batch_size": 8,
    "epochs": 2,
    "image_size": 32,
    "weights": "none",
    "augment": "flips",
    "strategy": "head_then_full",
    "phase_epochs": 1,
    "lr": 0.01,
    "precision": "float64",
    "workers": 0,
    "quiet": True,
}
STEPS = 5  # in an epoch: the first trains the head, the second everything
# Relative L2 of each array at the end.
LIMITS = {"sgd": 1e-9, "adamw": 1e-9}
CHILD = "import tlx; tlx.run(**{fields!r}, save_seconds=0)"


def killed(out: Path, steps: int, processes: int = 1, **fields: Any) -> None:
    """Start a run in processes of its own, and kill the last of them once so many steps are saved."""
    code, port = CHILD.format(fields={**FIELDS, **fields, "out": str(out)}), free_port()
    places = [variables(rank, processes, port) if processes > 1 else {} for rank in range(processes)]
    *others, child = (
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **place}, stderr=subprocess.PIPE, text=True)
        for place in places
    )
    deadline = time.monotonic() + 120
    while saved_step(out) < steps:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[1]
        time.sleep(0.001)
    child.kill()
    for each in (*others, child):
        each.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL and not (out / "result.json").exists()


def apart(reference: Path, candidate: Path) -> dict[str, float]:
    """Relative L2 distance of each array; absolute where the reference is zero."""
    a, b = (load_file(run / "model.safetensors") for run in (reference, candidate))
    assert a.keys() == b.keys() and all(a[name].dtype == b[name].dtype for name in a)
    return {
        name: float(np.linalg.norm(np.subtract(a[name], b[name], dtype=np.float64)) / (np.linalg.norm(a[name]) or 1.0))
        for name in a
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The run that nobody stopped, of a backend and an optimizer."""

    @cache
    def run(backend: str, optimizer: Any) -> Path:
        out = tmp_path_factory.mktemp("whole") / f"{backend}-{optimizer}"
        return tlx.run(**FIELDS, backend=backend, optimizer=optimizer, out=str(out)).run_dir

    return run


# Killed before the unfreeze, so that the other backend crosses it, and after, so that momentum of both phases moves.
@pytest.mark.parametrize(
    ("first", "optimizer", "steps", "processes"),  # each pair of the first three's values
    [
        pytest.param("torch", "sgd", STEPS - 2, 3, marks=pytest.mark.thorough),
        ("torch", "adamw", STEPS + 2, 1),
        pytest.param("oneflow", "sgd", STEPS + 2, 1, marks=pytest.mark.thorough),
        pytest.param("oneflow", "adamw", STEPS - 2, 3, marks=pytest.mark.thorough),
    ],
)
def test_a_killed_run_continues_on_the_other_backend(
    first: str, optimizer: str, steps: int, processes: int, whole: Callable[[str, str], Path], tmp_path: Path
) -> None:
    second = next(backend for backend in FRAMEWORKS if backend != first)
    killed(tmp_path / "run", steps, processes, backend=first, optimizer=optimizer)
    assert saved_step(tmp_path / "run") < 2 * STEPS
    result = tlx.run(resume=tmp_path / "run", backend=second, quiet=True)
    assert result.backend == second and result.epochs_run == 2
    distances = apart(whole(first, optimizer), result.run_dir)
    worst = max(distances, key=lambda name: distances[name])
    print(f"{optimizer} {first} {steps} {worst} {distances[worst]:.1e}")
    assert distances[worst] <= LIMITS[optimizer], f"{worst}: {distances[worst]:.1e}"
    expected = json.loads((whole(first, optimizer) / "result.json").read_text())
    assert result.test_accuracy == expected["test_accuracy"]
    for a, b in zip(expected["history"], result.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=LIMITS[optimizer])
        assert a["train_accuracy"] == b["train_accuracy"]


@pytest.mark.parametrize("trained", ["torch", pytest.param("oneflow", marks=pytest.mark.thorough)])
def test_a_model_predicts_the_same_classes_on_both_backends(trained: str, whole: Callable[[str, str], Path]) -> None:
    run_dir = whole(trained, "adamw")
    test = tlx.load_data("digits", limit_test=100).test
    assert test is not None
    images = np.stack([test.pixels(i) for i in range(len(test))])
    here, there = (tlx.predict(run_dir, images, backend=backend) for backend in FRAMEWORKS)
    assert len({prediction["class"] for prediction in here}) > 1
    assert [prediction["class"] for prediction in here] == [prediction["class"] for prediction in there]
