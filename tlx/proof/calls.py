"""The calls of modules that two captures hold of one pass, paired by the modules' names."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Literal

import numpy as np

from tlx.backend import Array
from tlx.proof.artifact import Capture, Record
from tlx.proof.measure import FLOOR, distances, relative, unbundle
from tlx.proof.replays import LIMIT, tensors

Key = tuple[str, int]  # a module's path, and which call of it
State = Literal["equal", "different", "incomparable"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module in one capture."""

    record: Record
    path: str
    kind: str
    number: int  # which call of this module, from 1
    depth: int  # how many calls of other modules it lies within

    @property
    def name(self) -> str:
        """The module's path; of a later call with its number, as in relu#2."""
        return self.path if self.number == 1 else f"{self.path}#{self.number}"

    def files(self, what: str) -> set[str]:
        """Name the files of its inputs or outputs; equal arrays of a pass have one."""
        return {file for name, file in self.record.files.items() if name.partition(".")[0] == what}

    @property
    def gives(self) -> bool:
        """Whether its output was recorded: a module may give no tensor."""
        return any(name.partition(".")[0] == "output" for name in self.record.files)


def calls_of(capture: Capture, prefix: str) -> list[Call]:
    """Return the calls below a prefix such as "P3", in order of execution: a module comes after those within it."""
    counts: dict[str, int] = {}
    calls = []
    for record in capture.stage(f"{prefix}/visit"):
        path = str(record.facts["path"])
        counts[path] = counts.get(path, 0) + 1
        call = record.facts.get("call", counts[path])
        calls.append(Call(record, path, str(record.facts["kind"]), call, record.facts.get("depth", 0)))
    return calls


def sizes_of(capture: Capture, stage: str) -> dict[int, str]:
    """Return the further image sizes that a stage was run at, each with the error that it ended with."""
    sizes: dict[int, str] = {}
    for key, record in capture.records.items():
        if match := re.match(rf"{stage}/@(\d+)/(error$)?", key):
            sizes[int(match[1])] = str(record.facts["text"]) if match[2] else ""
    return sizes


@dataclass(frozen=True, eq=False)
class Pair:
    """A call of the reference, and the candidate's of the same module: None where it has none."""

    a: Call
    b: Call | None

    @cached_property
    def inputs(self) -> tuple[Array, ...]:
        """What entered the reference's."""
        return _present(self.a.record, "input")

    @cached_property
    def their_inputs(self) -> tuple[Array, ...]:
        """What entered the candidate's."""
        return () if self.b is None else _present(self.b.record, "input")

    @cached_property
    def floor(self) -> float:
        """What a smaller norm is measured against: an output that is zero but for rounding has no direction."""
        return FLOOR * max((_norm(x) for x in self.inputs if x.dtype.kind == "f"), default=0.0)

    @cached_property
    def entered(self) -> State:
        """Whether the same entered both; that is not known where no tensor was seen to enter."""
        if not self.inputs or len(self.inputs) != len(self.their_inputs):
            return "incomparable"
        pairs = list(zip(self.inputs, self.their_inputs, strict=True))
        if all(apart(x, y, self.floor) <= LIMIT for x, y in pairs):
            return "equal"
        return "different" if all(x.shape == y.shape for x, y in pairs) else "incomparable"

    @cached_property
    def swapped(self) -> bool:
        """Whether the candidate's inputs are the reference's in another order."""
        ours, theirs = self.inputs, self.their_inputs
        if self.entered == "equal" or not 1 < len(ours) == len(theirs) <= 4:
            return False
        return any(
            all(apart(x, y, self.floor) <= LIMIT for x, y in zip(ours, turned, strict=True))
            for turned in permutations(theirs)
        )

    @cached_property
    def outputs(self) -> list[tuple[Array, Array]]:
        """What both gave, the reference's first."""
        theirs = () if self.b is None else _present(self.b.record, "output")
        return list(zip(_present(self.a.record, "output"), theirs, strict=False))

    @cached_property
    def error(self) -> float:
        """How far apart their outputs are: the largest distance."""
        return max((apart(x, y, self.floor) for x, y in self.outputs), default=math.inf)

    @property
    def gave_equal(self) -> bool:
        """Whether both gave the same."""
        return self.error <= LIMIT

    @cached_property
    def laid_out(self) -> bool:
        """Whether an output lies in memory in another order of its axes."""
        return any(x.shape != y.shape and apart(x, y) <= LIMIT for x, y in self.outputs)

    @cached_property
    def grads_equal(self) -> bool | None:
        """Whether the gradients of the loss to their outputs are equal; None where neither has any."""
        if self.b is None:
            return None
        count = len(self.outputs)
        both = [tensors(c.record, "grad", count)[:count] for c in (self.a, self.b)]
        if not any(grad is not None for grads in both for grad in grads):
            return None
        floor = FLOOR * max((_norm(x) for x in both[0] if x is not None), default=0.0)
        pairs = zip(*both, strict=False)
        return all(
            (x is y is None) or (x is not None and y is not None and apart(x, y, floor) <= LIMIT) for x, y in pairs
        )


def _present(record: Record, what: str) -> tuple[Array, ...]:
    return tuple(array for array in tensors(record, what) if array is not None)


def _norm(array: Array) -> float:
    return float(np.linalg.norm(np.nan_to_num(np.asarray(array, np.float64))))


def apart(x: Array, y: Array, floor: float = 0.0) -> float:
    """Return the relative distance of two tensors; that of the same numbers in another order of axes is 0."""
    if x.shape == y.shape:
        return 0.0 if np.array_equal(x, y, equal_nan=x.dtype.kind == y.dtype.kind == "f") else relative(x, y, floor)
    if x.size == y.size and x.ndim > 1 and y.ndim > 1:
        return 0.0 if relative(np.sort(x, axis=None), np.sort(y, axis=None)) <= LIMIT else math.inf
    return math.inf


class Calls:
    """The calls of one pass on both sides, and how the reference's lie within each other."""

    def __init__(self, a: Capture, b: Capture, prefix: str) -> None:
        """Read and pair the calls below a prefix such as "P4" or "P3/@45"."""
        self.ours, self.theirs = calls_of(a, prefix), calls_of(b, prefix)
        self.pairs = paired(self.ours, self.theirs)
        matched = {id(pair.b) for pair in self.pairs}
        self.only_theirs = [call for call in self.theirs if id(call) not in matched]
        self.replays = _replays(a, b, prefix)

    @property
    def root(self) -> int:
        """The number of the whole model's call; that after the last where it was not recorded."""
        return len(self.ours) - 1 if self.ours and self.ours[-1].path == "" else len(self.ours)

    def children(self, number: int) -> list[int]:
        """Return the calls directly within one, in order; those that only the reference has give way to theirs."""
        depth = self.ours[number].depth if number < len(self.ours) else -1
        found: list[int] = []
        for child in reversed(range(number)):
            if self.ours[child].depth <= depth:
                break
            if self.ours[child].depth == depth + 1:
                found.append(child)
        return [c for f in reversed(found) for c in ([f] if self.pairs[f].b is not None else self.children(f))]

    def around(self, number: int) -> list[int]:
        """Return the calls that one lies within, innermost first."""
        depth, found = self.ours[number].depth, []
        for other in range(number + 1, len(self.ours)):
            if self.ours[other].depth < depth:
                found.append(other)
                depth = self.ours[other].depth
        return found

    def differs_alone(self, number: int, kinds: Collection[str] = ("forward", "gradients")) -> bool | None:
        """Whether a module, fed the reference's own inputs, gives something else; None where that is not known."""
        if number >= len(self.pairs):
            return None
        pair = self.pairs[number]
        errors = self.errors_alone(number, kinds)
        if errors is None:
            return None
        if all(error <= LIMIT for error in errors.values()):
            return False
        shapes = [[x.shape for x in inputs] for inputs in (pair.inputs, pair.their_inputs)]
        return True if shapes[0] == shapes[1] else None  # what it does with inputs of other shapes shows nothing

    def errors_alone(self, number: int, kinds: Collection[str] = ("forward", "gradients")) -> dict[str, float] | None:
        """Return how far apart the two are when both are fed the same, by what is compared; None: not repeated."""
        records = self.replays.get(self._key(number))
        if records is None:
            return None
        a, b = records
        errors: dict[str, float] = {}
        for kind in kinds:
            if kind in a.facts and kind in b.facts:
                ours, theirs = (unbundle(r.facts[kind], r.array(kind)) for r in (a, b))
                if kind == "forward":  # one side may give more, which the other has no use for
                    theirs = {n: s for n, s in theirs.items() if n in ours or "gradient" in n}
                    ours = {n: s for n, s in ours.items() if n in theirs or "gradient" in n}
                errors |= distances(ours, theirs) if ours else {}
        return errors or None

    def _key(self, number: int) -> Key:
        call = self.ours[number]
        return call.path, call.number


def _replays(a: Capture, b: Capture, prefix: str) -> dict[Key, tuple[Record, Record]]:
    """Return the records of each call that was repeated on both sides with the same arrays."""
    if b.manifest.get("replayed") != a.manifest.get("inputs"):
        return {}
    ours, theirs = (_by_call(c.stage(f"{prefix}/replay")) for c in (a, b))
    return {
        key: (record, theirs[key])
        for key, record in ours.items()
        if key in theirs and "why" not in record.facts and "why" not in theirs[key].facts
    }


def why_not_replayed(a: Capture, b: Capture, prefix: str) -> dict[Key, str]:
    """Return the calls that could not be repeated on one side, and why."""
    reasons: dict[Key, str] = {}
    for capture in (b, a):
        for key, record in _by_call(capture.stage(f"{prefix}/replay")).items():
            if "why" in record.facts:
                reasons[key] = str(record.facts["why"])
    return reasons


def _by_call(records: Sequence[Record]) -> Mapping[Key, Record]:
    counts: dict[str, int] = {}
    found = {}
    for record in records:
        path = str(record.facts["path"])
        counts[path] = counts.get(path, 0) + 1
        found[path, record.facts.get("call", counts[path])] = record
    return found


def paired(ours: Sequence[Call], theirs: Sequence[Call]) -> list[Pair]:
    """Pair calls by path. Of several calls of one module, those belong together that got the same."""
    by_path: dict[str, list[Call]] = {}
    for call in filter(lambda call: call.gives, theirs):
        by_path.setdefault(call.path, []).append(call)
    counts: dict[str, int] = {}
    for call in filter(lambda call: call.gives, ours):
        counts[call.path] = counts.get(call.path, 0) + 1
    partner: dict[int, Call] = {}
    for path, count in counts.items():
        left, right = [call for call in ours if call.path == path and call.gives], by_path.get(path, [])
        if count == 1 == len(right):
            partner[id(left[0])] = right[0]
            continue
        free = list(right)
        for call in left:
            near = sorted(free, key=lambda other: other.number != call.number)
            same = next((other for other in near if Pair(call, other).entered == "equal"), None)
            if same is not None:
                partner[id(call)] = same
                free.remove(same)
        if count == len(right):  # else it is not known which is which
            for call, other in zip([c for c in left if id(c) not in partner], free, strict=True):
                partner[id(call)] = other
    return [Pair(call, partner.get(id(call))) for call in ours]
