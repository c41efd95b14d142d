"""Train and use: the commands that run many trainings to choose among them, or part of one to choose its rate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from tlx.cli.options import Fields, Json, RecipeFile, print_json
from tlx.errors import RecipeError, printable


def compare(
    recipe: RecipeFile = None,
    /,
    *,
    strategies: Annotated[str | None, Parameter(help="Names with commas between them, or all.")] = None,
    backends: Annotated[str | None, Parameter(help="Names with commas between them.")] = None,
    models: Annotated[str | None, Parameter(help="Names with commas between them.")] = None,
    seeds: Annotated[int, Parameter(help="How many seeds, from the recipe's own on.")] = 1,
    grid: Annotated[
        tuple[str, ...],
        Parameter(help="A field and the values to try, such as lr=1e-3,1e-4; may be repeated.", negative=""),
    ] = (),
    shots: Annotated[
        str | None, Parameter(help="Training images of each class, such as 1,5,10: draws the curve of the accuracy.")
    ] = None,
    by: Annotated[
        Literal["accuracy", "balanced_accuracy", "macro_f1", "average_precision"] | None,
        Parameter(help="What of the validation part chooses. Default: accuracy, or mAP with several labels."),
    ] = None,
    jobs: Annotated[int, Parameter(help="How many cells run at the same time, each with its share of the cores.")] = 1,
    on: Annotated[
        Literal["here", "slurm", "ray"], Parameter(help="Where the cells run: on a cluster as --jobs jobs.")
    ] = "here",
    slurm: Annotated[
        tuple[str, ...],
        Parameter(help="A parameter of the jobs on Slurm, such as partition=gpu; may be repeated.", negative=""),
    ] = (),
    ray: Annotated[
        tuple[str, ...],
        Parameter(help="What a cell gets of the Ray cluster, such as gpus=1; may be repeated.", negative=""),
    ] = (),
    dry_run: Annotated[
        bool, Parameter(help="Print the command of each cell, for any other engine to run.", negative="")
    ] = False,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    json: Json = False,
) -> int:
    """Train every combination, choose by validation, and read the test part once for what was chosen.

    Each cell is a run below --out. The same command goes on after a kill, and may be typed several times at once.
    """
    from tlx.comparison.compare import PAGE, drive
    from tlx.comparison.compare import dry_run as commands
    from tlx.comparison.jobs import split_parameters
    from tlx.comparison.plan import make_plan, read_grid
    from tlx.runs.job import recipe_to_run
    from tlx.streams import tell

    base = recipe_to_run(recipe, overrides or {})
    plan = make_plan(base, strategies, backends, models, seeds, read_grid(grid), shots)
    if dry_run:
        lines = commands(plan)
        if json:
            print_json({"folder": str(plan.folder), "commands": lines})
        else:
            print("\n".join(map(printable, lines)))
        return 0
    slurm_values, ray_values = split_parameters("slurm", slurm), split_parameters("ray", ray)
    comparison = drive(plan, jobs, by=by, on=on, slurm=slurm_values, ray=ray_values)
    if json:
        print_json(comparison.to_dict())
    else:
        print("\n".join([comparison.table(), *comparison.sentences()]))
    sys.stdout.flush()
    tell(f"page: {printable(str(comparison.folder / PAGE))}")
    return 1 if comparison.problems else 0


def advise(
    data: Annotated[str, Parameter(help="Whatever `tlx run --data` takes.")],
    /,
    *,
    budget: Annotated[
        str | None, Parameter(help="Time for the advice and the run together, such as 10m, 90s or 1.5h.")
    ] = None,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Recommend a strategy for a data set: the textbooks' rule, and what is measured of these data on this machine."""
    from tlx.comparison.advise import look
    from tlx.runs.display import print_table

    fields: dict[str, Any] = {**(overrides or {})}
    if "data" in fields:
        raise RecipeError("the data is given twice", fix="leave --data out")
    advice = look({**fields, "data": data}, budget)
    if json:
        print_json(advice.to_dict())
        return
    print_table(*advice.rows(), right=(2, 3, 4))
    print("\n".join([*advice.sentences(), *map(printable, filter(None, [advice.command]))]))


def find_lr(
    recipe: RecipeFile = None,
    /,
    *,
    picture: Annotated[Path | None, Parameter(help="Write the losses by their rates to this file, as SVG.")] = None,
    overrides: Annotated[Fields | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Try rising learning rates for up to 100 steps, and suggest one. Nothing is kept of what was trained."""
    from tlx.comparison.find_lr import search
    from tlx.runs.job import recipe_to_run

    outcome = search(recipe_to_run(recipe, overrides or {}), picture)
    if json:
        print_json(outcome.to_dict())
    else:
        lines = [*outcome.sentences(), *filter(None, [outcome.command])]
        print("\n".join(map(printable, lines)))
