"""Every recipe still gives the numbers that tlx 0.1.0 gave.

weights.json was made by tlx 0.1.0 at the commit before the folders became layers. Ten recipes, which between them use
every strategy, optimizer, schedule and kind of augmentation, were run by each backend in each precision. The file holds
a hash of the bits of the weights at the end, eight sums over them, the losses and the accuracy, and a digest of the
processor. The sums hold on every machine, within rounding; the bits are compared where the processor is of the same
kind, with as many cores, since others may round differently.

Where epochs had the same validation accuracy, 0.1.0 kept the first of them and later versions the one of the lowest
loss. There, and only there, the weights and the accuracy are those of the later version, for the history of 0.1.0.

The recipes are written to files as 0.1.0 wrote them, and so hold the names that fields had then.

A change that moves these numbers on purpose needs a new golden set, and an entry in CHANGELOG.md that says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import load_file

import tlx
from support.golden import GOLDEN, bits, same_processor, sketch
from tlx.backend import registry

# Relative, of each sum. Rounding differs between processors, and training amplifies it.
LIMITS = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 1e-1}
SLOWEST = "oneflow float32"  # of which one case is run, as in float64 the same code computes all of them


def marks(number: int, setting: str) -> list[pytest.MarkDecorator]:
    thorough = [pytest.mark.thorough] if setting == SLOWEST and number else []
    return [pytest.mark.needs(setting.split()[0]), *thorough]


CASES = [
    pytest.param(name, *setting.split(), marks=marks(number, setting), id=f"{name} {setting}")
    for number, (name, case) in enumerate(GOLDEN["cases"].items())
    for setting in case["weights"]
]


def recipe_of(name: str, backend: str, precision: str) -> dict[str, Any]:
    """The fields of a case. The loopback has tiny models of its own only."""
    model = {"model": "tiny-mlp-dropout"} if backend == "loopback" else {}
    fields = {"backend": backend, "precision": precision, "feature_cache": "run"}
    return {**GOLDEN["cases"][name]["recipe"], **fields, **model}


@pytest.mark.parametrize(("name", "backend", "precision"), CASES)
def test_weights_are_those_of_0_1_0(name: str, backend: str, precision: str, tmp_path: Path) -> None:
    if precision not in registry.load(backend).capabilities().precisions["cpu"]:
        pytest.skip(f"{backend} does not compute in {precision} on this processor")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps({"recipe_version": 1, **recipe_of(name, backend, precision)}), encoding="utf-8")
    result = tlx.run(recipe, out=str(tmp_path / "run"), quiet=True)
    arrays = load_file(result.run_dir / "model.safetensors")
    golden = GOLDEN["cases"][name]["weights"][f"{backend} {precision}"]
    assert sketch(arrays) == pytest.approx(golden["sketch"], rel=LIMITS[precision])
    history = [[epoch["train_loss"], epoch["val_loss"]] for epoch in result.history]
    if precision == "float64":
        losses, expected = (np.array(values, np.float64) for values in (history, golden["history"]))
        np.testing.assert_allclose(losses, expected, rtol=LIMITS[precision])  # NaN where there is no validation part
        assert result.test_accuracy == golden["test_accuracy"]
    if same_processor():
        assert bits(arrays) == golden["bits"]
        assert history == golden["history"]
        assert result.test_accuracy == golden["test_accuracy"]


def test_the_golden_set_holds_what_its_tests_say() -> None:
    recipes = [case["recipe"] for case in GOLDEN["cases"].values()]
    assert {recipe["strategy"] for recipe in recipes} == {
        *("scratch", "full", "diff_lr", "feature_extract", "partial", "head_then_full", "gradual", "layer_decay")
    }
    assert {recipe.get("optimizer", "sgd") for recipe in recipes} == {"sgd", "adam", "adamw", "rmsprop"}
    assert {setting for case in GOLDEN["cases"].values() for setting in case["weights"]} == {
        *("torch float32", "torch float64", "torch bfloat16", "oneflow float32", "oneflow float64", "loopback float64")
    }


@pytest.mark.parametrize("version", [{}, {"recipe_version": 1}])
def test_a_recipe_file_of_0_1_0_keeps_its_meaning(version: dict[str, int], tmp_path: Path) -> None:
    """Without a version too, as people write recipes by hand."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps({**version, **recipe_of("views", "loopback", "float64")}), encoding="utf-8")
    assert tlx.Recipe.from_toml(recipe).augment_repeats == 2
