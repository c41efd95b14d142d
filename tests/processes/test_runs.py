"""A whole run gives on several processes what it gives on one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tlx
from support.backends import each_backend
from support.spread import correct, distance, history, processes, spread, weights

SIZES = [pytest.param(2, marks=pytest.mark.thorough), 3]

BASE: dict[str, Any] = {
    "backend": "loopback",
    "model": "tiny-mlp-dropout",
    "weights": "none",
    "precision": "float64",
    "data": "digits",
    "image_size": 8,
    "limit_train": 77,
    "limit_test": 40,
    "val_fraction": 0.3,
    "epochs": 3,
    "lr": 0.01,
    "workers": 0,
    "augment": "hflip",
}
LATE = {
    "name": "late",
    "groups": [
        {"name": "early", "match": "name:fc1.*"},
        {"name": "late", "match": "name:bn1.*"},
        {"name": "head", "match": "head"},
    ],
    "phases": [{"name": "train", "lr": {"late": 0.01, "head": 0.01}}],
}
CASES: dict[str, dict[str, Any]] = {
    "full": {"batch_size": 64},
    "full of 7": {"batch_size": 7, "micro_batch": 4, "clip_norm": 0.5, "momentum": 0.5},
    "full of 2": {"batch_size": 2, "epochs": 1, "model": "tiny-mlp", "frozen_norm": "keep"},
    "mixed": {"batch_size": 7, "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "ema": 0.9},
    "balanced": {"batch_size": 7, "sampler": "balanced", "class_weights": "balanced", "schedule": "plateau"},
    "patience": {"batch_size": 7, "patience": 1, "epochs": 6, "lr": 0.0001},
    "feature_extract": {"strategy": "feature_extract", "batch_size": 7},
    "feature_extract, no cache": {
        "strategy": "feature_extract",
        "batch_size": 7,
        "feature_cache": "off",
        "optimizer": "adamw",
    },
    "head_then_full": {"strategy": "head_then_full", "phase_epochs": 2, "batch_size": 7, "epochs": 4, "momentum": 0.9},
    "head_then_full with ema": {
        "strategy": "head_then_full",
        "phase_epochs": 2,
        "batch_size": 7,
        "epochs": 3,
        "ema": 0.9,
    },
    "gradual": {"strategy": "gradual", "phase_epochs": 1, "batch_size": 7},
    "diff_lr": {"strategy": "diff_lr", "batch_size": 7},
    "partial": {"strategy": "partial", "batch_size": 7},
    "features of all": {"strategy": LATE, "lr": None, "batch_size": 7, "micro_batch": 5},
    "layer_decay": {"strategy": "layer_decay", "batch_size": 7},
    "lora": {"strategy": "lora", "rank": 2, "batch_size": 7, "lr": 0.001},
    "probe": {"strategy": "probe", "batch_size": 7, "epochs": 1, "augment": "none", "lr": None},
    "knn": {"strategy": "knn", "batch_size": 7, "epochs": 1, "augment": "none", "lr": None},
    "bits": {"strategy": "feature_extract", "batch_size": 7, "feature_cache": "off", "exact": "bits", "micro_batch": 5},
}


def calls(folder: Path, cases: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls of `tlx.run`, each with a folder of its own."""
    return [{**BASE, **fields, "out": str(folder / name)} for name, fields in cases.items()]


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Runs all cases on so many processes, at the first call; returns the folder of the runs."""

    @cache
    def made(size: int) -> Path:
        folder = tmp_path_factory.mktemp(f"on{size}")
        told = spread(size, calls(folder, CASES))
        assert [text.count("ended") for text in told] == [len(CASES)] * size, "\n".join(told)
        return folder

    return made


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_run_of_one_process(on: Callable[[int], Path], case: str, size: int) -> None:
    one, several = on(1) / case, on(size) / case
    assert_same_run(several, one)
    results = [json.loads((folder / "result.json").read_text()) for folder in (several, one)]
    assert [result["processes"] for result in results] == [size, 1]
    assert sorted(path.name for path in several.iterdir()) == sorted(path.name for path in one.iterdir())


def assert_same_run(several: Path, one: Path, tolerance: float = 1e-10) -> None:
    """Weights and losses are as near as float64 rounds; whatever is counted or decided is equal."""
    assert distance(weights(several), weights(one)) < tolerance
    expected, found = history(one), history(several)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for part in ("train", "val"):
            assert correct(ours, part) == correct(theirs, part)
            assert ours[f"{part}_images"] == theirs[f"{part}_images"]
            assert ours[f"{part}_loss"] == pytest.approx(theirs[f"{part}_loss"], rel=tolerance)
        assert (ours["best"], ours["lr"], ours["phase"]) == (theirs["best"], theirs["lr"], theirs["phase"])
    accuracies = [json.loads((folder / "result.json").read_text())["test_accuracy"] for folder in (several, one)]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", ["feature_extract", "probe", "knn", "bits"])
def test_the_bits_are_those_of_one_process(on: Callable[[int], Path], case: str, size: int) -> None:
    """Where one process trains, and where shards are added up in their order."""
    expected, found = weights(on(1) / case), weights(on(size) / case)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert history(on(size) / case) == history(on(1) / case)


CACHED = """
import json, sys
import tlx
from tlx.training.metrics import FeaturesKept

def show(event):
    if isinstance(event, FeaturesKept):
        print(event.part, event.boundary, event.size, flush=True)

if __name__ == "__main__":
    tlx.run(**json.loads(sys.argv[1]), quiet=True, on_event=show)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("backend", each_backend("torch", "oneflow"))
def test_processes_share_out_the_batches_of_features_where_more_than_the_head_trains(
    backend: str, tmp_path: Path
) -> None:
    fields = {**BASE, "backend": backend, "model": "resnet18", "image_size": 32, "limit_train": 40, "limit_test": 15}
    fields |= {"strategy": "partial", "batch_size": 7, "epochs": 2, "augment": "none"}
    for size in (1, 2):
        ended = processes(size, ["-c", CACHED, json.dumps({**fields, "out": str(tmp_path / str(size))})])
        assert [code for code, _, _ in ended] == [0] * size, ended
        told = [told.splitlines()[0].split() for _, told, _ in ended]
        assert told == [["train", "layer4.0.conv1", told[0][2]]] * size and int(told[0][2]) > 0  # each has them all
    assert_same_run(tmp_path / "2", tmp_path / "1", 1e-7)  # random weights amplify rounding


@pytest.mark.thorough
@pytest.mark.parametrize("backend", each_backend("torch", "oneflow"))
def test_frameworks_give_the_run_of_one_process(backend: str, tmp_path: Path) -> None:
    """Every strategy on a residual network: BatchNorm that trains, and cached features that come and go."""
    base = {**BASE, "backend": backend, "model": "resnet18", "image_size": 32, "limit_train": 40, "limit_test": 15}
    cases: dict[str, dict[str, Any]] = {
        "full": {"batch_size": 7, "epochs": 1},
        "fewer rows": {"batch_size": 2, "epochs": 1, "strategy": "feature_extract", "feature_cache": "off"},
        "head_then_full": {"batch_size": 7, "epochs": 3, "strategy": "head_then_full", "phase_epochs": 2},
        "gradual": {"batch_size": 64, "epochs": 3, "strategy": "gradual", "phase_epochs": 1},
        "lora": {"batch_size": 7, "epochs": 1, "strategy": "lora", "lora_targets": "*"},
        **{name: {"batch_size": 7, "epochs": 1, "strategy": name} for name in ("diff_lr", "layer_decay", "partial")},
        **{name: {"strategy": name, "epochs": 1, "augment": "none", "lr": None} for name in ("probe", "knn")},
    }
    for size in (1, 3):
        (tmp_path / str(size)).mkdir()
        fields = [{**base, **case, "out": str(tmp_path / str(size) / name)} for name, case in cases.items()]
        told = spread(size, fields, 900)
        assert [text.count("ended") for text in told] == [len(cases)] * size, "\n".join(told)
    for name in cases:
        assert_same_run(tmp_path / "3" / name, tmp_path / "1" / name, 1e-7)  # random weights amplify rounding


def test_bits_are_refused_where_batch_norm_trains(tmp_path: Path) -> None:
    with pytest.raises(tlx.TlxError, match=r"exact is 'bits'.*BatchNorm 'bn1'.*Fix: use exact fast"):
        tlx.run(**{**BASE, "exact": "bits", "batch_size": 9, "out": str(tmp_path / "run"), "quiet": True})
    assert not (tmp_path / "run").exists()


STOPPED = """
import os, signal, sys
import tlx
from tlx.errors import Interrupted
from tlx.training.metrics import Stepped

steps = 0

def stop(event):
    global steps
    steps += isinstance(event, Stepped)
    if steps == int(sys.argv[2]) and os.environ.get("RANK") == "1":
        signal.raise_signal(signal.SIGTERM)

if __name__ == "__main__":
    try:
        tlx.run(sys.argv[1], quiet=True, on_event=stop)
    except Interrupted as error:
        sys.exit(128 + error.signum)
"""


def test_a_run_that_is_stopped_on_three_processes_goes_on_on_one_and_on_two(
    on: Callable[[int], Path], tmp_path: Path
) -> None:
    """In the midst of an epoch, by a signal that only the second process gets."""
    case = "head_then_full"
    recipe = tlx.Recipe(**{**BASE, **CASES[case], "out": str(tmp_path / "run")})
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    ended = processes(3, ["-c", STOPPED, str(tmp_path / "recipe.toml"), "25"])
    assert [code for code, _, _ in ended] == [143] * 3, ended
    for size in (1, 2):
        folder = tmp_path / f"goes-on-on-{size}"
        shutil.copytree(tmp_path / "run", folder)
        told = spread(size, [{"resume": str(folder)}])
        assert all("ended" in text for text in told), told
        assert_same_run(folder, on(1) / case)
