"""A recipe as the command that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlx.recipe import Recipe
from tlx.strategy.plan import Strategy


def options(recipe: Recipe) -> list[str] | None:
    """Return the options of `tlx run` that give a recipe; None where it holds what no option can say."""
    words: list[str] = []
    for field in recipe.changed():
        value, name = getattr(recipe, field.name), "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(name if value else f"--no-{name[2:]}")
            continue
        if isinstance(value, tuple):
            if any("," in str(part) or str(part) != str(part).strip() for part in value):
                return None
            value = ",".join(map(str, value))
        if isinstance(value, Strategy) or not isinstance(value, (str, int, float)):
            return None
        text = str(value)
        words += [f"{name}={text}"] if text.startswith("-") else [name, text]
    return words


def holds_objects(recipe: Recipe) -> bool:
    """Whether the data, the model or its head is a Python object, which no command can hand over."""
    return bool(objects_of(recipe))


def objects_of(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that are Python objects."""
    values = {name: getattr(recipe, name) for name in ("data", "model", "head")}
    return {name: value for name, value in values.items() if not isinstance(value, (str, Path, type(None)))}


def run_arguments(recipe: Recipe, run_dir: Path, recipe_file: Path) -> tuple[list[str], bool]:
    """Return the arguments of `tlx run` for a recipe into a folder, and whether they need the recipe as a file."""
    words = options(replace(recipe, out=None))
    begin = ["run", *(words if words is not None else [str(recipe_file)])]
    folder = f"./{run_dir}" if str(run_dir).startswith("-") else str(run_dir)
    return [*begin, "--out", folder], words is None


def printed(value: Any) -> str:
    """Write the value of a field as short as it can be read."""
    if isinstance(value, Strategy):
        return value.name
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, (str, int)) else "own"
