"""P6, P7 and P9: the production loop step by step in float64, the metrics after it, and its loss curve in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlx.backend import Array
from tlx.errors import TlxError
from tlx.proof.artifact import Capture, Record
from tlx.proof.inputs import absent_side, measured, union
from tlx.proof.measure import distances, unbundle
from tlx.proof.passes import loss_error
from tlx.proof.result import SIDES, Quantity, Row, Stage
from tlx.proof.updates import split_slot

LIMIT = 1e-9  # of P6
HEAD_ONLY = 1e-4  # of P9 where only the head trains, so that float32 training is not chaotic
NEEDED = 40  # steps that a trajectory must have at least
MARGINS = 4  # differing predictions whose margins are kept


def steps_of(c: Capture) -> dict[str, Record]:
    """Return the records of a capture's trajectory by key: one a step."""
    return {record.key: record for record in c.stage("P6") if record.key[3:].isdecimal()}


def compare_trajectory(a: Capture, b: Capture) -> Stage:
    """P6: values, optimizer state and loss after every step of the production loop."""
    left, right = steps_of(a), steps_of(b)
    rows: list[Row] = []
    for key in union(left, right):
        x, y = left.get(key), right.get(key)
        if x is None or y is None:
            rows.append(
                Row(
                    kind="step",
                    number=int(key.removeprefix("P6/")),
                    error=math.inf,
                    passed=False,
                    missing=absent_side(x, y),
                    stopped=_error_of(b if y is None else a, "P6"),
                )
            )
            break
        rows.append(_step_row(x, y))
    for side, c in zip(SIDES, (a, b), strict=True):
        stopped = _error_of(c, "P6")
        if stopped and all(row.stopped != stopped for row in rows):
            rows.append(Row(kind="end", error=math.inf, passed=False, side=side, stopped=stopped))
    facts = {"steps": len(left), "needed": NEEDED}
    if len(left) < NEEDED and all(row.passed for row in rows):
        return Stage("P6", float(len(left)), NEEDED, None, tuple(rows), facts, enough=False)
    return measured("P6", LIMIT, rows, facts)


def _error_of(c: Capture, stage: str) -> str:
    """Return the error that ended a capture's training; empty where there is none."""
    record = c.records.get(f"{stage}/error")
    return str(record.facts["text"]) if record else ""


def _step_row(x: Record, y: Record) -> Row:
    errors: dict[tuple[Quantity, str], float] = {
        ("loss", ""): loss_error(float.fromhex(x.facts["loss"]), float.fromhex(y.facts["loss"]))
    }
    for fact in ("correct", "hyper"):
        if x.facts[fact] != y.facts[fact]:
            errors[fact, ""] = math.inf
    for kind in ("values", "slots"):
        if kind in x.facts or kind in y.facts:
            ours, theirs = (unbundle(record.facts.get(kind, []), record.array(kind)) for record in (x, y))
            errors |= {(kind, key): error for key, error in distances(ours, theirs).items()}
    quantity, key = max(errors, key=lambda place: errors[place])
    path, slot = split_slot(key) if quantity == "slots" else (key, "")
    error = errors[quantity, key]
    return Row(
        kind="step",
        number=int(x.key.removeprefix("P6/")),
        path=path,
        slot=slot,
        quantity=quantity,
        error=error,
        passed=error <= LIMIT,
        events=tuple(map(str, x.facts["events"])),
    )


def compare_metrics(a: Capture, b: Capture) -> Stage:
    """P7: each side's count from its own logits, and both sides' predictions."""
    rows: list[Row] = []
    left, right = a.stage("P7"), b.stage("P7")
    for number, records in enumerate(zip(left, right, strict=False)):
        logits = [_logits(record) for record in records]
        for side, record, own in zip(SIDES, records, logits, strict=True):
            count = int((own.argmax(axis=1) == np.array(record.facts["labels"])).sum())
            recorded = record.facts["correct"]
            rows.append(
                Row(
                    kind="count",
                    number=number,
                    side=side,
                    error=float(abs(count - recorded)),
                    passed=count == recorded,
                )
            )
        rows.append(_prediction_row(number, *logits))
    if len(left) != len(right):
        rows.append(Row(kind="batches", error=math.inf, passed=False, values=(len(left), len(right))))
    return measured("P7", 0, rows, {"batches": len(left)})


def _logits(record: Record) -> Array:
    """Return the logits of a batch, [images, classes]; TlxError where they do not fit its labels."""
    logits, labels = record.needed("logits"), len(record.facts["labels"])
    if logits.ndim != 2 or len(logits) != labels or logits.shape[1] < 2:
        problem = f"{record.folder}: the logits of {record.key} have shape {list(logits.shape)} for {labels} labels"
        raise TlxError(problem, fix="capture anew")
    return logits


def _prediction_row(number: int, reference: Array, candidate: Array) -> Row:
    p, q = reference.argmax(axis=1), candidate.argmax(axis=1)
    differing = np.flatnonzero(p != q) if p.shape == q.shape else np.arange(len(p))
    top = np.sort(reference, axis=1)
    samples = tuple(map(int, differing[:MARGINS]))
    return Row(
        kind="predictions",
        number=number,
        error=float(len(differing)),
        passed=not len(differing),
        samples=samples,
        margins=tuple(float(top[i, -1] - top[i, -2]) for i in samples),
    )


def compare_curves(a: Capture, b: Capture) -> Stage:
    """P9: float32 loss curves beside the reference's own from weights one unit off; a gate for the head alone."""
    curves = (_losses(a, "plain"), _losses(b, "plain"), _losses(a, "nudged"))
    gate = a.manifest["recipe"].get("strategy") == "feature_extract"
    limit = HEAD_ONLY if gate else None
    rows: list[Row] = []
    band = 0.0
    for number, (x, y, nudged) in enumerate(zip(*curves, strict=False)):
        scale = abs(x) or 1.0
        band = max(band, abs(x - nudged) / scale)
        error = abs(x - y) / scale
        passed = limit is None or error <= limit
        rows.append(Row(kind="step", number=number, error=error, passed=passed, values=(x, y), band=band))
    stopped = [text for c in (a, b) if (text := _error_of(c, "P9"))]
    figure = max((row.error for row in rows), default=math.inf)
    outcome = all(row.passed for row in rows) and bool(rows) and not stopped if gate else None
    facts: Mapping[str, Any] = {"stopped": stopped}
    return Stage("P9", figure, limit, outcome, tuple(rows), facts)


def _losses(c: Capture, kind: str) -> list[float]:
    return [float.fromhex(record.facts["loss"]) for record in c.stage(f"P9/{kind}")]
