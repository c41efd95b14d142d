"""P1, P3 and P4 of a capture that an engine outside tlx wrote: what both captures hold, and nothing else.

A float64 engine is judged by the limits of tlx's own backends. One that has float32 only is judged by what float32 does
to the reference: each distance is a multiple of the reference's own scatter, and the median of the batches counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tlx.proof.artifact import Capture, Record
from tlx.proof.envelope import ENVELOPE
from tlx.proof.inputs import absent_side, counted, measured, union
from tlx.proof.measure import Sketches, distances, flips, relative, sha256, sketch, unbundle
from tlx.proof.passes import loss_error
from tlx.proof.replays import LIMIT
from tlx.proof.result import Kind, Row, Stage
from tlx.proof.serving import recorded_outputs

UNIT = 2.0**-23  # of float32: the least scatter, as a tensor may happen to be rounded less
FLOAT32, FLOAT64 = "float32", "float64"


def single(a: Capture, b: Capture) -> bool:
    """Whether the comparison is in float32, as a side has no other precision."""
    return FLOAT32 in (a.precision, b.precision)


def not_run(id: str, why: str) -> Stage:
    """Return a stage that was not run; `tlx.proof.words` has the words for the reason."""
    return Stage(id, None, None, None, facts={"why": why})


def judged(id: str, a: Capture, b: Capture, rows: list[Row]) -> Stage:
    """Make a stage of rows that both sides have; without any, it was not run."""
    if all(row.missing for row in rows):
        return not_run(id, "nothing shared")
    facts = {"engine": True, "float32": single(a, b)}
    return measured(id, ENVELOPE if single(a, b) else LIMIT, rows, facts)


def compare_weights(a: Capture, b: Capture) -> Stage:
    """P1: the numbers of every array. Their dtypes may differ, and an engine needs no counters."""
    left, right = a.records["P1"].arrays(), b.records["P1"].arrays()
    rows = []
    for name in union(left, right):
        x, y = left.get(name), right.get(name)
        counter = any(z is not None and z.dtype.kind != "f" for z in (x, y))
        if (x is None or y is None) and counter:
            continue
        if x is None or y is None:
            rows.append(Row(kind="weight", path=name, error=math.inf, passed=False, missing=absent_side(x, y)))
            continue
        equal = x.shape == y.shape and sha256(x.astype(np.float64)) == sha256(y.astype(np.float64))
        error = 0.0 if equal else relative(x, y) or math.inf
        shown = (list(x.shape), list(y.shape)) if x.shape != y.shape else None
        rows.append(Row(kind="weight", path=name, error=error, passed=equal, values=shown))
    return counted("P1", rows, {"arrays": len(left), "engine": True})


def compare_evaluation(a: Capture, b: Capture) -> Stage:
    """P3: the outputs that both captures hold, and the logits."""
    scatter = _scatter_of_outputs(a, "P3")
    if single(a, b) and scatter is None:
        return not_run("P3", "no scatter")
    rows = _output_rows(a, b, "P3", scatter or {})
    logits = [c.records["P3/logits"].array("logits") for c in (a, b) if "P3/logits" in c.records]
    if len(logits) == 2:
        own = float.fromhex(a.records["P3/float32"].facts["logits"]) if scatter is not None else 0.0
        rows.append(_row(a, b, "logits", "", relative(logits[0], logits[1]), own))
    return judged("P3", a, b, rows)


def compare_backward(a: Capture, b: Capture) -> Stage:
    """P4: outputs, loss, buffers, and gradients from the last module back, of each batch that both captures hold."""
    scatter = _scatter_of_outputs(a, "P4")
    if single(a, b) and (scatter is None or not a.stage("P8/float32")):
        return not_run("P4", "no scatter")
    passes = [(_Pass(a, n), _Pass(b, n)) for n in _batches(b)]
    rows = _output_rows(a, b, "P4", scatter or {})
    losses = [_loss_distances(x, y) for x, y in passes if x.loss is not None and y.loss is not None]
    if losses:
        x, y = passes[0]
        rows.append(_median_row(a, b, "loss", "", losses, (x.loss, y.loss)))
    kinds: tuple[tuple[Kind, str], ...] = (("buffer", "buffers"), ("gradient", "gradients"))
    order = a.records["P1"].files if "P1" in a.records else {}
    for kind, what in kinds:
        named = [_named_distances(x, y, what) for x, y in passes]
        found = dict.fromkeys(name for of_batch in named for name in of_batch)
        names = [*(name for name in order if name in found), *(name for name in found if name not in order)]
        for name in reversed(names) if kind == "gradient" else names:
            pairs = [of_batch[name] for of_batch in named if name in of_batch]
            rows.append(_median_row(a, b, kind, name, pairs))
    return judged("P4", a, b, rows)


class _Pass:
    """One training batch of a capture: the mean loss, and sketches of gradients and buffers, at each precision."""

    def __init__(self, c: Capture, number: int) -> None:
        self.capture, self.number = c, number
        self.samples = 1 if c.engine else samples(c.records.get(f"P2/train/0000/{number:04d}"))
        main = c.records.get("P4/loss") if number == 0 else self._of(FLOAT64)
        self.loss = self._mean(main if main is not None else self._of(c.precision))

    def sketches(self, what: str, kind: str) -> Sketches:
        """Return the sketches of "gradients" or "buffers", computed as `kind` says, such as "float32-nudged"."""
        record = self._of(kind)
        if record is not None:
            return unbundle(record.facts[what], record.array(what))
        whole = self.capture.records.get(f"P4/{what}")
        if self.number or kind != self.capture.precision or whole is None:
            return {}
        return {name: (array.shape, sketch(array)) for name, array in whole.arrays().items()}

    def scatter_of_loss(self) -> float:
        """Return how far float32 moves the loss of the reference."""
        exact, plain, nudged = (self._mean(self._of(kind)) for kind in (FLOAT64, FLOAT32, "float32-nudged"))
        if exact is None or plain is None or nudged is None:
            return math.inf
        return max(loss_error(exact, plain), loss_error(plain, nudged))

    def _of(self, kind: str) -> Record | None:
        return self.capture.records.get(f"P8/{kind}/{self.number}")

    def _mean(self, record: Record | None) -> float | None:
        if record is None or not isinstance(record.facts.get("loss"), str):
            return None
        try:
            return float.fromhex(record.facts["loss"]) / self.samples
        except (ValueError, OverflowError):
            return None


def samples(record: Record | None) -> int:
    """Return how many samples a batch of P2 has, at least 1; tlx records a loss as the sum over them."""
    return max(len(record.facts["labels"]), 1) if record is not None else 1


def _batches(c: Capture) -> list[int]:
    numbers = {int(record.key.rpartition("/")[2]) for record in c.stage(f"P8/{c.precision}")}
    return sorted(numbers | {0})


def _loss_distances(x: _Pass, y: _Pass) -> tuple[float, float]:
    assert x.loss is not None and y.loss is not None
    return loss_error(x.loss, y.loss), x.scatter_of_loss()


def _named_distances(x: _Pass, y: _Pass, what: str) -> dict[str, tuple[float, float]]:
    """Return for each array that both have the distance, and what float32 does to the reference's."""
    ours, theirs = x.sketches(what, x.capture.precision), y.sketches(what, y.capture.precision)
    shared = {name: part for name, part in ours.items() if name in theirs}
    apart = distances(shared, {name: theirs[name] for name in shared})
    plain, nudged = (x.sketches(what, kind) for kind in (FLOAT32, "float32-nudged"))
    rounded, moved = distances(ours, plain), distances(plain, nudged)
    return {name: (apart[name], max(rounded[name], moved.get(name, math.inf))) for name in shared}


def _scatter_of_outputs(a: Capture, stage: str) -> Mapping[str, str] | None:
    record = a.records.get(f"{stage}/float32")
    return None if record is None else dict(record.facts["outputs"])


def _output_rows(a: Capture, b: Capture, stage: str, scatter: Mapping[str, str]) -> list[Row]:
    left, right = (recorded_outputs(c.stage(f"{stage}/visit")) for c in (a, b))
    widest = max(map(float.fromhex, scatter.values()), default=0.0)
    rows = []
    for name in union(left, right):
        if name not in left or name not in right:
            side = absent_side(left.get(name), right.get(name))
            rows.append(Row(kind="output", path=name, error=0.0, passed=True, missing=side))
            continue
        x, y = (record.needed(array) for record, array in (left[name], right[name]))
        flipped = flips(x, y) if x.shape == y.shape else 0
        own = float.fromhex(scatter[name]) if name in scatter else widest
        rows.append(_row(a, b, "output", name, relative(x, y), own, flipped))
    return rows


def _row(a: Capture, b: Capture, kind: Kind, path: str, error: float, scatter: float, flipped: int = 0) -> Row:
    if single(a, b):
        error = _over(error, scatter)
    return Row(kind=kind, path=path, error=error, passed=error <= _limit(a, b), flips=flipped)


def _median_row(
    a: Capture, b: Capture, kind: Kind, path: str, found: Iterable[tuple[float, float]], values: Any = None
) -> Row:
    """Return the row of an array, of which each batch gives the distance and the scatter."""
    errors = [_over(*pair) if single(a, b) else pair[0] for pair in found]
    # One ReLU that falls on the other side of zero changes a batch by up to some percent, so the median counts.
    error = statistics.median_high(errors) if single(a, b) and math.inf not in errors else max(errors)
    return Row(kind=kind, path=path, error=error, passed=error <= _limit(a, b), values=values)


def _over(error: float, scatter: float) -> float:
    """Return a distance as a multiple of the reference's own scatter; NaN counts as infinitely far."""
    if not math.isfinite(error) or math.isnan(scatter):
        return math.inf
    return error / max(scatter, UNIT)


def _limit(a: Capture, b: Capture) -> float:
    return ENVELOPE if single(a, b) else LIMIT
