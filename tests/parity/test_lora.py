"""Strategy lora on both frameworks: a vision transformer on scanned digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import tlx
from support.backends import FRAMEWORKS
from support.distance import relative_distance
from support.tiny_vit import IMAGE_SIZE, NAME, add_tiny_vit
from tlx.backend.module import lora
from tlx.errors import RecipeError
from tlx.proof.result import Verdict

pytestmark = [pytest.mark.slow, pytest.mark.needs(*FRAMEWORKS)]

FIELDS: dict[str, Any] = {
    **{"model": NAME, "data": "digits", "image_size": IMAGE_SIZE, "augment": "none", "weights": "none"},
    **{"strategy": "lora", "rank": 2, "precision": "float64", "batch_size": 8, "quiet": True},
}
OLD, NEW = tuple("01234"), tuple("56789")


@pytest.fixture(autouse=True)
def tiny_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    add_tiny_vit(monkeypatch)


def test_forty_float64_steps_leave_the_same_weights_and_adapters(tmp_path: Path) -> None:
    fields = {**FIELDS, "lr": 0.05, "limit_train": 160, "val_fraction": 0, "epochs": 2, "ema": 0.9}
    runs = [tlx.run(**fields, backend=backend, out=str(tmp_path / backend)) for backend in FRAMEWORKS]
    for file, least in (("model.safetensors", 31), ("adapters.safetensors", 18)):
        reference, candidate = (load_file(run.run_dir / file) for run in runs)
        assert reference.keys() == candidate.keys() and len(reference) >= least
        assert max(relative_distance(reference[name], candidate[name]) for name in reference) <= 1e-9
    assert runs[0].test_accuracy == runs[1].test_accuracy
    for run, backend in zip(runs, FRAMEWORKS[::-1], strict=True):
        assert tlx.evaluate(run.run_dir, backend, quiet=True)["test_accuracy"] == run.test_accuracy


def test_a_run_goes_on_from_the_other_backend(tmp_path: Path) -> None:
    fields = {**FIELDS, "lr": 0.05, "limit_train": 64, "limit_test": 50, "val_fraction": 0}
    whole = tlx.run(**fields, backend=FRAMEWORKS[0], epochs=4, out=str(tmp_path / "whole")).run_dir
    begun = tlx.run(**fields, backend=FRAMEWORKS[1], epochs=2, out=str(tmp_path / "begun")).run_dir
    tlx.run(resume=begun, backend=FRAMEWORKS[0], epochs=4, quiet=True)
    for file in ("model.safetensors", "adapters.safetensors"):
        reference, candidate = load_file(whole / file), load_file(begun / file)
        assert max(relative_distance(reference[name], candidate[name]) for name in reference) <= 1e-9


def test_two_modules_are_refused_because_adapters_are_layers_that_they_lack() -> None:
    import torch

    reference, candidate = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2)) for _ in range(2))
    with pytest.raises(RecipeError, match=r"strategy 'lora' adds layers to a model, and two modules .* Fix: compare"):
        tlx.parity(reference=reference, candidate=candidate, strategy="lora", image_size=8)


@pytest.mark.thorough
def test_the_backends_are_proven_equal() -> None:
    report = tlx.parity(**{k: v for k, v in FIELDS.items() if k != "quiet"}, epochs=2, quick=True)
    assert report.verdict == Verdict.EQUAL, str(report)


@pytest.mark.thorough
def test_a_backend_that_scales_its_adapters_otherwise_is_found_out_by_their_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear = lora._linear

    def unscaled(function: Any, scale: float) -> Any:
        return linear(function, 1.0 if "oneflow" in function.__module__ else scale)

    monkeypatch.setattr(lora, "_linear", unscaled)
    report = tlx.parity(**{k: v for k, v in FIELDS.items() if k != "quiet"}, epochs=2, quick=True)
    assert report.verdict == Verdict.DIFFERENT and "lora_B" in report.first, str(report)


@pytest.mark.parametrize("backend", [FRAMEWORKS[0], pytest.param(FRAMEWORKS[1], marks=pytest.mark.thorough)])
def test_adapters_learn_other_digits_as_well_as_all_weights_do(backend: str, tmp_path: Path) -> None:
    """A quarter of the numbers train; the head alone reaches far less."""
    fields = {**FIELDS, "backend": backend, "precision": "float32", "batch_size": 32, "schedule": "cosine"}
    for option in ("strategy", "rank", "weights"):
        del fields[option]
    first = {**fields, "classes": OLD, "strategy": "scratch", "lr": 5e-3, "optimizer": "adamw", "epochs": 15}
    start = str(tlx.run(**first, out=str(tmp_path / "first")).run_dir)
    again = {**fields, "classes": NEW, "weights": start, "optimizer": "adamw", "epochs": 10}
    ways: dict[str, dict[str, Any]] = {
        "full": {"strategy": "full", "lr": 5e-3},
        "head": {"strategy": "feature_extract", "lr": 1e-2},
        "lora": {"strategy": "lora", "rank": 2, "lr": 1e-2},
    }
    results = {name: tlx.run(**again, **way, out=str(tmp_path / name)) for name, way in ways.items()}
    accuracy = {name: result.test_accuracy or 0.0 for name, result in results.items()}
    assert accuracy["lora"] >= accuracy["full"] - 0.05 and accuracy["lora"] >= accuracy["head"] + 0.1, accuracy
    assert results["lora"].trainable_parameters * 3 < results["full"].trainable_parameters
    assert (results["lora"].run_dir / "adapters.safetensors").stat().st_size < 10_000
