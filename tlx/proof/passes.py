"""P3 and P4: every module's output, the loss, the buffers and the gradients of one batch, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tlx.backend import Array
from tlx.proof.artifact import MODULE, Capture, Record
from tlx.proof.inputs import absent_side, measured, union
from tlx.proof.measure import flips, floor_of, relative
from tlx.proof.result import Kind, Row, Stage

# Rounding in float64 was measured at 1e-15 to 1e-12, changes of meaning from 2e-7 up.
LIMIT = 1e-10


def compare_evaluation(a: Capture, b: Capture) -> Stage:
    """P3: the outputs of all modules and the logits, in eval mode."""
    rows = _output_rows(a, b, "P3")
    error = relative(a.records["P3/logits"].array("logits"), b.records["P3/logits"].array("logits"))
    rows.append(Row(kind="logits", error=error, passed=error <= LIMIT))
    return measured("P3", LIMIT, rows)


def compare_backward(a: Capture, b: Capture) -> Stage:
    """P4: outputs, loss, buffers, then gradients, from the last module back."""
    rows = _output_rows(a, b, "P4")
    records = [c.records["P4/loss"].facts for c in (a, b)]
    losses = float.fromhex(records[0]["loss"]), float.fromhex(records[1]["loss"])
    error = loss_error(*losses)
    rows.append(Row(kind="loss", error=error, passed=error <= LIMIT, values=losses))
    counts = records[0]["correct"], records[1]["correct"]
    rows.append(
        Row(kind="correct", error=float(abs(counts[0] - counts[1])), passed=counts[0] == counts[1], values=counts)
    )
    buffers = [c.records["P4/buffers"].arrays() for c in (a, b)]
    gradients = [c.records["P4/gradients"].arrays() for c in (a, b)]
    rows += _array_rows("buffer", *buffers)
    rows += reversed(_array_rows("gradient", *gradients))
    return measured("P4", LIMIT, rows)


def loss_error(reference: float, candidate: float) -> float:
    """Return the relative distance of two losses; infinity where one is not finite."""
    if not (math.isfinite(reference) and math.isfinite(candidate)):
        return math.inf
    return abs(reference - candidate) / (abs(reference) or 1)


def _array_rows(kind: Kind, left: Mapping[str, Array], right: Mapping[str, Array]) -> list[Row]:
    floor = floor_of(list(left.values()))
    errors = {name: relative(left.get(name), right.get(name), floor) for name in union(left, right)}
    return [Row(kind=kind, path=name, error=error, passed=error <= LIMIT) for name, error in errors.items()]


def module_outputs(records: Iterable[Record]) -> dict[str, Record]:
    """Return the visits of modules that own parameters, by path; a second call of one module is path#2."""
    visits: dict[str, Record] = {}
    for record in records:
        if "output" not in record.files:
            continue
        path, number = str(record.facts["path"]), 2
        name = path
        while name in visits:
            name, number = f"{path}#{number}", number + 1
        visits[name] = record
    return visits


def _output_rows(a: Capture, b: Capture, stage: str) -> list[Row]:
    left, right = module_outputs(a.stage(f"{stage}/visit")), module_outputs(b.stage(f"{stage}/visit"))
    own = a.manifest["must"]["model"] == MODULE  # a port may compute with functions what the reference has modules for
    rows = []
    for name in union(left, right):
        if name not in left or name not in right:
            side = absent_side(left.get(name), right.get(name))
            rows.append(Row(kind="output", path=name, error=0.0 if own else math.inf, passed=own, missing=side))
            continue
        x, y = left[name].array("output"), right[name].array("output")
        if own and x is not None and y is not None and x.shape != y.shape and x.size == y.size:
            continue  # the same numbers in another layout cannot be told from others
        error = relative(x, y)
        flipped = flips(x, y) if x is not None and y is not None and x.shape == y.shape else 0
        rows.append(Row(kind="output", path=name, error=error, passed=error <= LIMIT, flips=flipped))
    if list(left) != list(right) and not own and all(row.passed for row in rows):
        rows.append(Row(kind="order", error=math.inf, passed=False))
    return rows
