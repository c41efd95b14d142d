"""Strategies probe and knn on images that may have several labels: a regression, or votes, for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from runs.test_multilabel import FIELDS
from support.backends import FRAMEWORKS
from support.multilabel import CLASSES, digits
from support.pages import words_of
from tlx.errors import RecipeError, TlxError
from tlx.manifest import REPORT
from tlx.models.weights import safetensors_bytes
from tlx.runs.card import read_card
from tlx.runs.finished import read_bank
from tlx.training.logistic import STRENGTHS

FROZEN: dict[str, Any] = {
    **{"weights": "none", "image_size": 32, "data": digits(60), "val_fraction": 0.2, "batch_size": 20},
    **{"precision": "float64", "quiet": True},
}


@pytest.mark.parametrize("strategy", ["probe", "knn"])
def test_frozen_features_are_judged_with_several_labels_too(strategy: str, tmp_path: Path) -> None:
    fields = {name: value for name, value in FIELDS.items() if name not in ("epochs", "lr", "momentum", "augment")}
    job: dict[str, Any] = {**fields, "strategy": strategy, "precision": "float32", "data": digits(400)}
    result = tlx.run(**job, out=str(tmp_path / "run"))
    tried = result.history[0]["fit"]["tried"]
    best = max(tried, key=lambda one: (one["val_average_precision"], -(one["val_loss"] or 0), -one["value"]))
    assert result.history[0]["fit"]["value"] == best["value"]
    assert result.multilabel is not None and result.multilabel["val"] is not None
    assert result.multilabel["val"]["average_precision"] == best["val_average_precision"]
    assert result.multilabel["test"] is not None and (result.multilabel["test"]["average_precision"] or 0) > 0.85
    again = tlx.evaluate(result.run_dir, quiet=True, data=digits(400))
    assert again["multilabel"] == result.multilabel["test"] and again["test_accuracy"] == result.test_accuracy
    page = words_of((result.run_dir / REPORT).read_text(encoding="utf-8"))
    assert f"validation mAP validation loss {tried[0]['value']:.4g} {tried[0]['val_average_precision']:.4f}" in page
    if strategy == "probe":
        weighted = tlx.run(**job, class_weights="balanced", out=str(tmp_path / "weighted"))
        assert weighted.multilabel != result.multilabel
        start = {**FIELDS, "strategy": "feature_extract", "precision": "float32", "epochs": 1, "lr": 0.0}
        start |= {"weights": str(result.run_dir), "data": digits(400)}
        tuned = tlx.run(**start, out=str(tmp_path / "tuned"))
        heads = [load_file(run.run_dir / "model.safetensors")["fc.weight"] for run in (result, tuned)]
        assert np.array_equal(heads[0], heads[1]) and tuned.test_accuracy == result.test_accuracy
        return
    arrays = load_file(result.run_dir / "neighbors.safetensors")
    assert set(np.unique(arrays["labels"])) == {0, 1} and arrays["labels"].shape[1] == len(CLASSES)
    card, labels = read_card((result.run_dir / "card.json").read_bytes(), result.run_dir), arrays["labels"].copy()
    labels[0, 0] = 2
    contents = {"neighbors.safetensors": safetensors_bytes({**arrays, "labels": labels})}
    with pytest.raises(TlxError, match=r"damaged: expected .* labels \[n, 4\] of 0 and 1"):
        read_bank(contents, result.run_dir, card, arrays["features"].shape[1])


@pytest.mark.needs(*FRAMEWORKS)
@pytest.mark.thorough
@pytest.mark.parametrize("strategy", ["probe", "knn"])
def test_both_frameworks_judge_frozen_features_alike(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlx.training.logistic.STRENGTHS", STRENGTHS[::9])
    job = {**FROZEN, "model": "resnet18", "strategy": strategy}
    one, other = (tlx.run(**job, backend=name, out=str(tmp_path / name)) for name in FRAMEWORKS)
    logits = [np.load(run.run_dir / "logits-test.npy") for run in (one, other)]
    assert np.abs(logits[0] - logits[1]).max() <= 1e-5 * np.abs(logits[0]).max() and one.chosen == other.chosen
    moved = tlx.evaluate(one.run_dir, backend=FRAMEWORKS[1], data=digits(60), quiet=True)["multilabel"]
    assert moved is not None and one.multilabel is not None and one.multilabel["test"] is not None
    assert moved["average_precision"] == pytest.approx(one.multilabel["test"]["average_precision"], rel=1e-12)


@pytest.mark.needs("torch")
def test_a_probe_of_several_labels_refuses_a_head_before_a_relu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlx.training.logistic.STRENGTHS", STRENGTHS[::22])
    with pytest.raises(RecipeError, match="as where a ReLU follows it, but several labels need logits below zero"):
        tlx.run(**FROZEN, model="squeezenet1_1", strategy="probe", backend="torch", out=str(tmp_path / "run"))
