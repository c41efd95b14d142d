"""P7 and P9: the metrics of what the trajectory ends with, and the loop's loss curve in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlx.backend import Array
from tlx.errors import TlxError
from tlx.proof.artifact import Capture, Record
from tlx.proof.inputs import measured
from tlx.proof.result import SIDES, Row, Stage
from tlx.proof.trajectory import error_of

HEAD_ONLY = 1e-4  # of P9 where only the head trains, so that float32 training is not chaotic
MARGINS = 4  # differing predictions whose margins are kept


def compare_metrics(a: Capture, b: Capture) -> Stage:
    """P7: each side's count from its own logits, and both sides' predictions."""
    rows: list[Row] = []
    left, right = ([record for record in c.stage("P7") if record.key[3:].isdecimal()] for c in (a, b))
    for number, records in enumerate(zip(left, right, strict=False)):
        logits = [_logits(record) for record in records]
        for side, record, own in zip(SIDES, records, logits, strict=True):
            labels = np.array(record.facts["labels"])
            correct = ((own > 0) == labels).all(axis=1) if labels.ndim == 2 else own.argmax(axis=1) == labels
            count = int(correct.sum())
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
        if len({record.facts.get("model") for record in records}) == 1:  # else each judged what its own run ended with
            several = np.ndim(records[0].facts["labels"]) == 2
            rows.append(_answers_row(number, *logits) if several else _prediction_row(number, *logits))
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


def _answers_row(number: int, reference: Array, candidate: Array) -> Row:
    """Compare what is answered of several labels; the margin of an image is that of its most doubtful class."""
    differing = np.arange(len(reference))
    if reference.shape == candidate.shape:
        differing = np.flatnonzero(((reference > 0) != (candidate > 0)).any(axis=1))
    samples = tuple(map(int, differing[:MARGINS]))
    return Row(
        kind="predictions",
        number=number,
        error=float(len(differing)),
        passed=not len(differing),
        samples=samples,
        margins=tuple(float(np.abs(reference[i]).min()) for i in samples),
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
    stopped = [text for c in (a, b) if (text := error_of(c, "P9"))]
    figure = max((row.error for row in rows), default=math.inf)
    outcome = all(row.passed for row in rows) and bool(rows) and not stopped if gate else None
    facts: Mapping[str, Any] = {"stopped": stopped}
    return Stage("P9", figure, limit, outcome, tuple(rows), facts)


def _losses(c: Capture, kind: str) -> list[float]:
    return [float.fromhex(record.facts["loss"]) for record in c.stage(f"P9/{kind}")]
