"""Parameter filters, and the exhaustive, disjoint groups they make.

A filter is a line of text, so it can be printed, saved and typed:

    head                the layer that was replaced             backbone   everything else
    stage:layer4        one stage of the model                  all        every parameter
    role:norm           weight, bias, norm or adapter           name:fc.*  a shell pattern on the full name

``!`` negates a term, a space means *and*, ``|`` means *or*: ``backbone !role:norm | name:fc.bias``.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from tlx.backend import ParamSpec
from tlx.errors import RecipeError, closest
from tlx.models.zoo import Architecture

ROLES = ("weight", "bias", "norm", "adapter")


def select(expression: str, specs: Sequence[ParamSpec], arch: Architecture, where: str) -> tuple[str, ...]:
    """Return the names of the parameters that a filter matches, in the model's order.

    `where` begins the error message, such as ``"Group 'early'"``. Every term must match something.
    """
    params = [spec for spec in specs if spec.role != "statistic"]
    chosen: set[str] = set()
    for alternative in expression.split("|"):
        terms = alternative.split()
        if not terms:
            raise RecipeError(f"{where}: empty filter in {expression!r}; write for example 'backbone !role:norm'")
        matching = {spec.name for spec in params}
        for term in terms:
            of_term = _term(term.removeprefix("!"), params, arch, where)
            matching = matching - of_term if term.startswith("!") else matching & of_term
        chosen |= matching
    if not chosen:
        raise RecipeError(f"{where}: filter {expression!r} matches no parameter of {arch.name}")
    return tuple(spec.name for spec in params if spec.name in chosen)


def _term(term: str, params: Sequence[ParamSpec], arch: Architecture, where: str) -> set[str]:
    kind, _, value = term.partition(":")
    if kind in ("all", "head", "backbone") and not value:
        return {s.name for s in params if kind == "all" or (arch.stage_of(s.module) == "head") == (kind == "head")}
    if kind == "stage":
        stages = [*(name for name, _ in arch.stages), "head"]
        if value not in stages:
            raise RecipeError(f"{where}: {arch.name} has no stage {value!r}.{closest(value, stages)}")
        return {s.name for s in params if arch.stage_of(s.module) == value}
    if kind == "role":
        if value not in ROLES:
            raise RecipeError(f"{where}: unknown role {value!r}.{closest(value, ROLES)}")
        return {s.name for s in params if s.role == value}
    if kind == "name" and value:
        matched = {s.name for s in params if fnmatchcase(s.name, value)}
        if not matched:
            near = closest(value, (s.name for s in params))
            raise RecipeError(f"{where}: pattern {value!r} matches no parameter of {arch.name}.{near}")
        return matched
    raise RecipeError(
        f"{where}: unknown filter {term!r}; use all, head, backbone, stage:NAME, role:ROLE or name:PATTERN"
    )


def partition(
    groups: Sequence[tuple[str, str]], specs: Sequence[ParamSpec], arch: Architecture
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Resolve named filters into groups that hold every parameter exactly once."""
    resolved = tuple((name, select(match, specs, arch, f"Group {name!r}")) for name, match in groups)
    owner: dict[str, str] = {}
    for group, params in resolved:
        for param in params:
            if param in owner:
                raise RecipeError(f"Parameter {param!r} is in two groups, {owner[param]!r} and {group!r}")
            owner[param] = group
    missing = [s.name for s in specs if s.role != "statistic" and s.name not in owner]
    if missing:
        listed = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise RecipeError(f"In no group: {listed}. Add a group for them; to freeze it, give it no rate in any phase")
    return resolved
