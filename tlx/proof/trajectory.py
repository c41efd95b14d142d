"""P6: the production loop in float64, judged by what the reference itself does when it is moved by one unit.

Two right backends differ by rounding, and training amplifies that: over 40 steps by nothing much (ResNet-18, SGD) or to
half of everything (MobileNetV2 from random weights, as does PyTorch against itself from weights that are one float64
unit off). So no fixed limit tells rounding from a change of meaning. What is measured instead:

- Steps that start from the reference's own state, on both sides: one step amplifies little. Each array's distance
  stands beside the scatter of the reference, which took the same step from states one float64 unit off.
- The free run, beside how far the reference's free runs from such initial values lie apart. A ReLU input within
  rounding of zero sets gradients apart by a percent and more, and of millions some lie that near as soon as the runs
  are 1e-10 apart, so from there on a free run shows nothing, and is no gate. The same holds for a single step.

Distances are of whole arrays. Those of single elements would say more only where a few elements scatter so much that a
change of the others is lost among them; how much could be lost is measured, too, as a part of each array's update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import numpy as np

from tlx.proof.artifact import Capture, Record
from tlx.proof.inputs import absent_side, union
from tlx.proof.measure import Sketches, distances, floor_of, unbundle
from tlx.proof.passes import loss_error
from tlx.proof.result import SIDES, Quantity, Row, Side, Stage
from tlx.proof.updates import split_slot

# How many times the reference's own scatter is allowed. PyTorch and OneFlow, from random weights, were at most 51 times
# as far apart, or 510 times in the free run (efficientnet_b7, AdamW, 64 px). As scatter is 1e-16 to 1e-12 of an array,
# what is 100 times that is still far below any change of meaning.
FACTOR = 100.0
# Of the free run so many times more: rounding enters each of its steps anew, and the reference's other run was moved
# once. After 23 steps of inception_v3 (AdamW, 80 px) the loss was 118 times as far apart.
ANEW = 10.0
# What counts as scatter at least, as a relative L2 distance: sums in another order differ by more than one unit.
LEAST = 1e-14
# And of what follows from sums over images and pixels: gradients, and the loss behind the statistics of norm layers.
# Where each of n terms moves by a unit, the sum hardly moves; in another order of adding up it moves by as much as the
# root of n more: 90 for a channel of 8 images of 32 by 32. With AdamW at 64 px, squared gradients of shufflenet_v2_x0_5
# that scatter by 9e-15 were 1.3e-12 apart, in one step of 8; of regnet_x_400mf, whose first norm layer alone sets its
# outputs 9e-15 apart, the loss, which scatters by 1e-15, was 8e-13 apart.
LEAST_OF_SUMS = 1e-13
SILENT = 1e-10  # where the reference's own runs, or gradients of a step, are farther apart, nothing is shown
FIXED = 1e-9  # the limit where a capture holds no scatter, as those of tlx 0.1.0
NEEDED = 40  # steps that a trajectory must have at least

ALIKE = 1e-6  # the part of an update by which it may differ from a multiple of another
LARGE = 128  # pixels, above which the last maps are not of one pixel

Place = tuple[Quantity, str]  # what of a step, and the key of its array
EXACT: tuple[Quantity, ...] = ("scales", "max_norm", "hyper")
SUMS: tuple[Quantity, ...] = ("loss", "gradients", "slots")
KINDS: tuple[Quantity, ...] = ("gradients", "slots", "values", "average")
ORDER: tuple[Quantity, ...] = (*EXACT, "loss", "correct", *KINDS)  # what comes first in a step is named first


def steps_of(c: Capture) -> dict[str, Record]:
    """Return the records of a capture's free run by key: one a step."""
    return {record.key: record for record in c.stage("P6") if record.key[3:].isdecimal()}


def compare_trajectory(a: Capture, b: Capture) -> Stage:
    """P6: single steps from the reference's own states, then the free run; each beside the reference's own scatter."""
    locked = list(_locked(a, b))
    free = _Free(a, b)
    rows = [*(step.row for step in locked), *free.rows]
    steps = len(steps_of(a))
    judged = [row.error for row in rows if not row.silent]
    facts: dict[str, Any] = {
        **{"steps": steps, "needed": NEEDED, "silent": free.silent, "stopped": free.stopped},
        **{
            "locked": sum(not step.row.silent for step in locked),
            "scatter": free.scattered,
            **_strength(locked),
            "stronger": _stronger(a),
        },
    }
    passed = all(row.passed for row in rows)
    if passed and (why := _too_little(facts)):
        return Stage("P6", float(steps), NEEDED, None, tuple(rows), {**facts, "why": why}, enough=False)
    limit = FACTOR if free.scattered else FIXED
    return Stage("P6", max(judged, default=math.inf), limit, passed and bool(rows), tuple(rows), facts)


def _too_little(facts: Mapping[str, Any]) -> str:
    """Say why equal rows show nothing: what was not run; empty where they do."""
    if facts["stopped"]:
        return "stopped"
    if facts["steps"] < NEEDED:
        return "few"
    return "" if facts["locked"] or facts["silent"] is None else "silent"


@dataclass(frozen=True, slots=True)
class _Distance:
    """How far apart the two sides are at one place, and the reference from itself; both as relative L2 distances."""

    apart: float
    scatter: float
    least: float = LEAST
    anew: float = 1.0  # how many times the scatter is taken

    @property
    def ratio(self) -> float:
        """The distance as a multiple of the scatter."""
        return self.apart / (self.anew * max(self.scatter, self.least))


@dataclass(frozen=True, slots=True)
class _Step:
    """A step from the reference's own state: its row, and how small a part of each array's update it would show."""

    row: Row
    shown: Mapping[str, float]


def _locked(a: Capture, b: Capture) -> Iterator[_Step]:
    """Compare each step that both sides took from the same state."""
    theirs = {record.key: record for record in b.stage("P6/locked")}
    stopped = error_of(b, "P6/locked")
    scatters = _numbers(a, "P6/scatter")
    pairs, end = list[tuple[Record, Record, dict[Place, _Distance]]](), None
    for x in (record for record in a.stage("P6/locked") if record.key != "P6/locked/error"):
        number = int(x.key.rpartition("/")[2])
        y = theirs.get(x.key)
        if y is None and stopped:
            end = _Step(_missing("locked", number, "candidate", stopped), {})
            break
        nudged = [r for m in scatters if (r := a.records.get(f"P6/scatter/{m}/{number:04d}"))]
        if y is not None and y.facts["start"] == x.facts["start"] and nudged:
            pairs.append((x, y, _distances(x, y, nudged)))
    usual = _usual_scatter([found for _, _, found in pairs if not _silent(found)])
    for x, y, found in pairs:
        raised = _raised(found, usual)
        row = _row("locked", x, raised, silent=_silent(found))
        if row.quantity == "values" and not row.passed:
            row = replace(row, factor=_factor(_moves(a, x), _moves(a, y), row.path))
        yield _Step(row, {} if row.silent else _shown(_moves(a, x), x, raised))
    if end is not None:
        yield end


def _silent(found: Mapping[Place, _Distance]) -> bool:
    """Whether the reference itself is so far apart in a step that nothing is shown."""
    return max((d.scatter for place, d in found.items() if place[0] in ("loss", "gradients")), default=0.0) > SILENT


def _usual_scatter(steps: Sequence[Mapping[Place, _Distance]]) -> dict[Place, float]:
    """Return the median of each array's scatter over the steps: in one of them two runs are near by chance."""
    at: dict[Place, list[float]] = {}
    for found in steps:
        for place, distance in found.items():
            if place[0] in KINDS:
                at.setdefault(place, []).append(distance.scatter)
    return {place: median(scatters) for place, scatters in at.items()}


def _raised(found: Mapping[Place, _Distance], usual: Mapping[Place, float]) -> dict[Place, _Distance]:
    """Raise each array's scatter to the usual one, and a slot's to its gradient's, which enters it in this step."""
    raised = {place: replace(d, scatter=max(d.scatter, usual.get(place, 0.0))) for place, d in found.items()}
    for (quantity, key), distance in raised.items():
        gradient = raised.get(("gradients", split_slot(key)[0])) if quantity == "slots" else None
        if gradient is not None and gradient.scatter > distance.scatter:
            raised[quantity, key] = replace(distance, scatter=gradient.scatter)
    return raised


def _moves(a: Capture, after: Record) -> Sketches:
    """Return by how much a step moves each value, from the state that it starts from."""
    start = a.records.get(f"P6/start/{after.key.rpartition('/')[2]}")
    if start is None:
        return {}
    before = unbundle(start.facts["sketch"], start.array("sketch"))
    values = unbundle(after.facts.get("values", []), after.array("values"))
    pairs = {name: (now, before[f"values/{name}"]) for name, now in values.items() if f"values/{name}" in before}
    return {
        name: (new[0], new[1] - old[1])
        for name, (new, old) in pairs.items()
        if (new[0], new[1].shape) == (old[0], old[1].shape)
    }


def _factor(ours: Sketches, theirs: Sketches, name: str) -> float | None:
    """Return which multiple of the reference's update of an array the candidate's is; None where it is none."""
    x, y = (moves[name][1] if name in moves else np.zeros(0) for moves in (ours, theirs))
    if x.shape != y.shape or not x.any():
        return None
    factor = float(x @ y / (x @ x))
    return factor if np.linalg.norm(y - factor * x) <= ALIKE * np.linalg.norm(y) else None


def _shown(moves: Sketches, x: Record, found: Mapping[Place, _Distance]) -> dict[str, float]:
    """Return for each array that a step moves, how small a part of its update would be seen: below 1 something."""
    after = unbundle(x.facts.get("values", []), x.array("values"))
    floor = floor_of([part for _, part in after.values()])
    shown = {}
    for name, (_, move) in moves.items():
        moved = float(np.linalg.norm(move)) / (max(float(np.linalg.norm(after[name][1])), floor) or 1.0)
        if moved > 0 and ("values", name) in found:
            shown[name] = FACTOR * max(found["values", name].scatter, LEAST) / moved
    return shown


def _strength(steps: Sequence[_Step]) -> dict[str, Any]:
    """Say how strong the single steps are: which part of an array's update could change unseen.

    "weak" are the arrays of which a whole update could, as where it is rounding alone, "shown" is of the others.
    """
    best: dict[str, float] = {}
    for step in steps:
        for name, part in step.shown.items():
            best[name] = min(part, best.get(name, math.inf))
    if not best:
        return {}
    weak = [name for name, part in best.items() if part >= 1]
    shown = {name: part for name, part in best.items() if part < 1}
    facts: dict[str, Any] = {"moved": len(best), "weak": len(weak), "weakest": max(best, key=lambda name: best[name])}
    return {**facts, "shown": max(shown.values())} if shown else facts


def _stronger(c: Capture) -> list[str]:
    """Name what would amplify rounding less."""
    recipe = c.manifest["recipe"]
    size = recipe.get("image_size")
    known = {
        "pretrained weights": recipe.get("weights") == "none",
        "SGD": recipe.get("optimizer") != "sgd",
        "larger images": isinstance(size, int) and size < LARGE,
    }
    return [name for name, helps in known.items() if helps]


class _Free:
    """The free run: its rows, and the step from which on it shows nothing."""

    def __init__(self, a: Capture, b: Capture) -> None:
        """Compare the free runs of two captures."""
        self.scattered = bool(_numbers(a, "P6/envelope"))
        self.silent: int | None = None  # the first step that shows nothing
        self.stopped = ""  # why both sides stopped at the same step
        self.rows = list(self._compared(a, b))

    def _compared(self, a: Capture, b: Capture) -> Iterator[Row]:
        left, right = steps_of(a), steps_of(b)
        reach: dict[Quantity, float] = {}  # how far the reference's own runs have been apart so far
        for key in union(left, right):
            x, y = left.get(key), right.get(key)
            if x is None or y is None:
                side = absent_side(x, y)
                yield self._excused(a, b, _missing("step", int(key[3:]), side, error_of(b if y is None else a, "P6")))
                return
            yield self._step(x, y, self._envelope(a, key), reach)
        texts = [error_of(c, "P6") for c in (a, b)]
        if all(texts):
            self.stopped = texts[0]
            return
        for side, text in zip(SIDES, texts, strict=True):
            if text:
                row = Row(kind="end", error=math.inf, passed=False, side=side, stopped=text)
                yield self._excused(a, b, row)

    def _excused(self, a: Capture, b: Capture, end: Row) -> Row:
        """Pass a side that went astray alone, where the reference's own runs do not stay together either."""
        moved = any(record.facts.get("moved") for c in (a, b) if (record := c.records.get("P6/error")))
        return replace(end, passed=True, silent=True) if self.silent is not None and not moved else end

    def _step(self, x: Record, y: Record, envelope: Sequence[Record], reach: dict[Quantity, float]) -> Row:
        found = _distances(x, y, envelope)
        if not self.scattered:
            return _row("step", x, found, fixed=True)
        for (quantity, _), distance in found.items():
            reach[quantity] = max(reach.get(quantity, 0.0), distance.scatter)
        number = int(x.key[3:])
        far = not envelope or max(reach[quantity] for quantity in ("loss", *KINDS) if quantity in reach) > SILENT
        self.silent = number if self.silent is None and far else self.silent
        within = {place: replace(d, scatter=reach[place[0]], anew=ANEW) for place, d in found.items()}
        return _row("step", x, within, silent=self.silent is not None)

    def _envelope(self, a: Capture, key: str) -> list[Record]:
        numbers = _numbers(a, "P6/envelope")
        return [r for m in numbers if (r := a.records.get(f"P6/envelope/{m}/{key[3:]}"))]


def error_of(c: Capture, stage: str) -> str:
    """Return the error that ended a capture's training; empty where there is none."""
    record = c.records.get(f"{stage}/error")
    return str(record.facts["text"]) if record else ""


def _numbers(c: Capture, stage: str) -> list[str]:
    """Return which times a reference ran again: the names between the stage and the step."""
    return list(dict.fromkeys(record.key.split("/")[2] for record in c.stage(stage)))


def _missing(kind: Literal["locked", "step"], number: int, side: Side, stopped: str) -> Row:
    return Row(kind=kind, number=number, error=math.inf, passed=False, missing=side, stopped=stopped)


def _distances(x: Record, y: Record, nudged: Sequence[Record]) -> dict[Place, _Distance]:
    """Return the distances at all places of a step, and those of the reference from itself."""
    scatter: dict[Place, float] = {}
    for other in nudged:
        for place, apart in _apart(x, other).items():
            scatter[place] = max(apart, scatter.get(place, 0.0))
    return {
        place: _Distance(apart, scatter.get(place, 0.0), LEAST_OF_SUMS if place[0] in SUMS else LEAST)
        for place, apart in _apart(x, y).items()
    }


def _apart(x: Record, y: Record) -> dict[Place, float]:
    apart: dict[Place, float] = {
        (fact, ""): math.inf for fact in EXACT if fact in x.facts and x.facts[fact] != y.facts.get(fact, x.facts[fact])
    }
    apart["loss", ""] = loss_error(*(float.fromhex(record.facts["loss"]) for record in (x, y)))
    apart["correct", ""] = float(abs(x.facts["correct"] - y.facts["correct"]))
    for kind in KINDS:
        if kind in x.facts and kind in y.facts:
            ours, theirs = (unbundle(record.facts[kind], record.array(kind)) for record in (x, y))
            apart |= {(kind, key): error for key, error in distances(ours, theirs).items()}
    return apart


def _row(
    kind: Literal["locked", "step"],
    x: Record,
    found: Mapping[Place, _Distance],
    *,
    fixed: bool = False,
    silent: bool = False,
) -> Row:
    """Make the row of a step; of the places that are too far apart it names the worst of the first kind."""
    errors = {place: d.apart if fixed else d.ratio for place, d in found.items()}
    limit = FIXED if fixed else FACTOR
    wrong = [place for place in found if errors[place] > limit]
    if silent:  # what chaos does not explain
        wrong = [place for place in wrong if place[0] in KINDS and found[place].apart == math.inf]
    first = next((quantity for quantity in ORDER if any(place[0] == quantity for place in wrong)), None)
    place = max((p for p in found if first in (None, p[0])), key=lambda p: errors[p])
    quantity, key = place
    path, slot = split_slot(key) if quantity == "slots" else (key, "")
    return Row(
        kind=kind,
        number=int(x.key.rpartition("/")[2]),
        path=path,
        slot=slot,
        quantity=quantity,
        error=errors[place],
        passed=not wrong,
        events=tuple(map(str, x.facts["events"])),
        apart=found[place].apart,
        scatter=None if fixed else found[place].scatter,
        silent=silent,
        parts=len(x.facts.get("scales", [])),
    )
