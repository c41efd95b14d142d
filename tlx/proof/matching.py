"""Which array of a candidate belongs to which of the reference: the rules of `rename=`, applied to both sides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from tlx.backend import ParamSpec
from tlx.errors import RecipeError, closest, shown
from tlx.proof.mapping import (
    Target,
    Transform,
    concat,
    layout_of,
    leaves,
    renamed,
    simplified,
    split,
    taken_apart,
    words,
)
from tlx.proof.names import Layout, Names, prefixes


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `rename`: patterns of the reference, and what they become; None: nothing."""

    keys: tuple[str, ...]
    to: Target | None


@dataclass(frozen=True, slots=True)
class Found:
    """A rule that speaks of a name: which of its patterns, what its stars stand for, and what follows the pattern."""

    rule: Rule
    member: int
    stars: tuple[str, ...]
    rest: str
    weight: tuple[int, bool, int]  # the longest match wins; then a pattern without stars; then more letters

    @property
    def target(self) -> Target | None:
        """What the name becomes."""
        return None if self.rule.to is None else renamed(self.rule.to, self.filled)

    def filled(self, pattern: str) -> str:
        """Put the stars into a pattern, and the rest behind it."""
        parts = pattern.split("*")
        path = "".join(part + star for part, star in zip(parts, (*self.stars, ""), strict=True))
        return f"{path}.{self.rest}".strip(".") if self.rest else path


@dataclass(frozen=True, slots=True)
class Pair:
    """An array that both sides have, by the name that the proof uses, and where each side keeps it."""

    spec: ParamSpec  # name, shape, role and module as the reference has them
    reference: Target
    candidate: Target


@dataclass(slots=True)
class Match:
    """What belongs to what."""

    pairs: list[Pair] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)  # of the reference -> of the candidate
    layouts: dict[str, Layout] = field(default_factory=dict)  # of the reference's modules, to the candidate's
    missing: list[str] = field(default_factory=list)  # of the reference, without a partner
    extra: list[str] = field(default_factory=list)  # of the candidate

    def misfits(self, reference: Names, candidate: Names) -> list[str]:
        """Return the names of arrays that go by one name to one of another shape."""
        return [
            pair.spec.name
            for pair in self.pairs
            if isinstance(pair.candidate, str) and pair.spec.shape != candidate.specs[pair.candidate].shape
        ]


def rules_of(rename: object) -> tuple[list[Rule], tuple[str, ...]]:
    """Check `rename`; return its rules, and the patterns of what the candidate alone has."""
    if not isinstance(rename, Mapping):
        problem = f"rename is {shown(rename)}; expected a dictionary from paths of the reference to the candidate's"
        raise RecipeError(problem)
    rules, alone = [], []
    for key, value in rename.items():
        keys = key if isinstance(key, tuple) else (key,)
        if key is None:
            alone += [_pattern(name) for name in (value if isinstance(value, tuple) else (value,))]
            continue
        if not keys:
            raise RecipeError("rename: () names nothing; expected the paths of two arrays or more")
        rules.append(Rule(tuple(map(_pattern, keys)), _target(keys, value)))
    return rules, tuple(alone)


def _pattern(key: object) -> str:
    if not isinstance(key, str):
        raise RecipeError(f"rename: {shown(key)} is no path; expected such as 'blocks.*.norm'")
    if "**" in key:
        raise RecipeError(f"rename: {key!r} has **; each * stands for one part of a path, or for a piece of one")
    return key


def _target(keys: tuple[Any, ...], value: object) -> Target | None:
    if isinstance(value, tuple):
        value = split(*value)
    if value is not None and not isinstance(value, (str, Transform)):
        raise RecipeError(f"rename: {keys[0]!r} becomes {shown(value)}; expected a path, a transform, or None")
    if isinstance(value, (str, Transform)):
        several = isinstance(value, Transform) and value.word == "concat"
        if len(keys) > 1 and not several:
            value = concat(value)
        elif several and len(keys) < 2:
            raise RecipeError(f"rename: {value!r} needs several names, as {{('q', 'k', 'v'): {value!r}}}")
        for pattern in leaves(value):
            for key in map(_pattern, keys):
                if _pattern(pattern).count("*") != key.count("*"):
                    raise RecipeError(f"rename: {key!r} and {pattern!r} have different numbers of *")
    return value


def matched(pattern: str, name: str) -> tuple[tuple[str, ...], str] | None:
    """Return what the stars of a pattern stand for, and the rest of the name; None where it is another name."""
    if "*" not in pattern:
        if not pattern or name == pattern:
            return (), name if not pattern else ""
        return ((), name[len(pattern) + 1 :]) if name.startswith(pattern + ".") else None
    found = _compiled(pattern).match(name)
    return None if found is None else (found.groups(), name[found.end() :])


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("([^.]+)".join(map(re.escape, pattern.split("*"))) + r"(?:\.|$)")


def find(rules: Iterable[Rule], name: str) -> Found | None:
    """Return the rule that speaks most closely of a name or path.

    Raises:
        RecipeError: two speak of it equally closely.
    """
    best: list[Found] = []
    for rule in rules:
        for member, pattern in enumerate(rule.keys):
            if (fit := matched(pattern, name)) is not None:
                uncovered = len(fit[1].split(".")) if fit[1] else 0
                weight = -uncovered, "*" not in pattern, len(pattern.replace("*", ""))
                best.append(Found(rule, member, *fit, weight))
    best.sort(key=lambda found: found.weight, reverse=True)
    if len(best) > 1 and best[0].weight == best[1].weight:
        one, other = (found.rule.keys[found.member] for found in best[:2])
        raise RecipeError(
            f"rename: {one!r} and {other!r} both match {name!r}, and neither more closely; name it exactly"
        )
    return best[0] if best else None


def match(reference: Names, candidate: Names, rename: object) -> Match:
    """Apply the rules to the names of both sides. Names left over are listed in what it returns, not raised.

    Raises:
        RecipeError: a rule matches nothing, two clash, or an array does not fit where a rule sends it.
    """
    rules, alone = rules_of(rename)
    _check_rules(rules, alone, reference, candidate)
    result = Match()
    claimed: dict[str, str] = {}  # arrays of the candidate -> the name that took them
    groups: dict[tuple[int, tuple[str, ...], str], dict[int, str]] = {}
    for name, spec in reference.specs.items():
        found = find(rules, name)
        if found is not None and found.rule.to is None:
            continue
        if found is not None and len(found.rule.keys) > 1:
            groups.setdefault((id(found.rule), found.stars, found.rest), {})[found.member] = name
            continue
        targets = _targets(rules, spec, candidate)
        if not targets:
            result.missing.append(name)
        for target in targets[:1]:
            result.pairs.append(_pair(spec, name, target, reference, candidate, claimed))
        if len(targets) > 1:
            _refuse_untied(spec, targets)
    for (_, _, _), members in groups.items():
        found = find(rules, next(iter(members.values())))
        assert found is not None and found.rule.to is not None
        result.pairs.append(_merged(found, members, reference, candidate, claimed))
    order = list(reference.specs)
    result.pairs.sort(key=lambda pair: order.index(leaves(pair.reference)[0]))
    for name, spec in candidate.specs.items():
        pattern = next((p for p in alone for alias in (name, *spec.aliases) if matched(p, alias)), None)
        if pattern is not None and name in claimed:
            raise RecipeError(f"rename: {{None: {pattern!r}}} leaves out {name!r}, which {claimed[name]!r} becomes")
        if pattern is None and name not in claimed:
            result.extra.append(name)
    _check_used(rules, result.pairs)
    result.modules = _modules(result.pairs, rules, reference, candidate)
    result.layouts = _layouts(rules, reference)
    return result


def _check_rules(rules: Sequence[Rule], alone: Sequence[str], reference: Names, candidate: Names) -> None:
    for names, patterns in ((reference, [key for rule in rules for key in rule.keys]), (candidate, alone)):
        paths = names.paths()
        for pattern in patterns:
            if pattern not in paths and not any(matched(pattern, path) for path in paths):
                raise RecipeError(f"rename: the {names.side} has no {pattern!r}.{_near(pattern, paths)}")
    paths = candidate.paths()
    for path in sorted(reference.paths(), key=lambda path: (path.count("."), path)):
        found = find(rules, path)
        if found is None or found.rest or found.target is None:
            continue
        for end, pattern in zip(leaves(found.target), leaves(found.rule.to or ""), strict=True):
            if end not in paths:
                of = f" for {path!r}" if "*" in pattern else ""
                raise RecipeError(f"rename: the candidate has no {end!r}{of}.{_near(end, paths)}")


def _check_used(rules: Sequence[Rule], pairs: Sequence[Pair]) -> None:
    """Raise RecipeError where a transform that says a shape, or the order of axes, fits no array."""
    used: dict[int, set[str]] = {}
    for pair in pairs:
        if (found := find(rules, leaves(pair.reference)[0])) is not None:
            used.setdefault(id(found.rule), set()).update(words(pair.candidate))
    for rule in rules:
        said = {"transpose", "reshape"}.intersection(words(rule.to, numbered=True) if rule.to is not None else ())
        if id(rule) in used and said - used[id(rule)]:
            raise RecipeError(f"rename: {rule.keys[0]!r} becomes {rule.to!r}, which changes none of its arrays")


def _near(pattern: str, paths: Iterable[str]) -> str:
    """Suggest paths that are nearest, written as patterns where a pattern was given."""
    known = {re.sub(r"\d+", "*", path) if "*" in pattern else path for path in paths}
    return closest(pattern, known - {""})


def _targets(rules: Sequence[Rule], spec: ParamSpec, candidate: Names) -> list[Target]:
    """Return what an array becomes by each of its names, where the candidate has that; equal ones once."""
    targets: list[Target] = []
    for name in (spec.name, *spec.aliases):
        found = find(rules, name)
        target: Target | None = name if found is None else found.target
        if target is None or any(end not in candidate.first for end in leaves(target)):
            continue
        target = renamed(target, candidate.first.__getitem__)
        if all(leaves(target) != leaves(other) for other in targets):
            targets.append(target)
    return targets


def _refuse_untied(spec: ParamSpec, targets: Sequence[Target]) -> None:
    ends = " and ".join(repr(name) for target in targets for name in leaves(target))
    names = " = ".join((spec.name, *spec.aliases))
    raise RecipeError(f"{names} is one parameter in the reference, but {ends} are several in the candidate: tie them")


def _pair(
    spec: ParamSpec, source: Target, target: Target, reference: Names, candidate: Names, claimed: dict[str, str]
) -> Pair:
    for end in leaves(target):
        if end in claimed:
            raise RecipeError(f"rename: {claimed[end]!r} and {spec.name!r} both become {end!r} of the candidate")
        claimed[end] = spec.name
        if (spec.role == "statistic") < (candidate.specs[end].role == "statistic"):
            problem = f"{spec.name!r} is a parameter, but in the candidate {end!r} is a buffer, which does not train"
            fix = f"make it a parameter there, or leave both out: rename={ {spec.name: None, None: end} }"
            raise RecipeError(problem, fix=fix)
    if isinstance(target, Transform):
        try:
            taken_apart(target, np.zeros(spec.shape, np.int8), candidate.shapes)
        except RecipeError as error:
            raise RecipeError(f"rename: {spec.name!r} is {list(spec.shape)}; {error.problem}") from None
        target = simplified(target, spec.shape, candidate.shapes)
    return Pair(spec, source, target)


def _merged(
    found: Found, members: Mapping[int, str], reference: Names, candidate: Names, claimed: dict[str, str]
) -> Pair:
    """Make one array of several of the reference."""
    to = found.target
    assert isinstance(to, Transform)
    parts = [renamed(key, found.filled) for key in found.rule.keys]
    if lacking := [leaves(part)[0] for number, part in enumerate(parts) if number not in members]:
        there = ", ".join(map(repr, members.values()))
        raise RecipeError(f"rename: {to!r} joins {there} with {lacking[0]!r}, which the reference does not have")
    specs = [reference.specs[members[number]] for number in range(len(parts))]
    source = split(*(spec.name for spec in specs), axis=to.axis)
    try:
        shape = np.concatenate([np.zeros(spec.shape, np.int8) for spec in specs], axis=to.axis).shape
    except ValueError as error:
        sizes = " and ".join(str(list(spec.shape)) for spec in specs)
        raise RecipeError(f"rename: {sizes} of {specs[0].name!r} … cannot be joined along axis {to.axis}") from error
    name, module = _joined([spec.name for spec in specs])
    spec = replace(specs[0], name=name, shape=shape, module=module, aliases=())
    if any(end not in candidate.first for end in leaves(to)):
        raise RecipeError(f"rename: the candidate has no {leaves(to)[0]!r}.{closest(leaves(to)[0], candidate.first)}")
    target = renamed(to.to[0], candidate.first.__getitem__)
    return _pair(spec, source, target, reference, candidate, claimed)


def _joined(names: Sequence[str]) -> tuple[str, str]:
    """Return one name for several, as attn.{q,k,v}.weight, and the path around them."""
    parts = [name.split(".") for name in names]
    before = 0
    while all(len(p) > before + 1 and p[before] == parts[0][before] for p in parts):
        before += 1
    after = 0
    while all(len(p) > before + after + 1 and p[-1 - after] == parts[0][-1 - after] for p in parts):
        after += 1
    middle = ",".join(".".join(p[before : len(p) - after]) for p in parts)
    ends = parts[0][len(parts[0]) - after :] if after else []
    return ".".join([*parts[0][:before], f"{{{middle}}}", *ends]), ".".join(parts[0][:before])


def _modules(pairs: Sequence[Pair], rules: Sequence[Rule], reference: Names, candidate: Names) -> dict[str, str]:
    """Pair the modules that hold the same arrays: by the names of their own arrays, by the rules, then by order."""
    ours, theirs = _held(pairs, "reference", reference), _held(pairs, "candidate", candidate)
    modules: dict[str, str] = {}

    def take(path: str, other: str) -> None:
        free = path in ours and path not in modules and other in theirs and other not in modules.values()
        if free and ours[path] == theirs[other]:
            modules[path] = other

    for pair in pairs:
        if isinstance(pair.reference, str) and len(leaves(pair.candidate)) == 1:
            own = reference.specs[pair.reference].module, candidate.specs[leaves(pair.candidate)[0]].module
            take(*own)
    for path in ours:
        found = find(rules, path)
        parent, _, name = path.rpartition(".")
        if path and found is None and parent in modules:
            take(path, f"{modules[parent]}.{name}".lstrip("."))
        elif found is None or (found.target is not None and len(leaves(found.target)) == 1):
            take(path, path if found is None else leaves(found.target or "")[0])
    for path, held in ours.items():
        if path not in modules and held:
            alike = [[p for p, h in side.items() if h == held] for side in (ours, theirs)]
            if len(alike[0]) == len(alike[1]):
                take(path, alike[1][alike[0].index(path)])
    return modules


def _held(pairs: Sequence[Pair], side: str, names: Names) -> dict[str, frozenset[tuple[str, int]]]:
    """Return, for each module, the pieces of paired arrays that lie in it; a piece is what neither side divides."""
    pieces: dict[str, set[tuple[str, int]]] = {}
    for pair in pairs:
        several = max(len(leaves(pair.reference)), len(leaves(pair.candidate)))
        ends = leaves(pair.reference if side == "reference" else pair.candidate)
        for number, end in enumerate(ends):
            whole = range(several) if len(ends) == 1 else [number]
            pieces.setdefault(end, set()).update((pair.spec.name, piece) for piece in whole)
    held: dict[str, set[tuple[str, int]]] = {path: set() for path in names.modules.values()}
    for name, end in names.first.items():
        for path in ("", *prefixes(name)):
            held[names.modules[path]] |= pieces.get(end, set())
    return {path: frozenset(held[path]) for path in held}


def _layouts(rules: Sequence[Rule], reference: Names) -> dict[str, Layout]:
    """Return the layout of each module: that of the closest rule that says one."""
    laid = [rule for rule in rules if rule.to is not None and layout_of(rule.to) is not None]
    found = {path: find(laid, path) for path in reference.modules.values()}
    axes = {path: layout_of(f.rule.to) for path, f in found.items() if f is not None and f.rule.to is not None}
    return {path: (order, order) for path, order in axes.items() if order is not None}
