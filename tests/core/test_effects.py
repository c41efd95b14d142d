"""A field that is set and changes nothing is refused, as a misspelt name is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import tlx
from tlx.errors import RecipeError
from tlx.recipe import Recipe, fields_affecting
from tlx.runs.job import recipe_to_run
from tlx.training.effects import idle_fields

pytestmark = pytest.mark.needs("loopback")

FIELDS: dict[str, Any] = {
    "backend": "loopback",
    "model": "tiny-mlp",
    "weights": "none",
    "data": "digits",
    "image_size": 8,
    "limit_train": 120,
    "epochs": 1,
    "quiet": True,
}
OWN = {
    "name": "mine",
    "groups": [{"name": "everything", "match": "all", "weight_decay": 0.0}],
    "phases": [{"name": "one", "lr": {"everything": 0.1}}],
}


def part(count: int = 60) -> tuple[Any, Any]:
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return images, np.arange(count) % 3


IN_PARTS = {"train": part(24), "val": part(9), "test": part(6)}
TRAIN_ALONE = {"train": part()}
WIDE = {"train": (np.repeat(part()[0], 2, axis=2), part()[1])}
ALONE = list(zip(*part(), strict=True))  # one part, of which validation and test are drawn

# Where a field has no effect, and what is then said; and the same field where it has one.
IDLE: dict[str, list[tuple[dict[str, Any], str, dict[str, Any]]]] = {
    "momentum": [
        ({"optimizer": "adam", "momentum": 0.5}, "optimizer adam has no momentum factor", {"optimizer": "rmsprop"}),
        ({"optimizer": "adamw", "momentum": 0.0}, "use optimizer sgd or rmsprop", {"optimizer": "sgd"}),
    ],
    "step_size": [
        ({"schedule": "constant", "step_size": 2}, "schedule constant has no drops", {"schedule": "plateau"}),
        ({"schedule": "cosine", "step_size": 2}, "use schedule step or plateau", {"schedule": "step"}),
    ],
    "gamma": [
        ({"schedule": "constant", "gamma": 0.5}, "schedule constant has no drops", {"schedule": "plateau"}),
        ({"schedule": "one_cycle", "gamma": 0.5}, "schedule one_cycle has no drops", {"schedule": "step"}),
    ],
    "shards": [({"shards": 2}, "exact is fast", {"strategy": "feature_extract", "exact": "bits"})],
    "augment_repeats": [({"augment": "none", "augment_repeats": 2}, "leaves nothing to repeat", {"augment": "flips"})],
    "mixup": [({"batch_size": 1, "mixup": 0.2}, "has no other to mix it with", {"batch_size": 16})],
    "cutmix": [({"batch_size": 1, "cutmix": 0.2}, "has no other to mix it with", {"batch_size": 16})],
    "data_root": [
        ({"data_root": "/data"}, "not read from a folder", {"data": "my_photos"}),
        ({"data": IN_PARTS, "data_root": "/data"}, "not read from a folder", {"data": "my_photos"}),
    ],
    "weight_decay": [({"strategy": OWN, "weight_decay": 0.1}, "'mine' has its own", {"strategy": "scratch"})],
    "decay_on": [({"weight_decay": 0.0, "decay_on": "weights"}, "weight_decay is 0", {"weight_decay": 0.1})],
    "val_fraction": [
        ({"data": IN_PARTS, "val_fraction": 0.2}, "has a val part of its own", {"data": ALONE}),
        ({"data": IN_PARTS, "val_fraction": 0.0}, "leave val_fraction out", {"data": ALONE}),
    ],
    "test_fraction": [
        ({"data": IN_PARTS, "test_fraction": 0.3}, "has a test part of its own", {"data": ALONE}),
        ({"data": TRAIN_ALONE, "test_fraction": 0.3}, "a train part alone", {"data": ALONE}),
    ],
    "limit_test": [({"data": TRAIN_ALONE, "limit_test": 5}, "has no test part", {"data": IN_PARTS})],
    "aspect": [
        ({"aspect": "letterbox"}, "the images are square", {"data": WIDE}),
        ({"aspect": "squash", "crop_fraction": 0.5}, "the images are square", {"data": WIDE}),
    ],
    "interpolation": [
        ({"interpolation": "bicubic"}, "the images have 8 x 8 pixels already", {"image_size": 12}),
        ({"interpolation": "bicubic"}, "use another image_size", {"augment": "crop"}),
        ({"interpolation": "bicubic"}, "leave interpolation out", {"crop_fraction": 0.5}),
    ],
    "antialias": [
        ({"antialias": False, "image_size": 12}, "no image is larger than 12 x 12 pixels", {"data": WIDE}),
        ({"antialias": False}, "use a smaller image_size", {"augment": "crop"}),
    ],
    "frozen_norm": [({"frozen_norm": "adapt"}, "no BatchNorm is ever frozen", {"strategy": "feature_extract"})],
}
# Where the recipe itself refuses it, or has nothing to refuse, and why.
OTHERS = {
    **dict.fromkeys(
        ("lr", "backbone_lr", "stages", "phase_epochs", "layer_decay", "neighbors", "rank", "alpha", "lora_targets"),
        "the strategy's own options",
    ),
    **dict.fromkeys(("patience", "schedule"), "refused where there is no validation part to watch"),
    **dict.fromkeys(("head", "weights", "warmup"), "checked when a recipe is made"),
    **dict.fromkeys(("limit_train", "micro_batch", "batch_size", "clip_norm"), "a bound, which need not be reached"),
    "class_weights": "the data decides whether there is anything to weigh, and a note says if there is not",
    "evaluate_test": "where there is no test part, there is none to leave unread",
    "on_bad_image": "says what would happen to an image that is bad",
    **dict.fromkeys(("strategy", "data", "classes", "model", "epochs", "image_size", "crop_fraction"), "always counts"),
    **dict.fromkeys(("mean", "std"), "always counts"),
    **dict.fromkeys(("path_column", "label_column"), "refused by data that has no columns"),
    "images_per_class": "a bound, which need not be reached",
    "label_separator": "refused by data that has no columns",
    "fixes": "the data say in a note what it changed, which may be nothing",
    **dict.fromkeys(("hidden", "dropout"), "always counts"),
    **dict.fromkeys(("augment", "label_smoothing", "sampler", "optimizer", "ema", "seed", "exact"), "always counts"),
}


def test_every_field_is_decided() -> None:
    by_result = {*fields_affecting("result"), "data_root"}
    assert by_result == {*IDLE, *OTHERS} and not {*IDLE} & {*OTHERS}


@pytest.mark.parametrize(
    ("name", "fields", "said", "other"),
    [(name, *case) for name, cases in IDLE.items() for case in cases],
)
def test_a_field_without_effect_is_refused(
    name: str, fields: dict[str, Any], said: str, other: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        tlx.run(**{**FIELDS, **fields, "out": str(tmp_path / "run")})
    assert str(error.value).startswith(f"{name} is ") and said in str(error.value)
    assert f"leave {name} out, or " in error.value.fix and not list(tmp_path.iterdir())
    recipe = Recipe(**{k: v for k, v in {**FIELDS, **fields, **other}.items() if k != "quiet"})
    data = None
    if name not in ("data_root", "frozen_norm"):
        data = tlx.load_data(recipe.data, val_fraction=recipe.val_fraction, test_fraction=recipe.test_fraction)
    assert name not in {idle.field for idle in idle_fields(recipe, data)}


def test_frozen_norm_counts_where_a_norm_is_frozen(tmp_path: Path) -> None:
    fields = {**FIELDS, "strategy": "feature_extract", "frozen_norm": "adapt"}
    assert tlx.run(**fields, out=str(tmp_path / "run")).epochs_run == 1


@pytest.mark.parametrize("fields", [{"optimizer": "adam"}, {"schedule": "cosine", "data": IN_PARTS}, {"data": ALONE}])
def test_the_recipe_that_a_run_wrote_runs_again(fields: dict[str, Any], tmp_path: Path) -> None:
    """It holds every value, so a default without effect is no mistake."""
    asked = {**FIELDS, **fields}
    first = tlx.run(**asked, out=str(tmp_path / "first"))
    objects = {"data": asked["data"]}
    again = tlx.run(first.run_dir / "recipe.toml", out=str(tmp_path / "again"), quiet=True, **objects)
    assert [e["train_loss"] for e in again.history] == [e["train_loss"] for e in first.history]


def test_a_file_of_0_1_0_may_hold_fields_without_effect(tmp_path: Path) -> None:
    """That version took them; a call that sets one now is refused all the same."""
    file = tmp_path / "recipe.toml"
    values = {name: value for name, value in FIELDS.items() if name != "quiet"}
    file.write_text(tomli_w.dumps({"recipe_version": 1, **values, "optimizer": "adam", "momentum": 0.5}))
    assert tlx.run(file, out=str(tmp_path / "run"), quiet=True).recipe.momentum == 0.9
    assert list(idle_fields(recipe_to_run(file, {}))) == []
    with pytest.raises(RecipeError, match=r"gamma is 0\.5, but schedule constant has no drops"):
        tlx.run(file, out=str(tmp_path / "other"), quiet=True, gamma=0.5)
