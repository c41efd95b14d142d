"""P3 and P4: every module's output, the loss, the buffers and the gradients of one batch, in float64.

Modules are paired by name, never by order. What a module gives counts unless a module around it gives the same on both
sides: a port may share the work out otherwise among its parts, or lay a tensor out otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from tlx.backend import Array
from tlx.proof.artifact import Capture
from tlx.proof.calls import Calls, Pair, sizes_of, why_not_replayed
from tlx.proof.inputs import measured
from tlx.proof.measure import distances, flips, relative
from tlx.proof.randomness import dropout_rows
from tlx.proof.replays import LIMIT, sketched
from tlx.proof.replays import loss_error as loss_error
from tlx.proof.result import Cause, Kind, Row, Stage

_RowsAt: TypeAlias = Callable[[Capture, Capture, str], list[Row]]


def compare_evaluation(a: Capture, b: Capture) -> Stage:
    """P3: the outputs of all modules and the logits, in eval mode, at each size."""
    return _at_each_size(a, b, "P3", _evaluation)


def compare_backward(a: Capture, b: Capture) -> Stage:
    """P4: outputs, loss, buffers, then gradients, from the last module back, at each size."""
    return _at_each_size(a, b, "P4", _backward)


def _at_each_size(a: Capture, b: Capture, stage: str, rows_at: _RowsAt) -> Stage:
    """Compare a stage at the recipe's size and at the further ones that the reference was run at."""
    rows = rows_at(a, b, stage)
    sizes = [size for size in (a.manifest["recipe"].get("image_size"),) if isinstance(size, int)]
    theirs, only_one, lacking = sizes_of(b, stage), "", []
    for size, error in sizes_of(a, stage).items():
        prefix = f"{stage}/@{size}"
        if error:
            only_one = error
        elif theirs.get(size):
            failed = Row(
                kind="size", size=size, error=math.inf, passed=False, missing="candidate", stopped=theirs[size]
            )
            rows.append(failed)
        elif size not in theirs:
            lacking.append(size)
        else:
            sizes.append(size)
            rows += [replace(row, size=size) for row in rows_at(a, b, prefix)]
    reasons = why_not_replayed(a, b, stage)
    unreplayed = {path if call == 1 else f"{path}#{call}": why for (path, call), why in reasons.items()}
    facts = {"sizes": sizes, "one_size": only_one, "not_run": lacking, "not_replayed": unreplayed}
    return measured(stage, LIMIT, rows, facts)


def _evaluation(a: Capture, b: Capture, prefix: str) -> list[Row]:
    logits = _logits_row(*(c.records[f"{prefix}/logits"].needed("logits") for c in (a, b)))
    return [*_output_rows(Calls(a, b, prefix), logits.passed), logits]


def _backward(a: Capture, b: Capture, prefix: str) -> list[Row]:
    records = [c.records[f"{prefix}/loss"].facts for c in (a, b)]
    losses = float.fromhex(records[0]["loss"]), float.fromhex(records[1]["loss"])
    error = loss_error(*losses)
    counts = records[0]["correct"], records[1]["correct"]
    calls = Calls(a, b, prefix)
    rows = _output_rows(calls, error <= LIMIT)
    if calls.root < len(calls.pairs) and (given := calls.pairs[calls.root].outputs):
        row = _logits_row(*given[0])
        rows.append(row if error > LIMIT else replace(row, error=min(row.error, LIMIT), passed=True))
    rows.append(Row(kind="loss", error=error, passed=error <= LIMIT, values=losses))
    rows.append(
        Row(kind="correct", error=float(abs(counts[0] - counts[1])), passed=counts[0] == counts[1], values=counts)
    )
    kinds: tuple[Kind, ...] = ("buffer", "gradient")
    for kind in kinds:
        ours, theirs = (sketched(c.records[f"{prefix}/{kind}s"], f"{kind}s") for c in (a, b))
        errors = distances(ours, theirs)
        of_kind = [Row(kind=kind, path=name, error=error, passed=error <= LIMIT) for name, error in errors.items()]
        rows += reversed(of_kind) if kind == "gradient" else of_kind
    return [*dropout_rows(a, b, rows), *rows] if prefix == "P4" else rows


def _logits_row(x: Array, y: Array) -> Row:
    error = relative(x, y)
    return Row(kind="logits", error=error, passed=error <= LIMIT, cause=_cause(x, y))


def _output_rows(calls: Calls, result_equal: bool) -> list[Row]:
    """Return a row for each call within the model, in the reference's order; `result_equal`: what comes of it all."""
    rows = []
    for number, pair in enumerate(calls.pairs):
        if number == calls.root or not pair.a.gives:
            continue
        around = (calls.pairs[other] for other in calls.around(number))
        made_up_for = result_equal or any(other.b is not None and other.gave_equal for other in around)
        rows.append(_output_row(pair, made_up_for))
    missing = [call.name for call in calls.only_theirs if call.path and call.gives]
    return rows + [Row(kind="output", path=name, error=0.0, passed=True, missing="reference") for name in missing]


def _output_row(pair: Pair, made_up_for: bool) -> Row:
    if pair.b is None:
        return Row(kind="output", path=pair.a.name, error=0.0, passed=True, missing="candidate")
    if pair.error > LIMIT and made_up_for:
        return Row(kind="output", path=pair.a.name, error=0.0, passed=True, cause="made up for")
    flipped = sum(flips(x, y) for x, y in pair.outputs if x.shape == y.shape)
    cause = _cause(*pair.outputs[0]) if pair.error > LIMIT and pair.outputs else "laid out" if pair.laid_out else None
    return Row(kind="output", path=pair.a.name, error=pair.error, passed=pair.gave_equal, flips=flipped, cause=cause)


def _cause(x: Array, y: Array) -> Cause | None:
    """Say why two tensors have no distance; None where they have one."""
    if x.shape != y.shape:
        return "shape"
    if not x.size:
        return "empty"
    return None if np.isfinite(x).all() and np.isfinite(y).all() else "not finite"
