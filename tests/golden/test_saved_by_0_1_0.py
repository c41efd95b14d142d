"""What tlx 0.1.0 saved still opens: a finished run, and one that was stopped after its second epoch."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tlx
from support.golden import FOLDER, same_processor

pytestmark = pytest.mark.needs("loopback")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with tarfile.open(FOLDER / "saved-by-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_its_recipe_loads(saved: Path) -> None:
    recipe = tlx.Recipe.from_toml(saved / "finished" / "recipe.toml")
    assert (recipe.strategy, recipe.optimizer, recipe.augment_repeats) == ("head_then_full", "adam", 3)
    assert recipe == tlx.Recipe.from_toml(saved / "stopped" / "recipe.toml")


def test_its_finished_run_is_evaluated_as_it_was(saved: Path) -> None:
    evaluation = tlx.evaluate(saved / "finished", quiet=True)
    assert evaluation["images"] == 40
    assert evaluation["test_accuracy"] == evaluation["recorded_accuracy"] == 0.225


def test_its_finished_run_predicts(saved: Path) -> None:
    test = tlx.load_data("digits", limit_test=40).test
    assert test is not None
    images = np.stack([test.pixels(index) for index in range(len(test))])
    predictions = tlx.predict(saved / "finished", images)
    correct = [prediction["class"] == str(label) for prediction, label in zip(predictions, test.labels, strict=True)]
    assert sum(correct) == 9


def test_a_new_run_starts_from_its_weights(saved: Path, tmp_path: Path) -> None:
    result = tlx.run(
        backend="loopback",
        model="tiny-mlp-dropout",
        data="digits",
        image_size=8,
        limit_train=90,
        limit_test=40,
        val_fraction=0,
        augment="none",
        weights=str(saved / "finished"),
        strategy="feature_extract",
        epochs=1,
        out=str(tmp_path / "run"),
        quiet=True,
    )
    before, after = (load_file(run / "model.safetensors") for run in (saved / "finished", result.run_dir))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    head = json.loads((saved / "finished" / "card.json").read_text(encoding="utf-8"))["head"]
    assert changed == {name for name in before if name.startswith(f"{head}.")} != set(before)


def test_its_stopped_run_goes_on_as_the_finished_one(saved: Path) -> None:
    """It keeps another epoch: of the last two, which have one accuracy, 0.1.0 took the first; now the loss decides."""
    result = tlx.run(resume=saved / "stopped", quiet=True)
    lines = (saved / "finished" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    figures = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    epochs = [json.loads(line) for line in lines], json.loads(json.dumps(result.history))
    expected, history = ([[epoch[name] for name in figures] for epoch in run] for run in epochs)
    np.testing.assert_allclose(history, expected, rtol=1e-4, atol=1e-6)
    if same_processor():
        assert history == expected
    assert result.history[1]["val_accuracy"] == result.history[2]["val_accuracy"]
    assert (result.epochs_run, result.best_epoch) == (3, 3)
