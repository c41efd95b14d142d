"""Compare two captures, stage by stage; no framework is needed, only NumPy and the two folders."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tlx.proof import engines, words
from tlx.proof.artifact import Capture
from tlx.proof.envelope import compare_float32
from tlx.proof.hand_loop import compare_loop
from tlx.proof.inputs import compare_batches, compare_manifests, compare_weights
from tlx.proof.locate import first_difference
from tlx.proof.passes import compare_backward, compare_evaluation
from tlx.proof.randomness import judged, notes
from tlx.proof.report import Report
from tlx.proof.result import Stage, Verdict
from tlx.proof.steps import compare_curves, compare_metrics
from tlx.proof.trajectory import compare_trajectory
from tlx.proof.updates import compare_updates

COMPARE: dict[str, Callable[[Capture, Capture], Stage]] = {
    "P1": compare_weights,
    "P2": compare_batches,
    "P3": compare_evaluation,
    "P4": compare_backward,
    "P5": compare_updates,
    "P6": compare_trajectory,
    "P7": compare_metrics,
    "P8": compare_float32,
    "P9": compare_curves,
}
# Where an engine outside tlx wrote a capture; it has no other stages.
ENGINE: dict[str, Callable[[Capture, Capture], Stage]] = {
    "P1": engines.compare_weights,
    "P3": engines.compare_evaluation,
    "P4": engines.compare_backward,
    "P6": compare_loop,
}
GIVEN = ("P0", "P1", "P2")  # what a side was given, before it computes anything
NOT_RUN = tuple(Stage(name, None, None, None) for name in ("P2", "P7", "P8", "P9", "P10"))


def compare(reference: str | Path, candidate: str | Path) -> Report:
    """Compare the captures in two folders.

    Args:
        reference: the capture that counts as right.
        candidate: the capture that is compared with it.

    Raises:
        TlxError: a folder holds no capture, or a damaged one.
    """
    started = time.perf_counter()
    a, b = Capture(reference), Capture(candidate)
    with np.errstate(all="ignore"):  # numbers that are not finite are a difference, and no warning
        stages = compared_stages(a, b)
    steps = [record for key, record in a.records.items() if re.fullmatch(r"P6/\d+", key)]
    boundaries = sum(bool(record.facts.get("events")) for record in steps)
    return Report(
        reference=words.side(a.manifest),
        candidate=words.side(b.manifest),
        subject=words.subject(a.manifest["recipe"], len(steps), boundaries),
        verdict=verdict_of(stages),
        stages=tuple(stages),
        difference=first_difference(a, b, stages),
        declared=words.DECLARED[:1] if a.engine or b.engine else words.DECLARED,
        notes=notes(a, b),
        seconds=time.perf_counter() - started,
    )


def compared_stages(a: Capture, b: Capture) -> list[Stage]:
    """Return the stages that both captures hold, and in their places those that were not run."""
    manifest = compare_manifests(a, b)
    if not manifest.passed:
        return [manifest]
    stages = [manifest]
    compared = {**dict.fromkeys(COMPARE), **ENGINE} if a.engine or b.engine else COMPARE
    held = [name in c.manifest["must"]["stages"] for c in (a, b) for name in COMPARE]
    for (name, run), ours, theirs in zip(compared.items(), held[: len(COMPARE)], held[len(COMPARE) :], strict=True):
        if ours != theirs:
            stages.append(engines.not_run(name, "reference only" if ours else "candidate only"))
        elif ours and run is not None:
            stages.append(judged(run(a, b), a, b))
            if name == "P1" and any(row.missing for row in stages[-1].rows):
                return stages  # what lacks a parameter cannot be compared further
    present = {stage.id for stage in stages}
    stages += [stage for stage in NOT_RUN if stage.id not in present]
    return sorted(stages, key=lambda stage: int(stage.id[1:]))


def verdict_of(stages: Sequence[Stage]) -> Verdict:
    """Draw the verdict from the stages, of which the first is the manifest."""
    if stages[0].passed is False:
        return Verdict.NOT_COMPARABLE
    if any(stage.passed is False for stage in stages):
        return Verdict.DIFFERENT
    computed = any(stage.passed is not None for stage in stages if stage.id not in GIVEN)
    return Verdict.EQUAL if computed and all(stage.enough for stage in stages) else Verdict.UNDERPOWERED
