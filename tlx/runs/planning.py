"""What a recipe trains, at which rates, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.backend import Lora, ParamSpec, registry
from tlx.errors import RecipeError, TlxError, as_html, printable
from tlx.models.zoo import Architecture
from tlx.recipe import Recipe, RecipeFields, as_recipe, takes_fields
from tlx.strategy.built_in import named
from tlx.strategy.plan import Row
from tlx.strategy.schedule import Schedule
from tlx.training.build import build_model, resolve_placement

if TYPE_CHECKING:
    from typing_extensions import Unpack

CLASSES = 10  # outputs of the head where the recipe does not say: the data is not read


@dataclass(frozen=True, slots=True, repr=False)
class GroupTable:
    """The groups of parameters in each phase; prints as a table."""

    strategy: str
    model: str
    summary: str
    weights: str  # what the backbone starts from
    rows: tuple[Row, ...]
    problem: str = ""  # why the model cannot train so; beside other strategies, so that those are shown

    def __repr__(self) -> str:
        from tlx.console import Console
        from tlx.runs.display import group_table

        if self.problem:
            return f"{self.strategy}\n\n  {printable(self.problem)}"
        console = Console(width=100)
        with console.capture() as captured:
            console.print(group_table(self.strategy, self.rows))
        return f"{captured.get().rstrip()}\n{printable(f'{self.summary}; weights {self.weights}')}"

    def _repr_html_(self) -> str:
        names = ("phase", "from epoch", "group", "tensors", "parameters", "lr", "weight decay", "statistics")
        head = "".join(f"<th>{name}</th>" for name in names)
        body = ""
        for row in self.rows:
            rates = (row.state, "-") if row.lr is None else (f"{row.lr:g}", f"{row.weight_decay:g}")
            cells = (row.phase, row.epoch + 1, row.group, row.tensors, f"{row.parameters:,}", *rates, row.norm)
            body += "<tr>" + "".join(f"<td>{as_html(cell)}</td>" for cell in cells) + "</tr>"
        caption = as_html(f"{self.strategy} on {self.model}: {self.summary}; weights {self.weights}")
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a learning rate of None means that the group is frozen."""
        return {**asdict(self), "rows": [{**asdict(row), "epoch": row.epoch + 1} for row in self.rows]}


@takes_fields
def plan(
    recipe: Recipe | RecipeFields | Mapping[str, Any] | str | Path | None = None, **fields: Unpack[RecipeFields]
) -> GroupTable:
    """Return which groups of parameters a recipe trains in each phase, and at which rates, without reading any data.

    The head has as many outputs as the recipe names `classes`, otherwise 10.

    Args:
        recipe: a Recipe, its fields as a mapping, or the path of a TOML file. Default: the CIFAR-10 tutorial's job.
        **fields: recipe fields, which replace those of `recipe`. See `tlx.Recipe`.

    Raises:
        TlxError: the recipe is wrong, or the backend does not work here.
    """
    return tables([as_recipe(recipe, fields)])[0]


def tables(recipes: Sequence[Recipe]) -> list[GroupTable]:
    """Return the group table of each recipe; their backend and model are those of the first.

    Of several recipes, one whose adapters do not fit the model has a table without rows that says so.
    """
    backend = registry.load(recipes[0].backend)
    layouts: dict[Lora | None, tuple[Sequence[ParamSpec], Architecture] | TlxError] = {}
    for recipe in recipes:
        if recipe.lora not in layouts:
            placed = replace(resolve_placement(recipe.resolved(), backend), device="cpu", precision="float32")
            try:
                model, arch = build_model(placed, backend, len(recipe.classes or range(CLASSES)), tried=False)
            except RecipeError as error:
                if len(recipes) == 1 or recipe.lora is None:
                    raise
                layouts[recipe.lora] = error
            else:
                layouts[recipe.lora] = backend.param_specs(model), arch
    return [_table(recipe.resolved(), layouts[recipe.lora]) for recipe in recipes]


def _table(recipe: Recipe, layout: tuple[Sequence[ParamSpec], Architecture] | TlxError) -> GroupTable:
    if isinstance(layout, TlxError):
        return GroupTable(recipe.strategy_name, recipe.model_name, "", str(recipe.weights), (), str(layout))
    specs, arch = layout
    schedule = Schedule(recipe.schedule, recipe.epochs, 1)
    strategy = recipe.bound_strategy(arch)
    bound = strategy.bind(specs, arch, schedule, recipe.weight_decay, recipe.frozen_norm, recipe.decay_on)
    summary = named(recipe.strategy).summary if isinstance(recipe.strategy, str) else "a strategy of your own"
    return GroupTable(strategy.name, arch.name, summary, str(recipe.weights), tuple(bound.table()))
