"""Fields that a recipe sets though they change nothing: a mistake, as a misspelt name is one.

A value that equals the default is none, because a saved recipe holds them all. Nor is a bound that is not reached, such
as patience, limit_train or micro_batch, or what affects speed alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from tlx.backend.optimizers import RULES
from tlx.data import ArrayImages, Augment, Data
from tlx.data.sources.digits import DIGITS
from tlx.errors import RecipeError
from tlx.recipe import Recipe
from tlx.strategy.plan import Plan, Strategy
from tlx.training.build import frame

STEPPING = (  # what only a step reads, or an epoch
    *("optimizer", "momentum", "weight_decay", "decay_on", "clip_norm", "schedule", "step_size", "gamma", "warmup"),
    *("ema", "patience", "micro_batch", "mixup", "cutmix", "label_smoothing", "sampler", "augment_repeats"),
    *("frozen_norm", "exact"),
)


@dataclass(frozen=True, slots=True)
class Idle:
    """A field without effect: why, and what would give it one."""

    field: str
    why: str
    fix: str


NO_ROOT = Idle("data_root", "the data is not read from a folder", "name a data set or a path")


def check_effects(recipe: Recipe, data: Data | None = None, plan: Plan | None = None) -> None:
    """Raise RecipeError for the first field that is set and changes nothing, as far as what is given tells."""
    for idle in idle_fields(recipe, data, plan):
        value = getattr(recipe, idle.field)
        raise RecipeError(f"{idle.field} is {value!r}, but {idle.why}", fix=f"leave {idle.field} out, or {idle.fix}")


def without_idle_fields(recipe: Recipe, keep: Iterable[str] = ()) -> Recipe:
    """Return a recipe that does the same, but for fields to `keep`, and sets nothing that has no effect."""
    idle = {idle.field for idle in idle_fields(recipe)} - set(keep)
    defaults: dict[str, Any] = {f.name: f.default for f in fields(recipe) if f.name in idle}
    return replace(recipe, **defaults)


def idle_names(recipe: Recipe) -> dict[str, str]:
    """Return the fields that would have no effect whatever the recipe set them to, each with the reason."""
    return {idle.field: idle.why for idle in _in_recipe(recipe)}


def idle_fields(recipe: Recipe, data: Data | None = None, plan: Plan | None = None) -> Iterator[Idle]:
    """Yield each field that differs from its default and has no effect."""
    changed = {field.name for field in recipe.changed()}
    idle = [*_in_recipe(recipe)]
    idle += [] if data is None else _with_data(recipe, data)
    idle += [] if plan is None else _in_plan(plan)
    return (found for found in idle if found.field in changed)


def _in_recipe(recipe: Recipe) -> Iterator[Idle]:
    if recipe.fits:
        yield from _fitted(recipe)
    if "momentum" not in RULES[recipe.optimizer].scalars:
        able = " or ".join(name for name, rule in RULES.items() if "momentum" in rule.scalars)
        yield Idle("momentum", f"optimizer {recipe.optimizer} has no momentum factor", f"use optimizer {able}")
    if recipe.schedule not in ("step", "plateau"):
        for name in ("step_size", "gamma"):
            yield Idle(name, f"schedule {recipe.schedule} has no drops", "use schedule step or plateau")
    if not Augment.parse(recipe.augment).ops:
        yield Idle("augment_repeats", "augment is none, which leaves nothing to repeat", "choose an augment")
    if recipe.batch_size == 1:
        for name in ("mixup", "cutmix"):
            yield Idle(name, "a batch of one image has no other to mix it with", "raise batch_size")
    if recipe.data == DIGITS.name:
        yield NO_ROOT
    own = isinstance(recipe.strategy, Strategy)
    decays = [group.weight_decay for group in recipe.strategy.groups] if isinstance(recipe.strategy, Strategy) else []
    if own and None not in decays:
        yield Idle("weight_decay", f"each group of strategy {recipe.strategy_name!r} has its own", "drop theirs")
    if recipe.exact == "fast":
        yield Idle("shards", "exact is fast, which divides a batch by processes alone", "use exact bits")
    if not recipe.weight_decay and not any(decays):
        yield Idle("decay_on", "weight_decay is 0", "raise weight_decay")


def _fitted(recipe: Recipe) -> Iterator[Idle]:
    """The fields that only steps read, where none is taken."""
    why, fix = f"strategy {recipe.strategy_name} takes no steps", "use strategy feature_extract"
    yield from (Idle(name, why, fix) for name in STEPPING)
    if recipe.epochs != 1:
        yield Idle("epochs", why, fix)
    if recipe.augment != "none":
        yield Idle("augment", f"strategy {recipe.strategy_name} sees one centred view of each image", fix)
    for name in ("hidden", "dropout"):
        yield Idle(name, f"strategy {recipe.strategy_name} has a head of one linear layer", fix)
    if recipe.fits == "knn":
        yield Idle("class_weights", "strategy knn has no loss to weigh", "use strategy probe")


def _with_data(recipe: Recipe, data: Data) -> Iterator[Idle]:
    if not isinstance(recipe.data, str) and all(isinstance(part, ArrayImages) for part in data.parts.values()):
        yield NO_ROOT  # the items of a sequence may name paths below it
    for part, name in (("val", "val_fraction"), ("test", "test_fraction")):
        if part not in data.drawn:
            there = part in data.parts
            if there or getattr(recipe, name):
                why = f"{data.name} has a {part} part of its own" if there else f"{data.name} has a train part alone"
                yield Idle(name, why, "pass one part alone, of which parts are drawn")
    yield from _of_pixels(recipe, data)
    if data.test is None:
        yield Idle("limit_test", f"{data.name} has no test part", "give the data one")


def _of_pixels(recipe: Recipe, data: Data) -> Iterator[Idle]:
    """Where all images have one size. A value that is chosen anyway is none, because a saved recipe holds it."""
    sizes = {part.size if isinstance(part, ArrayImages) else None for part in data.parts.values()}
    sides = [side for size in sizes for side in size or ()]
    if not sides or None in sizes:
        return
    square, cropped = all(len({*size}) == 1 for size in sizes if size), Augment.parse(recipe.augment).crops
    chosen = frame(replace(recipe, aspect=None), data.train)[1]
    if square and recipe.aspect != chosen:
        yield Idle("aspect", "the images are square", "use other data")
    size, own = recipe.pixels.size, replace(recipe, interpolation=None).pixels.interpolation
    if cropped:
        return
    if {*sides} == {size} and recipe.crop_fraction in (None, 1.0) and recipe.interpolation not in (own, "bilinear"):
        yield Idle("interpolation", f"the images have {size} x {size} pixels already", "use another image_size")
    if max(sides) <= size:
        yield Idle("antialias", f"no image is larger than {size} x {size} pixels", "use a smaller image_size")


def _in_plan(plan: Plan) -> Iterator[Idle]:
    keeps = replace(plan, frozen_norm="keep")
    steps = [phase.start * plan.schedule.steps_per_epoch for phase in plan.strategy.phases]
    if all(plan.state_at(step).batch_norm == keeps.state_at(step).batch_norm for step in steps):
        yield Idle("frozen_norm", "no BatchNorm is ever frozen", "choose a strategy that freezes one")
