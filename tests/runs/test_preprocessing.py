"""What a recipe says of pixels is what training, evaluation, prediction and the loaded model do, and the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import tlx
from support.finished_runs import FIELDS, accuracy
from support.run_files import change
from tlx.errors import RecipeError
from tlx.models.pixels import Pixels
from tlx.models.zoo import ARCHITECTURES
from tlx.recipe import Recipe, read_toml
from tlx.training.build import make_loader

OWN = Pixels(12, (0.5, 0.4, 0.3), (0.25, 0.5, 1.0), "bicubic", 0.75, "squash")
CHOICES: dict[str, dict[str, Any]] = {
    "as the model": {},
    "squashed, bicubic": {"aspect": "squash", "interpolation": "bicubic"},
    "letterbox, points": {"aspect": "letterbox", "antialias": False},
    "normalised otherwise": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 1.0), "crop_fraction": 0.6},
}


@pytest.fixture
def own_pixels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tiny model expects pixels of its own."""
    monkeypatch.setitem(ARCHITECTURES, "tiny-mlp", replace(ARCHITECTURES["tiny-mlp"], pixels=OWN))
    return iter(())


def card_of(run: tlx.Result) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((run.run_dir / "card.json").read_text())
    return card


def losses(run: tlx.Result) -> list[Any]:
    return [epoch["train_loss"] for epoch in run.history]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_is_used_again_as_it_was_evaluated(choice: str, photos: Path, tmp_path: Path) -> None:
    fields = {**FIELDS, "data": str(photos), "augment": "none", **CHOICES[choice]}
    run = tlx.run(**fields, out=str(tmp_path / "run"))
    saved = Recipe.from_toml(run.run_dir / "recipe.toml")
    expected: dict[str, Any] = {
        "aspect": "crop",
        "crop_fraction": 0.875,
        "interpolation": "bilinear",
        "antialias": True,
    }
    expected |= {"mean": Pixels().mean, "std": Pixels().std, **CHOICES[choice]}
    expected |= {"crop_fraction": 1.0} if expected["aspect"] != "crop" else {}
    assert {name: getattr(saved, name) for name in expected} == expected
    card = card_of(run)
    assert [card["pixels"][name] for name in ("aspect", "interpolation", "antialias")] == [
        expected[name] for name in ("aspect", "interpolation", "antialias")
    ]
    assert card["crop_fraction"] == expected["crop_fraction"]
    assert card["preprocess"] == {
        "size": 8,
        **{name: list(expected[name]) for name in ("mean", "std")},
        "interpolation": expected["interpolation"],
    }

    evaluation = tlx.evaluate(run.run_dir, quiet=True)
    assert evaluation["test_accuracy"] == evaluation["recorded_accuracy"]
    test = tlx.load_data(photos, val_fraction=0).test
    assert test is not None and accuracy(tlx.predict(run.run_dir, test), test.labels) == run.test_accuracy
    batch = next(make_loader(saved, test).epoch(0))
    preprocess = tlx.load_model(run.run_dir).preprocess
    for number, entering in enumerate(batch.preprocess.apply(batch.images)[:5]):
        assert np.array_equal(preprocess(test.pixels(number).transpose(2, 0, 1)[None])[0], entering)

    again = tlx.run(run.run_dir / "recipe.toml", out=str(tmp_path / "again"), quiet=True)
    assert losses(again) == losses(run) and card_of(again) == card


def test_each_choice_trains_another_model(photos: Path, tmp_path: Path) -> None:
    fields = {**FIELDS, "data": str(photos), "augment": "none", "epochs": 1}
    runs = [tlx.run(**{**fields, **CHOICES[choice]}, out=str(tmp_path / choice)) for choice in CHOICES]
    assert len({run.history[0]["train_loss"] for run in runs}) == len(CHOICES)


@pytest.mark.usefixtures("own_pixels")
def test_the_models_own_values_are_taken_and_saved(photos: Path, tmp_path: Path) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != "image_size"}
    run = tlx.run(**fields, data=str(photos), out=str(tmp_path / "photos"))
    assert run.recipe.image_size == 12
    assert {name: read_toml(run.run_dir / "recipe.toml")[name] for name in ("interpolation", "aspect")} == {
        "interpolation": "bicubic",
        "aspect": "squash",
    }
    assert card_of(run)["preprocess"] == {
        **{"size": 12, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 1.0], "interpolation": "bicubic"}
    }
    assert (card_of(run)["pixels"]["aspect"], card_of(run)["crop_fraction"]) == ("squash", 0.75)
    arrays = tlx.run(**fields, data="digits", limit_train=60, limit_test=20, out=str(tmp_path / "arrays"))
    assert (card_of(arrays)["pixels"]["aspect"], card_of(arrays)["crop_fraction"]) == ("squash", 1.0)


@pytest.mark.parametrize("data", ["photos", "digits"])
def test_what_an_earlier_tlx_wrote_keeps_its_meaning(
    data: str, photos: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """To that one every model's pixels were ImageNet's: its recipe is run, and its run resumed, as ever."""
    source = str(photos) if data == "photos" else data
    bounds: dict[str, Any] = {} if data == "photos" else {"limit_train": 60, "limit_test": 20}
    run = tlx.run(**{**FIELDS, "epochs": 2}, **bounds, data=source, out=str(tmp_path / "run"))
    request.getfixturevalue("own_pixels")
    since = ("mean", "std", "interpolation", "antialias", "aspect", "crop_fraction")

    def aged(text: str) -> str:
        values = {name: value for name, value in read_toml(Path(), text.encode()).items() if name not in since}
        return tomli_w.dumps({**values, "recipe_version": 2})

    shutil.copytree(run.run_dir, tmp_path / "earlier")
    change(tmp_path / "earlier", "recipe.toml", aged)
    recipe = tmp_path / "earlier" / "recipe.toml"
    again = tlx.run(recipe, out=str(tmp_path / "again"), quiet=True)
    longer = tlx.run(resume=tmp_path / "earlier", epochs=3, quiet=True)
    for other in (again, longer):
        assert losses(other)[:2] == losses(run)
        used = ("preprocess", "pixels", "crop_fraction")
        assert [card_of(other)[name] for name in used] == [card_of(run)[name] for name in used]
    (tmp_path / "new.toml").write_text(aged(recipe.read_text()).replace("recipe_version = 2\n", ""))
    assert losses(tlx.run(tmp_path / "new.toml", out=str(tmp_path / "new"), quiet=True)) != losses(run)


def test_parts_of_two_kinds_are_framed_each_in_its_own_way(tmp_path: Path) -> None:
    """Photos of many sizes to train on, arrays of one size for the test: the recipe cannot say one thing of both."""
    rng = np.random.default_rng(0)
    photos = [(rng.integers(0, 256, (9 + i % 3, 12, 3), dtype=np.uint8), i % 2) for i in range(24)]
    arrays = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8), np.arange(8) % 2
    run = tlx.run(**{**FIELDS, "epochs": 1}, data={"train": photos, "test": arrays}, out=str(tmp_path / "run"))
    assert (run.recipe.aspect, run.recipe.crop_fraction) == (None, None)
    assert (card_of(run)["pixels"]["aspect"], card_of(run)["crop_fraction"]) == ("squash", 1.0)


def test_a_size_below_what_the_model_takes_is_refused_by_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(ARCHITECTURES["tiny-mlp"], pixels=OWN, min_size=13)
    monkeypatch.setitem(ARCHITECTURES, "tiny-mlp", small)
    with pytest.raises(RecipeError, match="image_size is 12; tiny-mlp needs at least 13 pixels"):
        Recipe(model="tiny-mlp")
    assert Recipe(model="tiny-mlp", image_size=13).pixels.size == 13


def test_weights_of_a_run_that_saw_other_pixels_are_noted(photos: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {**FIELDS, "data": str(photos), "augment": "none"}
    unusual: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "interpolation": "bicubic"}
    first = tlx.run(**fields, **unusual, out=str(tmp_path / "first"))

    def differing(**options: Any) -> list[str]:
        again = tlx.run(**{**fields, "weights": str(first.run_dir), **options})
        return [note for note in again.notes if "another" in note]

    assert differing() == [
        "first was trained with another mean; to keep its: --mean 0.5,0.4,0.3",
        "first was trained with another interpolation; to keep its: --interpolation bicubic",
    ]
    assert differing(**unusual) == []
