"""Strategies of one's own, in TOML and in Python, with members of any type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

import tlx
from support.hostile import check, hostile_inputs, mistake_or_none
from support.hostile_recipes import BASE, anything, fresh_folder, literal, numbers, recipe_text, texts, values

TERMS = ["all", "head", "backbone", "stage:fc1", "stage:head", "role:norm", "role:x", "name:fc*", "!head", "|"]
PATTERNS = ["name:" + "*a" * 5000, "name:[z-a]", "name:[", "name:[!", "! ", "!!head", "head:x", "stage:", "\u202eall"]
filters = st.lists(st.sampled_from(TERMS), max_size=4).map(" ".join) | st.sampled_from(PATTERNS) | texts
group_names = st.sampled_from(["a", "b", "[/]", "a\x1b[31m", "x\ny"]) | texts
groups = st.fixed_dictionaries(
    {"name": group_names, "match": filters}, optional={"weight_decay": numbers | st.floats(0, 1), "more": values}
)
rates = st.dictionaries(group_names, st.floats(0, 1) | numbers | values, max_size=3)
phases = st.fixed_dictionaries({"name": group_names, "lr": rates}, optional={"start": numbers | values})
WHOLE: dict[str, Any] = {
    "name": "mine",
    "groups": [{"name": "a", "match": "head"}, {"name": "b", "match": "backbone"}],
    "phases": [{"name": "warm", "lr": {"a": 0.1}}, {"name": "tune", "start": 1, "lr": {"a": 0.1, "b": 0.01}}],
}
# A good one with one member replaced, so that later stages are reached; and ones where nothing fits.
replaced = st.builds(lambda name, value: {**WHOLE, name: value}, st.sampled_from([*WHOLE, "x"]), values)
drawn = st.fixed_dictionaries({"name": group_names, "groups": st.lists(groups), "phases": st.lists(phases)})


@st.composite
def altered(draw: Any) -> dict[str, Any]:
    """A good strategy, one leaf of which is hostile."""
    kind = draw(st.sampled_from(["groups", "phases"]))
    parts = [dict(part) for part in WHOLE[kind]]
    part = draw(st.sampled_from(parts))
    name = draw(st.sampled_from(["name", "match", "weight_decay"] if kind == "groups" else ["name", "lr", "start"]))
    part[name] = draw({"match": filters, "lr": rates}.get(name, group_names) | values)
    return {**WHOLE, kind: parts}


@hostile_inputs
@given(strategy=drawn | replaced | altered() | values)
@example(strategy={**WHOLE, "groups": [{"name": ["a"], "match": "all"}]})
@example(strategy={**WHOLE, "phases": [{"name": "warm", "lr": [1]}]})
@example(strategy={**WHOLE, "phases": [{"name": "warm", "lr": {"a": 10**400}}]})
def test_strategies_in_a_recipe(strategy: Any, tmp_path: Path) -> None:
    with fresh_folder(tmp_path) as folder:
        if isinstance(strategy, dict):
            fields = {name: value for name, value in BASE.items() if name != "lr"}
            text = tomli_w.dumps({**fields, "strategy": strategy}).encode(errors="surrogatepass")
        else:
            text = recipe_text({"strategy": literal(strategy)})
        (folder / "recipe.toml").write_bytes(text)
        check("strategies: in a recipe", "run", "recipe.toml", folder=folder)


members = anything | texts
python_groups = st.builds(tlx.Group, members, members | filters, members) | members
python_phases = st.builds(tlx.Phase, members, st.dictionaries(texts, anything, max_size=2) | members, members) | members


def _strategy(name: Any, groups: Any, phases: Any) -> Any:
    return lambda: tlx.Strategy(name, groups, phases)


@hostile_inputs
@given(
    make=st.builds(
        _strategy,
        members,
        st.lists(python_groups, max_size=3).map(tuple) | members,
        st.lists(python_phases, max_size=3).map(tuple) | members,
    )
    | altered().map(lambda values: lambda: tlx.Strategy.from_dict(values))
    | anything.map(lambda value: lambda: value)
)
@example(make=_strategy("x", (tlx.Group(["a"], "all"),), (tlx.Phase("p", {"a": 1}),)))  # type: ignore[arg-type]
@example(make=_strategy("x", (tlx.Group("a", b"all"),), (tlx.Phase("p", {"a": 1}),)))  # type: ignore[arg-type]
@example(make=_strategy("x", (tlx.Group("a", "all"),), (tlx.Phase("p", {"a": 1}, start="0"),)))  # type: ignore[arg-type]
def test_strategies_in_python(make: Any) -> None:
    fields = {name: value for name, value in BASE.items() if name != "lr"}
    mistake_or_none("strategies: in Python", lambda: tlx.plan(**fields, strategy=make()))
