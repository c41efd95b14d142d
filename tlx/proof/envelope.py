"""P8: one step in float32, beside what rounding alone does to the reference."""

from __future__ import annotations

import math
import statistics

import numpy as np

from tlx.backend import Array
from tlx.proof.artifact import Capture, Record
from tlx.proof.measure import relative, unbundle
from tlx.proof.result import Distances, Row, Stage

ENVELOPE = 10.0  # how many times the reference's own scatter is allowed
QUICK_BATCHES = 3  # with --quick: the median of three is no single batch's
RATIO = 1e4  # of two right backends, float32 errors are at least so many times their float64 errors


def compare_float32(a: Capture, b: Capture) -> Stage:
    """P8: the step in float32 beside the reference's own scatter, and G, its ratio to the step in float64.

    The scatter is the larger of two distances of the reference from itself: to its float64 step, and between float32
    steps from weights that are one float32 unit apart. Of the batches the median counts: now and then a ReLU input lies
    within rounding of zero, and which side it falls on changes the gradients of that batch by up to some percent.
    """
    if not a.stage("P8/float64"):
        return Stage("P8", math.inf, ENVELOPE, False)
    measured = {what: measure(a, b, what) for what in ("gradients", "buffers")}
    rows = []
    for what, d in measured.items():
        rows.append(Row(kind="envelope", path=what, error=d.over_scatter, passed=d.inside, distances=d))
        rows.append(Row(kind="ratio", path=what, error=d.ratio, passed=d.ratio >= RATIO, distances=d))
    figure = max(d.over_scatter for d in measured.values())
    lacking = sorted({str(c.manifest["backend"]) for c in (a, b) if "bfloat16" not in c.manifest["precisions"]})
    return Stage("P8", figure, ENVELOPE, all(row.passed for row in rows), tuple(rows), {"no_bfloat16": lacking})


def measure(a: Capture, b: Capture, what: str) -> Distances:
    """Return the four distances of all "gradients" or "buffers"."""
    ours, theirs = ([r.key.rpartition("/")[2] for r in c.stage("P8/float64")] for c in (a, b))
    quick = any(c.manifest.get("quick") for c in (a, b))  # which has fewer batches than others, an earlier tlx's too
    both = [number for number in ours if number in theirs]
    numbers = both if quick and len(both) >= QUICK_BATCHES else ours  # what lacks is infinitely far

    def distances(left: Capture, of_left: str, right: Capture, of_right: str) -> list[float]:
        """Return the distance between two kinds of step for each batch."""
        keys = [(f"P8/{of_left}/{number}", f"P8/{of_right}/{number}") for number in numbers]
        return [_distance(left.records.get(x), right.records.get(y), what) for x, y in keys]

    d32 = distances(a, "float32", b, "float32")
    # What cannot be compared, such as a NaN on one side, is no ReLU's doing.
    middle = statistics.median_high(d32) if math.inf not in d32 else math.inf
    nudged = max(distances(a, "float32", a, "float32-nudged"))
    rounded = max(distances(a, "float64", a, "float32"))
    outside = sum(error > ENVELOPE * max(nudged, rounded) for error in d32)
    d64 = max(distances(a, "float64", b, "float64"))
    return Distances(middle, d64, nudged, rounded, outside, len(d32), ENVELOPE)


def _distance(x: Record | None, y: Record | None, what: str) -> float:
    if x is not None and not x.facts[what]:
        return 0.0  # a model without buffers
    return relative(*_joined(x, y, what)) if x and y else math.inf


def _joined(x: Record, y: Record, what: str) -> tuple[Array | None, Array | None]:
    """Return all sketches of a kind end to end, in the reference's order; None where the names differ."""
    ours, theirs = (unbundle(record.facts[what], record.array(what)) for record in (x, y))
    if ours.keys() != theirs.keys():
        return None, None
    joined = [np.concatenate([np.zeros(0), *(parts[name][1] for name in ours)]) for parts in (ours, theirs)]
    return joined[0], joined[1]
