"""Which cells a comparison has, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tlx.cli import app
from tlx.comparison.commands import run_arguments
from tlx.comparison.plan import make_plan, read_grid
from tlx.errors import RecipeError
from tlx.recipe import Recipe
from tlx.strategy import Group, Phase, Strategy

BASE = Recipe(backend="loopback", model="tiny-mlp", weights="none", data="digits", image_size=8, seed=5, out="here")


def test_the_cells_are_all_combinations_with_the_recipes_seed_first() -> None:
    plan = make_plan(BASE, "full,diff_lr", seeds=2, grid={"lr": [0.1, 0.2], "optimizer": ["sgd", "adam"]})
    assert len(plan.candidates) == 8 and len(plan.cells) == 16
    assert [cell.recipe.seed for cell in plan.candidates[0].cells] == [5, 6]
    assert not any(cell.recipe.evaluate_test for cell in plan.cells)
    assert len({cell.run_dir for cell in plan.cells}) == 16 and {cell.run_dir.parent for cell in plan.cells} == {
        Path("here")
    }


def test_what_a_strategy_does_not_have_is_left_out_there_and_equal_cells_collapse() -> None:
    changed = {"weights": None, "momentum": 0.5, "strategy": "diff_lr", "backbone_lr": 0.3}
    base = Recipe(**{**BASE.to_dict(), **changed})
    plan = make_plan(base, "probe,full,diff_lr,scratch", grid={"lr": [0.1, 0.2]})
    by = {(c.arm.strategy, dict(c.grid).get("lr")): c.cells[0].recipe for c in plan.candidates}
    assert list(by) == [("probe", None), *((s, lr) for s in ("full", "diff_lr", "scratch") for lr in (0.1, 0.2))]
    assert (by["probe", None].momentum, by["full", 0.1].momentum) == (0.9, 0.5)
    assert (by["full", 0.1].backbone_lr, by["diff_lr", 0.1].backbone_lr) == (None, 0.3)
    assert plan.notes == ("1 of 8 cells are the same as others, and run once",)
    twice = make_plan(BASE, "full,full", grid={"lr": [0.1, 0.1, 0.2]})
    assert len(twice.cells) == 2


def test_all_strategies_and_models_and_backends_are_taken() -> None:
    from tlx.strategy import STRATEGIES

    plan = make_plan(Recipe(data="digits"), "all", "torch,oneflow", "resnet18,vit_b_16")
    assert len(plan.cells) == 4 * len(STRATEGIES)
    assert {cell.recipe.weights for cell in plan.cells} == {None}


def test_a_cells_folder_says_what_it_is_and_follows_from_its_recipe_alone() -> None:
    one, more = make_plan(BASE, seeds=2), make_plan(BASE, "full,scratch", seeds=3, grid={"epochs": [3, 4]})
    assert {cell.name for cell in one.cells} <= {cell.name.replace("-epochs=3", "") for cell in more.cells}
    assert one.cells[0].name.startswith("full-tiny-mlp-loopback-seed5-")
    other = make_plan(Recipe(**{**BASE.to_dict(), "batch_size": 3}), seeds=2)
    assert not {cell.name for cell in one.cells} & {cell.name for cell in other.cells}
    without = Recipe(**{**BASE.to_dict(), "out": None})
    assert make_plan(without, seeds=2).folder == make_plan(without, "full,diff_lr").folder
    assert make_plan(without, seeds=2).folder.parent == Path("runs")


def test_a_hostile_name_stays_within_the_folder(tmp_path: Path) -> None:
    plan = make_plan(BASE, seeds=2, grid={"weights": ["../../x\u202e\n", "none"]})
    assert all(cell.run_dir.parent == Path("here") and cell.name.isascii() for cell in plan.cells)
    assert all(len(cell.name) < 200 and "\n" not in cell.name for cell in plan.cells)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"grid": {"backbone_lr": [0.1, 0.2]}}, r"backbone_lr has no effect: strategy full has none\. Known: .*lr"),
    ({"grid": {"step_size": [1, 2]}}, r"step_size has no effect: schedule constant has no drops\. Did you mean"),
    ({"strategies": "probe,knn", "grid": {"momentum": [0.1]}}, r"momentum has no effect in any .* takes no steps"),
    ({"grid": {"optimizer": ["adam"], "momentum": [0.1, 0.2]}}, "the other fields of the grid leave it none"),
    ({"grid": {"optimizer": ["sdg"]}}, "grid: Unknown optimizer 'sdg'. Did you mean 'sgd'"),
    ({"grid": {"learning_rat": [1]}}, "unknown field 'learning_rat'"),
    ({"grid": {"lr": [0.1, "x"]}}, "grid: lr is 'x'; expected a number"),
    ({"grid": {"lr": "0.1"}}, "grid: lr is '0.1'; expected a list"),
    ({"grid": {"lr": []}}, "expected a list of values"),
    ({"grid": {"seed": [1, 2]}}, "seed is no field of the grid. Fix: say it with seeds"),
    ({"grid": {"workers": [1, 2]}}, "workers has no effect on what is compared"),
    ({"grid": {"out": ["a"]}}, "out has no effect on what is compared"),
    ({"grid": {"evaluate_test": [True]}}, "evaluate_test has no effect"),
    ({"grid": {"epochs": [1, 0]}}, "grid: epochs is 0; expected a finite number, at least 1"),
    ({"strategies": "ful"}, "Unknown strategy 'ful'. Did you mean 'full'"),
    ({"strategies": "full,,"}, "strategies is 'full,,'"),
    ({"models": "resnet81"}, "model=resnet81.*resnet18"),
    ({"backends": "troch"}, "Unknown backend 'troch'. Did you mean 'torch'"),
    ({"seeds": 0}, "seeds is 0"),
    ({}, "there is one cell, and nothing to compare"),
    ({"seeds": 10**6}, "more than 100,000 cells"),
]


@pytest.mark.parametrize(("asked", "said"), REFUSED)
def test_a_mistake_is_one_line_before_anything_runs(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        make_plan(BASE, **asked)
    assert "\n" not in str(error.value)


def test_a_field_of_the_recipe_that_no_cell_has_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"momentum is 0\.5, but strategy probe takes no steps"):
        make_plan(Recipe(**{**BASE.to_dict(), "momentum": 0.5}), "probe,knn")


def test_texts_become_grids() -> None:
    grid = read_grid(["lr=1e-3, 1e-4", "batch-size=8,16", "stages=layer4|layer3,layer4", "antialias=true,false"])
    assert grid["lr"] == [1e-3, 1e-4] and grid["batch_size"] == [8, 16]
    assert grid["stages"] == ["layer4", "layer3,layer4"] and grid["antialias"] == [True, False]
    assert read_grid(["clip_norm=none,1"]) == {"clip_norm": [None, 1.0]}
    for text in ("lr", "lr=", "=1"):
        with pytest.raises(RecipeError):
            read_grid([text])
    with pytest.raises(RecipeError, match="lr is given twice"):
        read_grid(["lr=1", "lr=2"])


def parsed(arguments: list[str]) -> Recipe:
    """The recipe that the command line makes of some arguments."""
    command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert command.__name__ == "run"
    file = bound.args[0] if bound.args else None
    values = bound.kwargs.get("overrides") or {}
    return Recipe.from_toml(file, values) if file else Recipe(**values)


def test_the_command_of_a_cell_gives_its_recipe(tmp_path: Path) -> None:
    base = Recipe(data="digits", classes=("1", "-2"), antialias=False, mean=(0.1, 0.2, 0.3), hidden=(8, 4), seed=3)
    plan = make_plan(base, "partial,layer_decay", grid={"stages": [["layer3", "layer4"]], "lr": [1e-3, 1.5e-7]})
    for cell in plan.cells:
        arguments, needs_file = run_arguments(cell.recipe, cell.run_dir, tmp_path / "x.toml")
        assert not needs_file and parsed(arguments) == cell.recipe


def test_a_strategy_of_ones_own_goes_through_a_file(tmp_path: Path) -> None:
    own = Strategy("mine", (Group("all", "all"),), (Phase("train", {"all": 0.1}),))
    plan = make_plan(BASE, ["full", own])
    arguments, needs_file = run_arguments(plan.cells[1].recipe, plan.cells[1].run_dir, tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text(plan.cells[1].recipe.to_toml())
    assert needs_file and parsed(arguments) == plan.cells[1].recipe


def test_two_modules_of_one_class_are_refused_as_nothing_tells_their_runs_apart() -> None:
    class Net:
        def named_parameters(self) -> tuple[()]:
            return ()

    class Other(Net):
        pass

    base = Recipe(**{**BASE.to_dict(), "model": Net(), "weights": "own", "head": "fc"})
    with pytest.raises(RecipeError, match="two are a Net of your own"):
        make_plan(base, models=[Net(), Net()])
    plan = make_plan(base, models=[Net(), Other()])
    assert [cell.arm.model for cell in plan.cells] == ["Net", "Other"] and plan.cells[0].name != plan.cells[1].name
