"""What is compared: each cell is a recipe and the folder of its run; a candidate's cells differ in the seed alone."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from tlx.backend import registry
from tlx.comparison.commands import holds_objects, printed
from tlx.errors import RecipeError, closest, shown
from tlx.recipe import Recipe, current_names, fields_affecting
from tlx.strategy.built_in import STRATEGIES, named
from tlx.training.effects import check_effects, idle_names

AXES = {
    "strategy": "strategies",
    "backend": "backends",
    "model": "models",
    "seed": "seeds",
    "images_per_class": "shots",
}
PLACES = ("out", "data_root", "max_pixels")  # no cell differs from another in these
LONGEST = 120  # characters of a folder's name before its digest
LARGEST = 100_000  # cells

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Arm:
    """What competes with others, each with the values of the grid that suit it best."""

    strategy: str
    model: str
    backend: str
    shots: int | None = None  # training images of each class; None: all


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One run: its recipe, which names its folder too."""

    recipe: Recipe
    arm: Arm
    grid: tuple[tuple[str, Any], ...]  # the fields of the grid that have an effect in this arm
    name: str  # of its folder

    @property
    def run_dir(self) -> Path:
        """The folder of its run."""
        assert self.recipe.out is not None
        return Path(self.recipe.out)

    @property
    def label(self) -> str:
        """What tells it from other cells."""
        values = [f"{name}={printed(value)}" for name, value in self.grid]
        return " ".join([*dict.fromkeys(vars_of(self.arm)), *values, f"seed={self.recipe.seed}"])


def vars_of(arm: Arm) -> tuple[str, ...]:
    """Return the names of an arm, and its number of shots where it has one."""
    return (arm.strategy, arm.model, arm.backend, *([f"shots={arm.shots}"] if arm.shots is not None else []))


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The cells of one choice of everything but the seed."""

    arm: Arm
    grid: tuple[tuple[str, Any], ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All that is compared, in the order of the arguments; `folder` holds a folder for each cell."""

    folder: Path
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def cells(self) -> list[Cell]:
        """Every cell."""
        return [cell for candidate in self.candidates for cell in candidate.cells]


def strategy_options() -> set[str]:
    """Return the fields that only some strategies have."""
    return {name for strategy in STRATEGIES.values() for name in strategy.customary}


def make_plan(
    base: Recipe,
    strategies: Sequence[Any] | str | None = None,
    backends: Sequence[str] | str | None = None,
    models: Sequence[Any] | str | None = None,
    seeds: int = 1,
    grid: Grid | None = None,
    shots: Sequence[int] | str | None = None,
) -> Plan:
    """Return the cells of a comparison.

    Raises:
        RecipeError: a name is unknown, a value is wrong, or a field of the grid changes nothing.
    """
    if type(seeds) is not int or seeds < 1:
        raise RecipeError(f"seeds is {shown(seeds)}; expected how many there are, a whole number from 1 on")
    axes = _axes(base, strategies, backends, models)
    values, draws = check_grid(grid or {}), [base.images_per_class] if shots is None else _shots(shots)
    candidates: dict[str, Candidate] = {}
    asked, folder = 0, Path(base.out) if base.out else None
    if folder is None and holds_objects(base):
        raise RecipeError("data, model or head is a Python object", fix="say where the runs go, as out='comparison'")
    shared = {name: value for name, value in _facts(base).items() if name not in {*AXES, *strategy_options()}}
    folder = folder or Path("runs") / f"compare-{_stem(base)}-{_digest(shared)}"
    effective: set[str] = set()
    for strategy, model, backend, number in product(*axes, draws):
        arm = {"strategy": strategy, "model": model, "backend": backend, "images_per_class": number}
        for point in product(*values.values()):
            asked += seeds
            if asked > LARGEST:
                raise RecipeError(f"there are more than {LARGEST:,} cells", fix="compare less at once")
            point_values = dict(zip(values, point, strict=True))
            try:
                recipe, set_here = _recipe(base, arm, point_values)
            except RecipeError as error:
                problem = f"{_where(arm, point_values)}: {error.problem}"
                raise RecipeError(problem, fix=error.fix) from None
            effective |= set_here
            candidate = _candidate(recipe, set_here, values, seeds, folder)
            candidates.setdefault(candidate.cells[0].name, candidate)
    idle = [name for name in values if name not in effective]
    if idle:
        raise _no_effect(base, axes, idle[0])
    if len({cell.name for candidate in candidates.values() for cell in candidate.cells}) == 1:
        raise RecipeError(
            "there is one cell, and nothing to compare", fix="name strategies, models, seeds, shots or a grid"
        )
    _check_base(base, list(candidates.values()))
    collapsed = asked - sum(len(candidate.cells) for candidate in candidates.values())
    notes = (f"{collapsed} of {asked} cells are the same as others, and run once",) if collapsed else ()
    return Plan(folder, tuple(candidates.values()), notes)


def check_grid(grid: Grid) -> dict[str, tuple[Any, ...]]:
    """Return the values of a grid's fields, each in the type of its field; raises RecipeError where one is wrong."""
    values: dict[str, tuple[Any, ...]] = {}
    for name, entries in current_names(grid, "grid").items():
        if name in AXES:
            raise RecipeError(f"grid: {name} is no field of the grid", fix=f"say it with {AXES[name]}")
        if name not in _comparable():
            why = "is one for all cells" if name in ("data", "head") else "has no effect on what is compared"
            raise RecipeError(f"grid: {name} {why}.{_near(name, _comparable())}")
        if isinstance(entries, (str, bytes)) or not isinstance(entries, Sequence) or not entries:
            raise RecipeError(f"grid: {name} is {shown(entries)}; expected a list of values")
        values[name] = tuple(dict.fromkeys(_checked(name, entry) for entry in entries))
    return values


def _checked(name: str, value: Any) -> Any:
    field = Recipe.__dataclass_fields__[name]
    try:
        return None if value is None and field.default is None else field.metadata["check"](name, value)
    except RecipeError as error:
        raise RecipeError(f"grid: {error.problem}", fix=error.fix) from None


def read_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read texts such as ``lr=1e-3,1e-4``. Where values hold commas themselves, ``|`` stands between them."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, entries = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not entries.strip():
            raise RecipeError(f"grid is {shown(text)}; expected a field and its values, such as lr=1e-3,1e-4")
        (known,) = current_names({name: None}, "grid")
        if known in grid:
            raise RecipeError(f"grid: {known} is given twice", fix=f"write all its values together: {known}=A,B")
        kind = Recipe.__dataclass_fields__[known].metadata["option"]
        separator = "|" if "|" in entries else ","
        grid[known] = [_value(entry.strip(), kind, known) for entry in entries.split(separator)]
    return grid


def _value(text: str, kind: Any, name: str) -> Any:
    if text == "none" and Recipe.__dataclass_fields__[name].default is None:
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text  # the field's own check says what it expects


def _axes(base: Recipe, strategies: Any, backends: Any, models: Any) -> tuple[list[Any], list[Any], list[str]]:
    chosen: list[Any] = [base.strategy] if strategies is None else _listed("strategies", strategies)
    if chosen == ["all"]:
        chosen = list(STRATEGIES)
    chosen = [named(entry).name if isinstance(entry, str) else entry for entry in chosen]
    networks = [base.model] if models is None else _listed("models", models)
    own = [type(entry).__name__ for entry in networks if not isinstance(entry, str)]
    if twins := [name for name in own if own.count(name) > 1]:
        problem = f"models: two are a {twins[0]} of your own, and nothing tells their runs apart"
        raise RecipeError(problem, fix="give their classes different names")
    places = [base.backend] if backends is None else _listed("backends", backends)
    known = registry.available() if backends is not None else []
    for name in places if backends is not None else ():
        if name not in [entry.name for entry in known]:
            visible = [entry.name for entry in known if not entry.hidden]
            raise RecipeError(f"Unknown backend {shown(name)}.{closest(str(name), visible)}")
    return chosen, networks, places


def _listed(name: str, values: Any) -> list[Any]:
    entries = [part.strip() for part in values.split(",")] if isinstance(values, str) else list(values)
    if not entries or "" in [entry for entry in entries if isinstance(entry, str)]:
        raise RecipeError(f"{name} is {shown(values)}; expected names with commas between them")
    unique: list[Any] = []
    for entry in entries:
        unique += [] if any(entry is other or entry == other for other in unique) else [entry]
    return unique


def _shots(values: Sequence[int] | str) -> list[int | None]:
    if not isinstance(values, Sequence):
        raise RecipeError(f"shots is {shown(values)}; expected numbers of images of a class", fix="write [1, 5, 10]")
    entries: list[Any] = _listed("shots", values)
    numbers = [int(entry) if isinstance(entry, str) and entry.isdecimal() else entry for entry in entries]
    for number in numbers:
        if type(number) is not int or number < 1:
            raise RecipeError(f"shots: {shown(number)} is no number of images of a class", fix="write such as 1,5,10")
    return sorted({*numbers})


def _recipe(base: Recipe, arm: Mapping[str, Any], point: Mapping[str, Any]) -> tuple[Recipe, set[str]]:
    """Return the recipe of a candidate, without seed and folder, and the fields of the grid that count in it."""
    recipe, idle = recipe_with(base, {**arm, "evaluate_test": False}, point)
    return recipe, {name for name in point if name not in idle}


def recipe_with(
    base: Recipe, arm: Mapping[str, Any], point: Mapping[str, Any] | None = None
) -> tuple[Recipe, set[str]]:
    """Return a recipe with another strategy and other fields, without a folder, and the fields that are idle in it.

    What only other strategies have, or what changes nothing there, is left out.
    """
    values = {field.name: getattr(base, field.name) for field in base.changed()}
    values = {**values, **arm}
    own = arm["strategy"]
    customary = named(own).customary if isinstance(own, str) else {}
    if own == "scratch":
        values.pop("weights", None)
    foreign = strategy_options() - customary.keys()
    given = {**values, **(point or {})}
    plain = Recipe(**{name: value for name, value in given.items() if name not in foreign})
    idle = {*foreign, *idle_names(plain)}
    defaults: dict[str, Any] = {name: Recipe.__dataclass_fields__[name].default for name in idle}
    return replace(plain, **defaults, out=None), idle


def _candidate(recipe: Recipe, set_here: set[str], values: Grid, seeds: int, folder: Path) -> Candidate:
    arm = Arm(recipe.strategy_name, recipe.model_name, recipe.backend, recipe.images_per_class)
    grid = tuple((name, getattr(recipe, name)) for name in values if name in set_here)
    digest_of, cells = _facts(recipe), []
    stem = "-".join([*vars_of(arm), *(f"{name}={printed(value)}" for name, value in grid)])
    for seed in range(recipe.seed, recipe.seed + seeds):
        named_facts = {**digest_of, "seed": seed}
        name = f"{re.sub('[^A-Za-z0-9._=+-]', '_', stem)[:LONGEST].lstrip('.-')}-seed{seed}-{_digest(named_facts)}"
        cells.append(Cell(replace(recipe, seed=seed, out=str(folder / name)), arm, grid, name))
    return Candidate(arm, grid, tuple(cells))


def _facts(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says that decides its result, but for what it leaves at the default."""
    changed, plain = {field.name for field in recipe.changed()}, recipe.to_dict()
    places = {*PLACES, *fields_affecting("speed"), "evaluate_test", "seed"}
    return {name: value for name, value in plain.items() if name in changed and name not in places}


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _stem(base: Recipe) -> str:
    return re.sub("[^A-Za-z0-9._-]", "_", Path(str(base.data)).name)[:40].lstrip(".-") or "data"


def _where(arm: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    values = {**arm, **point}
    return " ".join(
        f"{name}={printed(value)}" for name, value in values.items() if name != "backend" and value is not None
    )


def _no_effect(base: Recipe, axes: tuple[list[Any], list[Any], list[str]], name: str) -> RecipeError:
    """Say why a field of the grid changes nothing in any cell, and which field near it would."""
    strategy = axes[0][0]
    recipe, _ = _recipe(base, {"strategy": strategy, "model": axes[1][0], "backend": axes[2][0]}, {})
    customary = named(strategy).customary if isinstance(strategy, str) else {}
    none = f"strategy {recipe.strategy_name} has none"
    idle = {**dict.fromkeys(strategy_options() - customary.keys(), none), **idle_names(recipe)}
    able = [field for field in _comparable() if field not in idle]
    more = " in any of the strategies" if len(axes[0]) > 1 else ""
    why = idle.get(name, "the other fields of the grid leave it none")
    return RecipeError(f"grid: {name} has no effect{more}: {why}.{_near(name, able)}")


def _comparable() -> list[str]:
    apart = {*AXES, *PLACES, "evaluate_test", "data", "head"}
    return [field for field in fields_affecting("result", "place") if field not in apart]


def _near(name: str, able: Sequence[str]) -> str:
    """Name the fields that are spelt like this one, or those that say something of the same."""
    group = Recipe.__dataclass_fields__[name].metadata["group"]
    if near := difflib.get_close_matches(name, able, n=3, cutoff=0.6):
        return closest(name, near)
    return closest(name, [field for field in able if Recipe.__dataclass_fields__[field].metadata["group"] == group])


def _check_base(base: Recipe, candidates: Sequence[Candidate]) -> None:
    """Raise RecipeError for a field of the recipe that changes nothing in any cell."""
    changed = {field.name for field in base.changed()} - {*AXES, "out", "evaluate_test"}
    recipes = [candidate.cells[0].recipe for candidate in candidates]
    for name in changed:
        default = Recipe.__dataclass_fields__[name].default
        if all(type(getattr(r, name)) is type(default) and getattr(r, name) == default for r in recipes):
            value = getattr(base, name)
            check_effects(recipes[0] if name in strategy_options() else replace(recipes[0], **{name: value}))
            raise RecipeError(f"{name} is {shown(value)}, but no strategy here has it", fix="leave it out")


def recipe_file(folder: Path, cell: Cell) -> Path:
    """Return where a cell's recipe lies if no options can say it."""
    return folder / ".compare" / f"{cell.name}.toml"
