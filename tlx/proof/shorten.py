"""A short `rename=` for a long list of pairs: prefixes instead of names, stars instead of numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from tlx.errors import RecipeError
from tlx.proof.mapping import leaves, renamed
from tlx.proof.matching import match, matched
from tlx.proof.names import Names

STARS = 3  # at most, in one pattern
Entry = tuple[Any, Any]  # of rename


def shortened(entries: Sequence[Entry], reference: Names, candidate: Names) -> dict[Any, Any]:
    """Return a short `rename` that pairs the same arrays as these entries, one for each array."""
    whole = _as_dict(entries)
    expected = _pairs(whole, reference, candidate)
    shortest = whole
    for step in (_by_module, _by_prefix, _by_star, _without_equal):
        shorter = step(shortest, reference, candidate)
        if _pairs(shorter, reference, candidate) == expected:
            shortest = shorter
    return shortest


def _as_dict(entries: Sequence[Entry]) -> dict[Any, Any]:
    alone = tuple(name for key, name in entries if key is None)
    rules = {key: value for key, value in entries if key is not None}
    return {**rules, None: alone[0] if len(alone) == 1 else alone} if alone else rules


def _pairs(rename: Mapping[Any, Any], reference: Names, candidate: Names) -> Any:
    try:
        found = match(reference, candidate, rename)
    except RecipeError:
        return None
    return [(repr(p.reference), repr(p.candidate)) for p in found.pairs], found.missing, found.extra


def _mapped(value: Any, translate: Callable[[str], str]) -> Any:
    """Replace the names in a key or a value of `rename`."""
    if isinstance(value, tuple):
        return tuple(translate(name) if isinstance(name, str) else renamed(name, translate) for name in value)
    return value if value is None else renamed(value, translate)


def _names(value: Any) -> list[str]:
    if isinstance(value, tuple):
        return [name for part in value for name in leaves(part)]
    return [] if value is None else list(leaves(value))


def _by_module(rename: Mapping[Any, Any], reference: Names, candidate: Names) -> dict[Any, Any]:
    """Speak of modules instead of their arrays, where these have the same last word on both sides."""
    groups: dict[Any, list[Entry]] = {}
    kept: list[Entry] = []
    for key, value in rename.items():
        ends = {name.rpartition(".")[2] for name in (*_names(key), *_names(value))}
        if key is None or value is None or len(ends) != 1 or any("." not in n for n in (*_names(key), *_names(value))):
            kept.append((key, value))
            continue
        cut = _mapped(key, _owner), _mapped(value, _owner)
        groups.setdefault((cut[0], tuple(_names(cut[1]))), []).append((key, value))
    for (owner, ends), members in groups.items():
        # The one that does most stands for all: a bias is left as it is by what moves a weight.
        largest = max(members, key=lambda entry: len(repr(entry[1])) - len("".join(_names(entry[1]))))
        whole = {name for name in reference.specs if any(_owner(name) == path for path in _names(owner))}
        if whole <= {name for key, _ in members for name in _names(key)} and ends:
            kept.append((owner, _mapped(largest[1], _owner)))
        else:
            kept += members
    return _ordered(kept, reference)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _by_prefix(rename: Mapping[Any, Any], reference: Names, candidate: Names) -> dict[Any, Any]:
    """Speak of the module around several, where all in it goes on by the same names."""
    rules = dict(rename)
    depths = sorted({path for name in reference.specs for path in _around(name)}, key=lambda path: path.count("."))
    for path in depths:
        inside = {key: value for key, value in rules.items() if isinstance(key, str) and key.startswith(path + ".")}
        if len(inside) < 2 or not all(isinstance(value, str) for value in inside.values()):
            continue
        starts = {
            value.removesuffix(key.removeprefix(path)) if value.endswith(key.removeprefix(path)) else None
            for key, value in inside.items()
        }
        start = next(iter(starts))
        if len(starts) == 1 and start:
            shorter = {**{key: value for key, value in rules.items() if key not in inside}, path: start}
            if _pairs(shorter, reference, candidate) == _pairs(rules, reference, candidate):
                rules = shorter
    return _ordered(list(rules.items()), reference)


def _around(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _by_star(rename: Mapping[Any, Any], reference: Names, candidate: Names) -> dict[Any, Any]:
    """Put stars where the numbers of a name are those of its partner, as far as several entries become one."""
    rules = dict(rename)
    while True:
        groups: dict[Entry, list[Any]] = {}
        for key, value in rules.items():
            for pattern in _patterns(key, value):
                groups.setdefault(pattern, []).append(key)
        several = {pattern: keys for pattern, keys in groups.items() if len(keys) > 1}
        families = Counter(_heads(pattern) for pattern in several)
        best = max(
            several.items(),
            key=lambda group: (len(group[1]), families[_heads(group[0])], -repr(group[0]).count("*")),
            default=None,
        )
        if best is None:
            return _ordered(list(rules.items()), reference)
        (pattern, value), keys = best
        shorter = {**{key: old for key, old in rules.items() if key not in keys}, pattern: value}
        if _pairs(shorter, reference, candidate) != _pairs(rules, reference, candidate):
            return _ordered(list(rules.items()), reference)
        rules = shorter


def _heads(pattern: Entry) -> tuple[str, ...]:
    """Return the patterns up to their last star: those of one container's children have these in common."""
    return tuple(name.rpartition("*")[0] for name in (*_names(pattern[0]), *_names(pattern[1])))


def _patterns(key: Any, value: Any) -> set[Entry]:
    """Return an entry with some of its numbers as stars: the same ones, in order, in all of its names."""
    names = [*_names(key), *_names(value)]
    if key is None or not names or any("*" in name for name in names):
        return set()
    found = set()
    for numbers, starred in _starred(names[0]):
        ways = [[pattern for chosen, pattern in _starred(name) if chosen == numbers] for name in names[1:]]
        for patterns in product(*ways):
            new = dict(zip(names, (starred, *patterns), strict=True))
            found.add((_mapped(key, new.__getitem__), _mapped(value, new.__getitem__)))
    return found


def _starred(name: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield a name with stars for some of its numbers, and these."""
    pieces = re.split(r"(\d+)", name)  # every second one is a number
    for count in range(1, STARS + 1):
        for places in combinations(range(1, len(pieces), 2), count):
            pattern = "".join("*" if i in places else piece for i, piece in enumerate(pieces))
            yield tuple(pieces[i] for i in places), pattern


def _without_equal(rename: Mapping[Any, Any], reference: Names, candidate: Names) -> dict[Any, Any]:
    """Leave out what goes on by its own name."""
    return {key: value for key, value in rename.items() if key is None or key != value}


def _ordered(rules: Sequence[Entry], reference: Names) -> dict[Any, Any]:
    """Sort entries by the first array of the reference that they speak of; what the candidate alone has comes last."""
    names = list(reference.specs)

    def place(entry: Entry) -> int:
        if entry[0] is None:
            return len(names)
        pattern = _names(entry[0])[0]
        return next((i for i, name in enumerate(names) if matched(pattern, name)), len(names))

    return dict(sorted(rules, key=place))
