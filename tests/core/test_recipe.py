"""A recipe is a value: checked when made, the same in Python and in TOML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tlx.errors import RecipeError
from tlx.models.pixels import IMAGENET, Pixels
from tlx.models.zoo import ARCHITECTURES
from tlx.recipe import Recipe
from tlx.strategy.plan import Group, Phase, Strategy

STRATEGY = Strategy(
    "mine",
    (Group("early", "backbone !stage:layer4"), Group("late", "stage:layer4 | head", weight_decay=0.0)),
    (Phase("one", {"late": 1e-3}), Phase("two", {"early": 1e-5, "late": 1e-4}, start=1)),
)


class Module:
    """What a recipe takes for a framework's module."""

    def named_parameters(self) -> list[Any]:
        return []


MODULE = Module()
CHANGED: list[dict[str, Any]] = [
    {},
    {"strategy": "diff_lr", "backbone_lr": 1e-5, "lr": 0.1, "classes": ("cat", "犬")},
    {"strategy": "scratch", "limit_train": 7, "val_fraction": 0.0, "frozen_norm": "adapt", "seed": 2**62},
    {"strategy": "partial", "stages": ("layer3", "layer4"), "ema": 0.99, "patience": 3, "clip_norm": 1.0},
    {"strategy": "head_then_full", "phase_epochs": 2, "schedule": "one_cycle", "optimizer": "adamw"},
    {"strategy": STRATEGY, "decay_on": "weights"},
    {"hidden": (512, 256), "dropout": 0.3},
    {"mean": (0.5, 0.25, 0.1), "std": (1.0, 0.5, 1 / 255), "interpolation": "bicubic", "antialias": False},
    {"aspect": "letterbox", "crop_fraction": 0.9, "image_size": 64},
    {"data": 'a "quoted" folder', "warmup": 0.5, "crop_fraction": 0.9, "precision": "float64", "workers": 0},
]


@pytest.mark.parametrize("fields", CHANGED)
@pytest.mark.parametrize("resolved", [False, True])
def test_toml_round_trip(fields: dict[str, Any], resolved: bool, tmp_path: Path) -> None:
    recipe = Recipe(**fields)
    recipe = recipe.resolved() if resolved else recipe
    (tmp_path / "r.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(tmp_path / "r.toml") == recipe
    assert Recipe.from_toml(tmp_path / "r.toml", {"epochs": 9}) == replace(recipe, epochs=9)


def test_the_defaults_are_the_tutorial() -> None:
    r = Recipe().resolved()
    assert (r.data, r.model, r.weights, r.image_size, r.augment) == ("cifar10", "resnet18", "imagenet", 224, "flips")
    assert (r.batch_size, r.epochs, r.optimizer, r.strategy) == (64, 3, "sgd", "full")
    assert (r.lr, r.momentum, r.weight_decay) == (0.001, 0.9, 5e-4)
    assert Recipe(strategy="scratch").resolved().weights == "none"
    assert Recipe(strategy="diff_lr").resolved().backbone_lr == 1e-4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": float("nan")}, "lr is nan; expected a finite number, at least 0"),
        ({"lr": "fast"}, "lr is 'fast'; expected a number"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": 1e39}, "lr is 1e+39; expected a number that float32 can hold"),
        (
            {
                "strategy": {
                    "name": "x",
                    "groups": [{"name": "g", "match": "all"}],
                    "phases": [{"name": "p", "lr": {"g": 1e39}}],
                }
            },
            "lr of 'g' is 1e+39; expected a finite number of float32",
        ),
        ({"hidden": [2**20, 2**20]}, "hidden has a layer of 1048576 times 1048576 numbers"),
        ({"seed": 2**63}, "seed is 9223372036854775808; expected a finite number, at least 0 and at most"),
        ({"limit_train": 2**63}, "at least 1 and at most 9223372036854775807"),
        ({"lr": 10**400}, "expected a finite number, at least 0"),
        ({"out": "a\0b"}, "holds a NUL character"),
        ({"classes": ["a", "\ud800"]}, "not UTF-8"),
        ({"strategy": {"name": 5, "groups": [], "phases": []}}, "Strategy: the name is 5; expected a text"),
        ({"epochs": 0}, "epochs is 0; expected a finite number, at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5; expected a whole number"),
        ({"epochs": True}, "epochs is True"),
        ({"epochs": None}, "epochs may not be None; its default is 3"),
        ({"image_size": -32}, "image_size is -32"),
        ({"image_size": 20, "model": "squeezenet1_0"}, "image_size is 20; squeezenet1_0 needs at least 21 pixels"),
        ({"mean": (123.675, 116.28, 103.53)}, "expected it on the scale from 0 to 1: 0.485,0.456,0.406"),
        (
            {"std": "58.395,57.12,57.375"},
            "expected it on the scale from 0 to 1: 0.229,0.224,0.225",
        ),
        ({"mean": (0.5, 0.5)}, "mean is (0.5, 0.5); expected three numbers, of red, green and blue, such as 0.485,0.4"),
        ({"mean": "0.5,0.5,"}, "mean is '0.5,0.5,'; expected three numbers"),
        ({"mean": 0.5}, "mean is 0.5; expected three numbers"),
        ({"mean": ("0.5", "0.5", "0.5")}, "expected three numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "each at least 0 and at most 1"),
        ({"mean": (0.5, 0.5, float("inf"))}, "each at least 0 and at most 1"),
        ({"mean": "-0.5,0.5,0.5"}, "each at least 0 and at most 1"),
        ({"std": (0.5, 0.0, 0.5)}, "std is (0.5, 0.0, 0.5); expected three numbers"),
        ({"std": (0.5, -0.5, 0.5)}, "each at least 0.001 and at most 1"),
        ({"std": (0.5, 0.5, 300.0)}, "each at least 0.001 and at most 1"),
        ({"interpolation": "bicubik"}, "Unknown interpolation 'bicubik'. Did you mean 'bicubic'?"),
        ({"aspect": "letter"}, "Unknown aspect 'letter'. Did you mean 'letterbox'?"),
        ({"antialias": 1}, "antialias is 1; expected true or false"),
        ({"antialias": "no"}, "antialias is 'no'; expected true or false"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"optimizer": "sdg"}, "Unknown optimizer 'sdg'. Did you mean 'sgd'?"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin'. Did you mean 'cosine'?"),
        ({"precision": "bf16"}, "Unknown precision 'bf16'."),
        ({"frozen_norm": "kept"}, "Unknown frozen_norm 'kept'. Did you mean 'keep'?"),
        ({"strategy": "fool"}, "Unknown strategy 'fool'. Did you mean 'full'?"),
        ({"model": "resnet19"}, "Unknown model 'resnet19'. Did you mean 'resnet18'"),
        ({"model": 18}, "model is 18; expected a name of `tlx models`, or a module"),
        ({"strategy": 3}, "strategy is 3; expected a name, a tlx.Strategy or a table"),
        ({"stages": []}, "stages is []; expected at least 1 names"),
        (
            {"strategy": "full", "stages": ["layer4"]},
            "has no stages, but it is ('layer4',); leave it out, or use one of: partial",
        ),
        ({"strategy": STRATEGY, "lr": 0.1}, "strategy 'mine' has no lr, but it is 0.1"),
        ({"strategy": {"name": "x"}}, "'groups' is missing"),
        ({"head": "classifier"}, "the head of resnet18 is 'fc': leave it out"),
        ({"head": {"classifier": MODULE}}, "head is 'classifier'; the head of resnet18 is 'fc': leave it out"),
        ({"head": 5}, "head is 5; expected a layer's path such as 'fc', a module, or {'fc': module}"),
        ({"head": {"a": MODULE, "b": MODULE}}, "expected a layer's path such as 'fc', a module"),
        ({"head": "<Sequential>"}, "head is '<Sequential>': it was a Python object; pass it again, as head="),
        ({"head": MODULE, "hidden": 8}, "head is a module of your own; leave hidden and dropout to it"),
        ({"model": MODULE, "head": MODULE}, "say which layer of your own model it replaces, as head={'fc': module}"),
        ({"hidden": 0}, "hidden is 0; expected one or more widths of at least 1, such as 256"),
        ({"hidden": "512,x"}, "hidden is '512,x'; expected one or more widths"),
        ({"hidden": (8, True)}, "expected one or more widths"),
        ({"hidden": 1.5}, "hidden is 1.5; expected one or more widths"),
        ({"hidden": ()}, "expected one or more widths"),
        ({"dropout": 1}, "dropout is 1; expected a finite number, at least 0 and at most 0.99"),
        ({"weights": "own"}, "the model is one of the zoo"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"patience": 0}, "patience is 0"),
        ({"clip_norm": 0}, "clip_norm is 0"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"sampler": "balance"}, "Unknown sampler 'balance'. Did you mean 'balanced'?"),
        ({"data": ""}, "data is ''"),
        ({"classes": ["cat", "cat"]}, "expected at least 2 names, all different"),
        ({"classes": 3}, "expected a list of names, such as ['cat', 'dog']"),
        (
            {"strategy": "full", "backbone_lr": 0.1},
            "strategy 'full' has no backbone_lr, but it is 0.1; leave it out, or use one of: diff_lr, partial",
        ),
        ({"strategy": "scratch", "weights": "imagenet"}, "starts from random weights"),
        ({"warmup": 3.0}, "warmup is 3.0 epochs, but the run has only 3"),
    ],
)
def test_each_mistake_has_its_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe(**fields)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_hidden_is_a_number_a_list_or_a_text() -> None:
    assert [Recipe(hidden=value).hidden for value in (256, [512, 256], "512,256")] == [(256,), (512, 256), (512, 256)]  # type: ignore[arg-type]


def test_three_numbers_are_a_list_or_a_text() -> None:
    values: list[Any] = ["0.5,0.25, 1", [0.5, 0.25, 1], (0.5, 0.25, 1.0)]
    assert {Recipe(mean=value).mean for value in values} == {(0.5, 0.25, 1.0)}


def test_the_models_pixels_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field overrules one of them; where a photo is to be taken whole, none of it is cropped."""
    own = Pixels(96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.95, "squash")
    monkeypatch.setitem(ARCHITECTURES, "resnet18", replace(ARCHITECTURES["resnet18"], pixels=own))
    recipe = Recipe().resolved()
    assert (recipe.image_size, recipe.mean, recipe.std, recipe.interpolation) == (96, own.mean, own.std, "bicubic")
    assert Recipe().pixels == recipe.pixels == own
    assert Recipe(model="resnet34").pixels == Recipe(model=MODULE, head="fc").pixels == IMAGENET
    assert Recipe(mean=(0.1, 0.2, 0.3)).pixels == replace(own, mean=(0.1, 0.2, 0.3))
    assert Recipe(image_size=32, interpolation="bilinear").pixels == replace(own, size=32, interpolation="bilinear")
    assert Recipe(aspect="crop").pixels == replace(own, aspect="crop")
    assert Recipe(aspect="letterbox").pixels == replace(own, aspect="letterbox", crop_fraction=1.0)
    assert Recipe(aspect="letterbox", crop_fraction=0.5).pixels.crop_fraction == 0.5
    assert Recipe(std=(1, 1, 1)).resolved(IMAGENET).pixels == replace(
        own, size=224, mean=IMAGENET.mean, std=(1.0, 1.0, 1.0), interpolation="bilinear"
    )


def test_a_head_that_is_a_module_is_saved_as_its_description() -> None:
    zoo, own = Recipe(head=MODULE), Recipe(model=MODULE, head={"fc": MODULE})
    assert (zoo.head_path, zoo.head_module) == (None, MODULE) and (own.head_path, own.head_module) == ("fc", MODULE)
    assert zoo.to_dict()["head"] == own.to_dict()["head"] == "<Module>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("strateg = 'full'", "unknown field 'strateg'. Did you mean 'strategy'"),
        ("recipe_version = 99", "recipe_version 99 is newer than this tlx reads (3); upgrade tlx"),
        ("epochs = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (None, "cannot read the recipe: No such file"),
    ],
)
def test_a_bad_recipe_file_is_one_line(text: str | bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeError) as error:
        Recipe.from_toml(path)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
