"""P6 where a loop by hand, or another engine, wrote a side: each step, and what of it is the first to differ.

The limit is that of tlx's own backends, or `FACTOR` times what one unit in the last place of the initial weights has
moved the reference by until then, where the reference recorded that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from tlx.backend import Array
from tlx.proof.artifact import Capture, Record
from tlx.proof.engines import not_run, samples, single
from tlx.proof.inputs import measured
from tlx.proof.measure import Sketches, distances, relative, sketch, unbundle
from tlx.proof.passes import loss_error
from tlx.proof.result import Quantity, Row, Stage
from tlx.proof.updates import split_slot

LIMIT = 1e-9
NEEDED = 40  # steps
FACTOR = 100.0  # times the reference's own envelope: rounding acts at every step, the nudge at the first only
LOST = 1e-2  # an envelope as wide as this hides every difference
KINDS = ("gradients", "slots", "values", "average")
# What of a step can be the cause of what comes after it.
ORDER: tuple[Quantity, ...] = ("loss", "gradients", "hyper", "slots", "values", "average")


@dataclass(frozen=True, slots=True)
class Step:
    """A recorded step: the mean loss, the rates and decays of the groups, and sketches by kind and name."""

    number: int
    loss: float
    hyper: tuple[tuple[float, float | None], ...]
    events: tuple[str, ...]
    parts: Mapping[str, Sketches]


def compare_loop(a: Capture, b: Capture) -> Stage:
    """P6: loss, gradients, rates, optimizer state, values and average of each step, as far as both captures have them.

    Where both have fewer than 40 steps, too little was run.
    """
    left, right = (steps_by_hand(c) for c in (a, b))
    envelope = _Envelope(a, left)
    if single(a, b) and (a.precision != b.precision or not envelope.runs):
        return not_run("P6", "float32 loop")
    shared = _shared_names(left, right)
    rows: list[Row] = []
    before: tuple[Mapping[str, Sketches], Mapping[str, Sketches]]
    before = _initial(a), _initial(b)
    for number, (x, y) in enumerate(zip(left, right, strict=False)):
        rows.append(_step_row(x, y, before, shared, envelope.until(number)))
        before = x.parts, y.parts
    if not rows:
        return not_run("P6", "nothing shared")
    steps = len(rows)
    lost = envelope.lost
    facts = {"engine": True, "steps": steps, "needed": NEEDED, "envelope": bool(envelope.runs), "lost": lost}
    passed = all(row.passed for row in rows)
    if passed and (steps if lost is None else lost) < NEEDED:
        return Stage("P6", float(steps), NEEDED, None, tuple(rows), facts, enough=False)
    return measured("P6", LIMIT, rows, facts)


def steps_by_hand(c: Capture, prefix: str = "P6") -> list[Step]:
    """Return the steps of a free run of a capture, in order; `prefix` may name one from nudged weights."""
    found = [record for key, record in c.records.items() if re.fullmatch(rf"{prefix}/\d+", key)]
    batches = [None] * len(found) if c.engine else [*c.stage("P2/train"), *[None] * len(found)]
    pairs = zip(found, cast("list[Record | None]", batches), strict=False)
    return [_step(record, samples(batch)) for record, batch in pairs]


def _step(record: Record, count: int) -> Step:
    facts = record.facts
    hyper = tuple((float.fromhex(lr), None if wd is None else float.fromhex(wd)) for lr, wd in facts.get("hyper", []))
    parts = {kind: unbundle(facts[kind], record.array(kind)) for kind in KINDS if kind in facts}
    events = tuple(map(str, facts.get("events", ())))
    return Step(int(record.key.rpartition("/")[2]), float.fromhex(facts["loss"]) / count, hyper, events, parts)


def _initial(c: Capture) -> dict[str, Sketches]:
    """Return the sketches of what a capture starts from."""
    arrays = c.records["P1"].arrays() if "P1" in c.records else {}
    return {"values": {name: (array.shape, sketch(array)) for name, array in arrays.items()}}


def _shared_names(left: list[Step], right: list[Step]) -> dict[str, set[str]]:
    """Return by kind the arrays that both captures have at any step."""
    shared = {}
    for kind in KINDS:
        ours, theirs = ({name for step in steps for name in step.parts.get(kind, {})} for steps in (left, right))
        shared[kind] = ours & theirs
    return shared


class _Envelope:
    """How far the reference's nudged runs have departed from its own, by quantity: the farthest so far."""

    def __init__(self, a: Capture, plain: list[Step]) -> None:
        keys = (re.fullmatch(r"P6/envelope/(\d+)/\d+", key) for key in a.records)
        self.runs = sorted({int(key[1]) for key in keys if key})
        self._widths: list[dict[str, float]] = []
        widest: dict[str, float] = {}
        runs = [steps_by_hand(a, f"P6/envelope/{run}") for run in self.runs]
        for steps in zip(plain, *runs, strict=False) if runs else ():
            for nudged in steps[1:]:
                for quantity, error in _apart(steps[0], nudged).items():
                    widest[quantity] = max(widest.get(quantity, 0.0), error)
            self._widths.append(dict(widest))

    def until(self, number: int) -> Mapping[str, float]:
        """Return the limit of each quantity at a step."""
        if not self._widths:
            return {}
        widths = self._widths[min(number, len(self._widths) - 1)]
        return {quantity: max(LIMIT, FACTOR * width) for quantity, width in widths.items()}

    @property
    def lost(self) -> int | None:
        """The first step at which the envelope hides every difference; None where there is none."""
        wide = (n for n, widths in enumerate(self._widths) if max(widths.values(), default=0.0) > LOST)
        return next(wide, None)


def _apart(x: Step, y: Step) -> dict[str, float]:
    """Return how far two steps of the reference are apart, by quantity."""
    errors = {"loss": loss_error(x.loss, y.loss)}
    for kind, ours in x.parts.items():
        theirs = y.parts.get(kind, {})
        found = distances({n: p for n, p in ours.items() if n in theirs}, {n: theirs[n] for n in ours if n in theirs})
        errors[kind] = max((error for error in found.values() if math.isfinite(error)), default=0.0)
    return errors


def _step_row(
    x: Step,
    y: Step,
    before: tuple[Mapping[str, Sketches], Mapping[str, Sketches]],
    shared: Mapping[str, set[str]],
    limits: Mapping[str, float],
) -> Row:
    """Compare a step. What fails first in `ORDER` is what the row is about, else what is farthest apart."""
    errors: dict[tuple[Quantity, str], float] = {("loss", ""): loss_error(x.loss, y.loss)}
    values: tuple[Any, Any] | None = None
    rates = _differing_rates(x, y)
    if rates is not None:
        errors["hyper", ""] = math.inf
    for kind, names in shared.items():
        ours, theirs = ({n: p for n, p in s.parts.get(kind, {}).items() if n in names} for s in (x, y))
        quantity = cast(Quantity, kind)
        errors |= {(quantity, name): error for name, error in distances(ours, theirs).items()}
    failing = {place: e for place, e in errors.items() if not e <= limits.get(place[0], LIMIT)}
    first = next((quantity for quantity in ORDER if any(of == quantity for of, _ in failing)), None)
    chosen = {place: e for place, e in failing.items() if place[0] == first} or errors
    quantity, key = max(chosen, key=lambda place: chosen[place])
    path, slot = split_slot(key) if quantity == "slots" else (key, "")
    if first == "hyper":
        values = rates
    elif first == "loss":
        values = x.loss, y.loss
    elif first is not None:
        values = _common_factor((x, y), before, first, [name for _, name in chosen])
    return Row(
        kind="step",
        number=x.number,
        path=path,
        slot=slot,
        quantity=quantity,
        error=chosen[quantity, key],
        passed=first is None,
        values=values,
        events=x.events,
    )


def _differing_rates(x: Step, y: Step) -> tuple[Any, Any] | None:
    """Return the first rates or decays that both sides give and that differ in any bit.

    One rate alone stands for every group that trains.
    """
    ours, theirs = x.hyper, y.hyper
    if not ours or not theirs:
        return None
    if len(ours) == 1 < len(theirs):
        ours = tuple(ours[0] if rate else (rate, decay) for rate, decay in theirs)
    elif len(theirs) == 1 < len(ours):
        theirs = tuple(theirs[0] if rate else (rate, decay) for rate, decay in ours)
    if len(ours) != len(theirs):
        return f"{len(ours)} groups", f"{len(theirs)} groups"
    for (rate, decay), (other, other_decay) in zip(ours, theirs, strict=True):
        if rate != other:
            return rate, other
        if decay is not None and other_decay is not None and decay != other_decay:
            return f"decay {decay!r}", f"decay {other_decay!r}"
    return None


def _common_factor(
    steps: tuple[Step, Step],
    before: tuple[Mapping[str, Sketches], Mapping[str, Sketches]],
    kind: Quantity,
    names: list[str],
) -> tuple[float, float] | None:
    """Return (1, factor) where each of these arrays, or each update of a value, is the reference's times one factor.

    Sketches are linear, so what is a multiple of another has a sketch that is. None where there is no such factor.
    """
    earlier = [of_side.get(kind, {}) for of_side in before] if kind in ("values", "average") else [None, None]
    ours, theirs = (
        _joined(step.parts.get(kind, {}), of_side, names) for step, of_side in zip(steps, earlier, strict=True)
    )
    if ours is None or theirs is None or ours.shape != theirs.shape or not (square := float(ours @ ours)):
        return None
    factor = float(ours @ theirs) / square
    close = math.isfinite(factor) and abs(factor) > 1e-6 and relative(factor * ours, theirs) < 1e-6
    return (1.0, factor) if close else None


def _joined(parts: Sketches, before: Sketches | None, names: list[str]) -> Array | None:
    """Return sketches end to end; where there are some of before the step, how far it moved them."""
    if not all(name in parts and (before is None or name in before) for name in names):
        return None
    arrays = [np.asarray(parts[name][1], np.float64) for name in names]
    if before is not None:
        earlier = [before[name][1] for name in names]
        if any(x.shape != y.shape for x, y in zip(arrays, earlier, strict=True)):
            return None
        arrays = [x - y for x, y in zip(arrays, earlier, strict=True)]
    joined: Array = np.concatenate([np.zeros(0), *arrays])
    return joined
