"""A map between the names of two modules, derived by shapes, roles, order and likeness of names, and tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import permutations
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from tlx.errors import RecipeError
from tlx.proof.mapping import Shape, concat, layout, reshape, split, transpose
from tlx.proof.matching import Match, match
from tlx.proof.names import Names
from tlx.proof.shorten import shortened

IMPOSSIBLE = 1e6
LAYOUTS = ((0, 2, 3, 1), (0, 3, 1, 2))  # of a whole model: tried where it cannot take what the reference takes
# How much the order, the last word of a name, its other words and its role weigh. One after another is tried.
WEIGHTS = ((4.0, 4.0, 1.0, 0.5), (1.0, 4.0, 4.0, 0.5), (0.0, 1.0, 8.0, 0.0))
WORDS = {
    **dict.fromkeys(("weight", "kernel", "w", "gamma", "scale", "g"), "weight"),
    **dict.fromkeys(("bias", "beta", "b", "offset", "shift"), "bias"),
    **dict.fromkeys(("norm", "ln", "bn", "layernorm", "batchnorm", "layer_norm"), "norm"),
    **dict.fromkeys(("attn", "attention", "mixer", "mhsa", "mha"), "attn"),
    **dict.fromkeys(("mlp", "ffn", "feedforward", "ff"), "mlp"),
    **dict.fromkeys(("proj", "out", "projection", "o"), "proj"),
    **dict.fromkeys(("block", "blocks", "layer", "layers", "encoder", "stage", "stages", "features", "body"), ""),
    **dict.fromkeys(("patch", "patchify", "embed", "embedding", "stem", "conv"), "embed"),
    **dict.fromkeys(("head", "heads", "classifier", "fc", "logits"), "head"),
    **dict.fromkeys(("cls", "class"), "class"),
}
QUERY = {"q": 0, "query": 0, "wq": 0, "k": 1, "key": 1, "wk": 1, "v": 2, "value": 2, "wv": 2}


@dataclass(frozen=True, slots=True)
class Atom:
    """What takes part in an assignment: an array, or query, key and value as one."""

    names: tuple[str, ...]
    shape: Shape
    role: str
    axis: int = 0

    @property
    def words(self) -> list[str]:
        """The words of its name that tell something, without numbers."""
        parts = [part for part in re.split(r"[._]", re.sub(r"\d+", "", self.names[0])) if part]
        return [word for part in parts if (word := WORDS.get(part.lower(), part.lower()))]


def proposal(reference: Names, candidate: Names, rename: Any, alike: Callable[[Match], bool | None]) -> str:
    """Derive a map, try it, and write it as `rename=`; empty where none fits by shape.

    Args:
        reference: the names of one side.
        candidate: those of the other.
        rename: what was given, which the map keeps.
        alike: whether a match gives equal outputs once the values are copied; None: it cannot be tried.
    """
    first = ""
    tried: list[dict[Any, Any]] = []
    for derived in _derived(reference, candidate, rename):
        if derived in tried:
            continue
        tried.append(derived)
        try:
            found = match(reference, candidate, derived)
        except RecipeError:
            continue
        if found.missing or found.extra or found.misfits(reference, candidate):
            continue
        equal = alike(found)
        for axes in LAYOUTS if equal is None and "" not in derived else ():
            turned = {"": layout("", axes), **derived}
            if alike(match(reference, candidate, turned)):
                equal, derived = True, turned
                break
        written = f"rename={derived!r}" + (" with `from tlx import mapping`" if "mapping." in repr(derived) else "")
        if equal:
            return f" This map gives equal outputs: {written}"
        first = first or f" This map fits by shape, but its outputs differ: {written}"
    return first


def _derived(reference: Names, candidate: Names, rename: Any) -> Iterator[dict[Any, Any]]:
    """Yield maps from the likeliest on: beside what matches by name already, then of everything."""
    found = match(reference, candidate, rename)
    misfits = set(found.misfits(reference, candidate))
    extra = {*found.extra, *(str(pair.candidate) for pair in found.pairs if pair.spec.name in misfits)}
    missing = {*found.missing, *misfits}
    left = [(missing, extra, dict(rename))]
    if not rename:
        left.append((set(reference.specs), set(candidate.specs), {}))
    for ours, theirs, given in left:
        atoms = [
            [Atom((spec.name,), spec.shape, spec.role) for spec in side.executed() if spec.name in names]
            for side, names in ((reference, ours), (candidate, theirs))
        ]
        merged = _with_triples(*atoms)
        for weights in WEIGHTS:
            pairs = _assigned(*merged, weights)
            if pairs is None:
                continue
            for turn in (True, False) if _turns(pairs) else (False,):
                entries = [_entry(a, b, turn) for a, b in pairs]
                yield {**given, **shortened(entries, reference, candidate)}


def _with_triples(ours: list[Atom], theirs: list[Atom]) -> tuple[list[Atom], list[Atom]]:
    """Join query, key and value on the side that has them apart, where the other side has them together."""
    both = [_triples(side) for side in (ours, theirs)]
    if bool(both[0]) == bool(both[1]):
        return ours, theirs
    if both[0]:
        return _join(ours, both[0], {atom.shape for atom in theirs}), theirs
    return ours, _join(theirs, both[1], {atom.shape for atom in ours})


def _triples(atoms: Sequence[Atom]) -> list[list[Atom]]:
    groups: dict[str, dict[int, Atom]] = {}
    for atom in atoms:
        words = re.split(r"([._])", atom.names[0])
        for place, word in enumerate(words):
            if word in QUERY:
                key = "".join([*words[:place], "?", *words[place + 1 :]])
                groups.setdefault(key, {})[QUERY[word]] = atom
    return [[group[0], group[1], group[2]] for group in groups.values() if len(group) == 3]


def _join(atoms: list[Atom], triples: list[list[Atom]], shapes: set[Shape]) -> list[Atom]:
    joined: dict[str, Atom] = {}
    for triple in triples:
        for axis in (0, -1):
            try:
                shape = np.concatenate([np.zeros(atom.shape, np.int8) for atom in triple], axis).shape
            except ValueError:
                continue
            if shape in shapes or tuple(reversed(shape)) in shapes:
                names = tuple(atom.names[0] for atom in triple)
                joined[names[0]] = Atom(names, shape, triple[0].role, axis if len(shape) > 1 else 0)
                break
    inside = {name for atom in joined.values() for name in atom.names}
    kept = (joined.get(atom.names[0], atom) for atom in atoms)
    return [atom for atom in kept if len(atom.names) > 1 or atom.names[0] not in inside]


def _assigned(
    ours: Sequence[Atom], theirs: Sequence[Atom], weights: tuple[float, ...]
) -> list[tuple[Atom | None, Atom | None]] | None:
    """Pair atoms at the least cost; a buffer may stay alone. None: a parameter would."""
    if not ours or not theirs:
        pairs: list[tuple[Atom | None, Atom | None]] = []
    else:
        cost = np.array([[_cost(a, b, weights) for b in theirs] for a in ours])
        cost += weights[0] * _order_cost(ours, theirs)
        rows, columns = linear_sum_assignment(cost)
        places = [(i, j) for i, j in zip(rows, columns, strict=True) if cost[i, j] < IMPOSSIBLE]
        pairs = [(ours[i], theirs[j]) for i, j in places]
    paired = {id(atom) for pair in pairs for atom in pair}
    alone = [atom for atom in (*ours, *theirs) if id(atom) not in paired]
    if any(atom.role != "statistic" for atom in alone):
        return None
    pairs += [(atom, None) for atom in ours if id(atom) not in paired]
    return [*pairs, *((None, atom) for atom in theirs if id(atom) not in paired)]


def _cost(a: Atom, b: Atom, weights: tuple[float, ...]) -> float:
    if (a.role == "statistic") != (b.role == "statistic") or (way := _way(a.shape, b.shape)) is None:
        return IMPOSSIBLE
    _, last, words, role = weights
    ours, theirs = a.words, b.words
    ends = float(ours[-1:] != theirs[-1:])
    unlike = 1 - SequenceMatcher(None, ours, theirs, autojunk=False).ratio()
    return last * ends + words * unlike + role * (a.role != b.role) + 3.0 * (way != SAME)


def _order_cost(ours: Sequence[Atom], theirs: Sequence[Atom]) -> Any:
    """How far apart two atoms are among those with as many numbers and the same last word, as parts of 1."""

    def places(atoms: Sequence[Atom]) -> list[float]:
        kinds = [(int(np.prod(atom.shape)), atom.words[-1:], atom.role == "statistic") for atom in atoms]
        return [kinds[:i].count(kind) / kinds.count(kind) for i, kind in enumerate(kinds)]

    return abs(np.array(places(ours))[:, None] - np.array(places(theirs))[None, :])


@dataclass(frozen=True, slots=True)
class Way:
    """How one shape becomes another: by another order of axes, with or without axes of length 1."""

    axes: tuple[int, ...] | None = None
    before: Shape | None = None  # into this shape first
    after: bool = False  # into the target's own shape last

    def to(self, target: Any) -> Any:
        """Write it around a target."""
        if self.after:
            target = reshape(target)
        if self.axes:
            target = transpose(target, None if self.axes == (1, 0) else self.axes)
        return reshape(target, self.before) if self.before else target


SAME, TURNED, RESHAPED = Way(), Way((1, 0)), Way(after=True)


def _way(ours: Shape, theirs: Shape) -> Way | None:
    """Return how one shape becomes another; None: not at all."""
    if ours == theirs:
        return SAME
    if np.prod(ours) != np.prod(theirs):
        return None
    if axes := _axes(ours, theirs):
        return Way(axes)
    one, other = (tuple(n for n in shape if n != 1) for shape in (ours, theirs))
    if axes := _axes(one, other):
        return Way(axes, one if one != ours else None, other != theirs)
    return RESHAPED


def _axes(ours: Shape, theirs: Shape) -> tuple[int, ...] | None:
    if len(ours) != len(theirs) or len(ours) > 4:
        return None
    orders = ((1, 0), (2, 3, 1, 0), (3, 2, 0, 1), *permutations(range(len(ours))))
    fitting = (axes for axes in orders if len(axes) == len(ours) and tuple(ours[axis] for axis in axes) == theirs)
    axes = next(fitting, None)
    return None if axes == tuple(range(len(ours))) else axes


def _turns(pairs: Sequence[tuple[Atom | None, Atom | None]]) -> bool:
    """Whether some matrix is transposed, so that square ones may be too."""
    ways = [_way(a.shape, b.shape) for a, b in pairs if a and b]
    return any(way is not None and way.axes == (1, 0) for way in ways)


def _entry(a: Atom | None, b: Atom | None, turn: bool) -> tuple[Any, Any]:
    """Write a pair as an entry of `rename`."""
    if a is None or b is None:
        alone = a or b
        assert alone is not None
        return (alone.names[0], None) if b is None else (None, alone.names[0])
    way = _way(a.shape, b.shape) or SAME
    if way == SAME and turn and len(a.shape) == 2 and a.shape[0] == a.shape[1]:
        way = TURNED
    target: Any = b.names[0]
    if len(b.names) > 1:
        target = split(*b.names, axis=b.axis) if b.axis or way != SAME else b.names
    if way != SAME:
        target = way.to(target)
    if len(a.names) == 1:
        return a.names[0], target
    return a.names, concat(target, a.axis) if a.axis else target
