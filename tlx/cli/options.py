"""What commands share: their groups, the recipe's fields as options, and JSON as output."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypedDict

from cyclopts import Group, Parameter

from tlx.recipe import Recipe
from tlx.recipe_fields import FIELD_GROUPS

TRAIN, CHOOSE, LOOK, PROVE, LOOK_UP = (
    Group(name, sort_key=place)
    for place, name in enumerate(("Train and use", "Choose", "Look at results", "Prove", "Look up"))
)
_GROUPS = {name: Group(name, sort_key=place) for place, name in enumerate(FIELD_GROUPS, 1)}


def _option(name: str) -> Any:
    """Return a recipe field as an option: its type, and its help with the default."""
    f = Recipe.__dataclass_fields__[name]
    facts, kind = f.metadata, f.metadata["option"]  # a choice is text here, so that tlx names the nearest one
    choices = f" [choices: {', '.join(facts['choices'])}]" if facts["choices"] else ""
    default = "" if f.default is None else f" [default: {f.default}]"
    shown = Parameter(help=f"{facts['help']}{choices}{default}", show_default=False, group=_GROUPS[facts["group"]])
    return Annotated[kind, shown]


# The options of `tlx run` are the recipe's fields, so they are made from it; only those given are passed on.
Fields = TypedDict("Fields", {f.name: _option(f.name) for f in fields(Recipe)}, total=False)  # type: ignore[misc]

RecipeFile = Annotated[Path | None, Parameter(help="A recipe file (TOML). Options replace its values.")]
Json = Annotated[bool, Parameter(help="Print one JSON object as the last line of stdout.", negative="")]


def print_json(value: Any) -> None:
    """Print one object on one line, as the last line of stdout."""
    print(as_json(value))


def as_json(value: Any) -> str:
    """Return one object on one line."""
    return json.dumps(value, allow_nan=False)
