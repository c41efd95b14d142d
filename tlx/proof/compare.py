"""Compare two captures, stage by stage; no framework is needed, only NumPy and the two folders."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array
from tlx.proof.artifact import MODULE, Capture, Record
from tlx.proof.locate import first_difference
from tlx.proof.measure import FLOOR, distances, flips, floor_of, relative, sha256, unbundle
from tlx.proof.result import BOUNDARY, ONE_SIDED, Report, Row, Stage, Verdict
from tlx.proof.updates import update_errors

# The limits are those of float64: rounding was measured at 1e-15 to 1e-12, changes of meaning from 2e-7 up.
FORWARD, UPDATE, TRAJECTORY = 1e-10, 1e-12, 1e-9
ENVELOPE, RATIO, HEAD_ONLY = 10.0, 1e4, 1e-4
STEPS = 40
MISSING = "missing in the"

NOT_RUN = (
    Stage("P9", "float32 loss curve", "relative loss", None, None, None, "left out by --quick; it is no gate"),
    Stage("P10", "final accuracy", "margin shown", None, None, None, "--seeds 5 or more trains whole runs for it"),
)
DECLARED = (
    "scalars such as rates and momentum are float32-exact, as OneFlow rounds them",
    "BatchNorm in training: OneFlow sums in float32, so there tlx uses float64",
    "gradients are None between steps, as OneFlow's zeros would move frozen arrays",
    "Adam, AdamW, RMSprop: OneFlow's own differ, so tlx writes them in tensors",
    "order, augmentation, first values, dropout masks: drawn by the core alone",
    "dampening is 0 and BatchNorm's momentum never None, where the stacks differ",
)


def compare(reference: str | Path, candidate: str | Path) -> Report:
    """Compare the captures in two folders.

    Raises TlxError where a folder holds no capture or a damaged one.
    """
    started = time.perf_counter()
    a, b = Capture(reference), Capture(candidate)
    stages = [manifests(a, b)]
    if stages[0].passed:
        for name, run in COMPARE.items():
            if name in a.manifest["must"]["stages"]:
                stages.append(run(a, b))
            if any(MISSING in row.note for row in stages[-1].rows) and name == "P1":
                break  # what lacks a parameter cannot be compared further
        left_out = [stage for stage in NOT_RUN if stage.id not in {s.id for s in stages}]
        stages += left_out if stages[-1].id not in ("P0", "P1") else []
    return report(a, b, stages, time.perf_counter() - started)


def report(a: Capture, b: Capture, stages: Sequence[Stage], seconds: float) -> Report:
    """Draw the verdict from the stages."""
    short = [s for s in stages if s.passed is False and s.id == "P6" and s.measure == "steps"]
    failed = [s for s in stages if s.passed is False and s not in short]
    if stages[0].passed is False:
        verdict = Verdict.NOT_COMPARABLE
    elif failed:
        verdict = Verdict.DIFFERENT
    else:
        verdict = Verdict.UNDERPOWERED if short else Verdict.EQUAL
    first = first_difference(a, b, stages) if stages[0].passed else f"Not comparable: {stages[0].summary}"
    return Report(_title(a), _title(b), _subject(a), verdict, tuple(stages), first, DECLARED, seconds)


def _title(c: Capture) -> str:
    version = c.manifest.get("versions", {}).get(c.manifest.get("backend"), "")
    return f"{c.manifest.get('backend')} {version} ({c.manifest.get('device')})".replace("  ", " ")


def _subject(c: Capture) -> str:
    r = c.manifest.get("recipe", {})
    steps = [record for key, record in c.records.items() if key.startswith("P6/0")]
    crossed = sum(bool(record.facts["events"]) for record in steps)
    strategy = r.get("strategy")
    name = strategy.get("name") if isinstance(strategy, dict) else strategy
    sizes = f"batches of {r.get('batch_size')} at {r.get('image_size')} px"
    crossing = f"{len(steps)} steps, {crossed} of them at a boundary"
    return f"{r.get('model')}, strategy {name}, {r.get('data')}, {r.get('optimizer')}; {sizes}, {crossing}"


def manifests(a: Capture, b: Capture) -> Stage:
    """P0: what must be equal for a comparison to mean anything."""
    left, right = a.manifest.get("must", {}), b.manifest.get("must", {})
    rows = [
        Row(str(key), math.inf, False, f"{left.get(key, 'nothing')!r} against {right.get(key, 'nothing')!r}")
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key)
    ]
    said = "; ".join(f"{row.name}: {row.note}" for row in rows[:3]) or f"{len(left)} facts are equal"
    return Stage("P0", "manifest", "differing facts", float(len(rows)), 0, not rows, said, tuple(rows))


def weights(a: Capture, b: Capture) -> Stage:
    """P1: names, shapes, dtypes and bytes."""
    left, right = a.records["P1"].arrays(), b.records["P1"].arrays()
    rows = []
    for name in [*left, *(n for n in right if n not in left)]:
        x, y = left.get(name), right.get(name)
        if x is None or y is None:
            rows.append(Row(name, math.inf, False, f"{MISSING} {'candidate' if y is None else 'reference'}"))
        elif x.shape != y.shape or x.dtype != y.dtype:
            rows.append(Row(name, math.inf, False, f"{x.dtype} {list(x.shape)} against {y.dtype} {list(y.shape)}"))
        elif sha256(x) != sha256(y):
            rows.append(Row(name, relative(x, y) or math.inf, False, "transposed" if _is_transposed(x, y) else ""))
        else:
            rows.append(Row(name, 0.0, True))
    order = [list(c.records["P1"].facts["specs"]) for c in (a, b)]
    if order[0] != order[1] and all(row.passed for row in rows):
        rows.append(Row("order and roles", math.inf, False, "the stacks list their parameters differently"))
    return _stage("P1", "weights", "differing arrays", None, rows, f"{len(left)} arrays", counted=True)


def _is_transposed(x: Array, y: Array) -> bool:
    return x.ndim >= 2 and x.shape[0] == x.shape[1] and bool(np.array_equal(np.swapaxes(x, 0, 1), y))


def batches(a: Capture, b: Capture) -> Stage:
    """P2: ids, labels, streams and pixels of every batch."""
    left, right = ({r.key: r.facts for r in c.stage("P2")} for c in (a, b))
    rows = []
    for key in [*left, *(k for k in right if k not in left)]:
        x, y = left.get(key), right.get(key)
        if x is None or y is None:
            rows.append(Row(key[3:], math.inf, False, f"{MISSING} {'candidate' if y is None else 'reference'}"))
            continue
        differing = [name for name in x if x[name] != y.get(name)]
        rows.append(Row(key[3:], math.inf if differing else 0.0, not differing, _data_note(differing, x, y, left)))
    count = sum(len(facts["labels"]) for facts in left.values())
    said = f"{len(left)} batches, {count} images"
    if a.manifest["planned"] or b.manifest["planned"]:
        said += "; the batches of one capture were served to the other"
    return _stage("P2", "data", "differing batches", None, rows, said, counted=True)


def _data_note(
    differing: Sequence[str], x: Mapping[str, Any], y: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
) -> str:
    if not differing:
        return ""
    if "indices" in differing:
        if sorted(x["indices"]) == sorted(y["indices"]):
            return "the same samples in another order"
        if lacking := sorted(set(x["indices"]) - set(y["indices"])) if set(y["indices"]) < set(x["indices"]) else []:
            return f"without sample {', '.join(map(str, lacking))}"
        twin = next((key for key, facts in known.items() if facts["indices"] == y["indices"]), None)
        return f"the samples of the reference's {twin[3:]}" if twin else "other samples, as from another random stream"
    if "labels" in differing:
        where = [i for i, (p, q) in enumerate(zip(x["labels"], y["labels"], strict=False)) if p != q]
        return f"the label of sample {x['indices'][where[0]]}" if where else "the number of labels"
    return ", ".join(differing)


def visits(record: Iterable[Record]) -> dict[str, Record]:
    """The visits of modules that own parameters, by path; a second call of one module is path#2."""
    found: dict[str, Record] = {}
    for r in record:
        if "output" not in r.files:
            continue
        path, number = str(r.facts["path"]), 2
        name = path
        while name in found:
            name, number = f"{path}#{number}", number + 1
        found[name] = r
    return found


def _visit_rows(a: Capture, b: Capture, stage: str) -> list[Row]:
    left, right = visits(a.stage(f"{stage}/visit")), visits(b.stage(f"{stage}/visit"))
    own = a.manifest["must"]["model"] == MODULE  # a port may compute with functions what the reference has modules for
    rows = []
    for name in [*left, *(n for n in right if n not in left)]:
        if name not in left or name not in right:
            rows.append(Row(name, 0.0 if own else math.inf, own, ONE_SIDED))
            continue
        x, y = left[name].array("output"), right[name].array("output")
        error = relative(x, y)
        turned = flips(x, y) if x is not None and y is not None and x.shape == y.shape else 0
        note = f"{turned} signs flipped" if turned else ""
        rows.append(Row(name, error, error <= FORWARD, note))
    if list(left) != list(right) and not own and all(row.passed for row in rows):
        rows.append(Row("order of execution", math.inf, False, "modules run in another order"))
    return rows


def evaluation(a: Capture, b: Capture) -> Stage:
    rows = _visit_rows(a, b, "P3")
    error = relative(a.records["P3/logits"].array("logits"), b.records["P3/logits"].array("logits"))
    rows.append(Row("logits", error, error <= FORWARD))
    return _stage("P3", "forward in eval mode", "relative L2", FORWARD, rows, f"outputs of {len(rows)} modules")


def backward(a: Capture, b: Capture) -> Stage:
    """P4: outputs, loss, buffers, then gradients, from the last module back."""
    rows = [Row(f"output {r.name}", r.error, r.passed, r.note) for r in _visit_rows(a, b, "P4")]
    loss = [float.fromhex(c.records["P4/loss"].facts["loss"]) for c in (a, b)]
    error = abs(loss[0] - loss[1]) / (abs(loss[0]) or 1) if all(map(math.isfinite, loss)) else math.inf
    rows.append(Row("loss", error, error <= FORWARD, f"{loss[0]:.12g} against {loss[1]:.12g}"))
    counts = [c.records["P4/loss"].facts["correct"] for c in (a, b)]
    rows.append(Row("correct", float(abs(counts[0] - counts[1])), counts[0] == counts[1]))
    for what in ("buffers", "gradients"):
        left, right = (c.records[f"P4/{what}"].arrays() for c in (a, b))
        floor = floor_of(list(left.values()))
        names = [*left, *(n for n in right if n not in left)]
        for name in reversed(names) if what == "gradients" else names:
            error = relative(left.get(name), right.get(name), floor)
            rows.append(Row(f"{what[:-1]} {name}", error, error <= FORWARD))
    said = f"{len(rows)} outputs, losses, buffers and gradients; everything trains"
    return _stage("P4", "forward and backward", "relative L2", FORWARD, rows, said)


def update(a: Capture, b: Capture) -> Stage:
    """P5: both stacks and the oracle after each of four updates from the same gradients."""
    rows = []
    for which, c in (("reference", a), ("candidate", b)):
        rows += [
            Row(f"{which}, update {number + 1}: {name}", error, error <= UPDATE)
            for number, name, error in update_errors(c)
        ]
    name = a.records["P5/script"].facts["optimizer"]
    said = f"{name}, 4 updates, groups frozen and unfrozen between them, against NumPy"
    return _stage("P5", "update, to the oracle", "relative L2", UPDATE, rows, said)


def trajectory(a: Capture, b: Capture) -> Stage:
    """P6: values, optimizer state and loss after every step of the production loop."""
    left, right = ({k: c.records[k] for k in c.records if k.startswith("P6/0")} for c in (a, b))
    rows = []
    crossed = 0
    for key in [*left, *(k for k in right if k not in left)]:
        x, y = left.get(key), right.get(key)
        if x is None or y is None:
            lacking = "candidate" if y is None else "reference"
            stopped = (b if y is None else a).records.get("P6/error")
            why = f": {stopped.facts['text']}" if stopped else ""
            step = f"step {int(key[3:])}"
            rows.append(Row(step, math.inf, False, f"the {lacking} stopped before {step}{why}"))
            break
        events = [str(e) for e in x.facts["events"]]
        crossed += bool(events)
        error, worst = _step_error(x, y)
        note = "; ".join(
            [*([BOUNDARY + ", ".join(events)] if events else []), *([worst] if error > TRAJECTORY else [])]
        )
        rows.append(Row(f"step {int(key[3:])}", error, error <= TRAJECTORY, note))
    for which, c in (("reference", a), ("candidate", b)):
        stopped = c.records.get("P6/error")
        if stopped and not any(str(stopped.facts["text"]) in row.note for row in rows):
            rows.append(Row("end", math.inf, False, f"the {which} stopped: {stopped.facts['text']}"))
    said = f"{len(left)} steps, {crossed} of them at a boundary"
    if len(left) < STEPS and all(row.passed for row in rows):
        said = f"only {len(left)} of {STEPS} steps: more training images are needed"
        return Stage("P6", "trajectory", "steps", float(len(left)), STEPS, False, said, tuple(rows))
    return _stage("P6", "trajectory", "relative L2", TRAJECTORY, rows, said)


def _step_error(x: Record, y: Record) -> tuple[float, str]:
    found: dict[str, float] = {}
    loss = [float.fromhex(r.facts["loss"]) for r in (x, y)]
    found["loss"] = abs(loss[0] - loss[1]) / (abs(loss[0]) or 1) if all(map(math.isfinite, loss)) else math.inf
    if x.facts["correct"] != y.facts["correct"]:
        found["correct count"] = math.inf
    if x.facts["hyper"] != y.facts["hyper"]:
        found["rates and decays"] = math.inf
    for kind in ("values", "slots"):
        if kind in x.facts or kind in y.facts:
            both = [
                unbundle(r.facts.get(kind, []), part if (part := r.array(kind)) is not None else np.zeros(0))
                for r in (x, y)
            ]
            found |= distances(both[0], both[1])
    worst = max(found, key=lambda name: found[name])
    return found[worst], worst


def metrics(a: Capture, b: Capture) -> Stage:
    """P7: each stack's count from its own logits, and both stacks' predictions."""
    rows = []
    left, right = a.stage("P7"), b.stage("P7")
    for number, (x, y) in enumerate(zip(left, right, strict=False)):
        logits = x.array("logits"), y.array("logits")
        for which, record, own in (("reference", x, logits[0]), ("candidate", y, logits[1])):
            assert own is not None
            labels = np.array(record.facts["labels"])
            count = int((own.argmax(axis=1) == labels).sum())
            rows.append(
                Row(
                    f"batch {number}: count of the {which}",
                    abs(count - record.facts["correct"]),
                    count == record.facts["correct"],
                )
            )
        p, q = (np.asarray(each).argmax(axis=1) for each in logits)
        flipped = np.flatnonzero(p != q) if p.shape == q.shape else np.arange(len(p))
        top = np.sort(np.asarray(logits[0]), axis=1)
        note = ", ".join(f"sample {i}: margin {top[i, -1] - top[i, -2]:.1e}" for i in flipped[:4])
        rows.append(Row(f"batch {number}: predictions", float(len(flipped)), not len(flipped), note))
    if len(left) != len(right):
        rows.append(Row("batches", math.inf, False, f"{len(left)} against {len(right)}"))
    return _stage("P7", "metrics", "differing counts", 0, rows, f"{len(left)} batches of the test part")


def locked(a: Capture, b: Capture) -> Stage:
    """P8: the step in float32 beside the reference's own scatter, and G, its ratio to the step in float64.

    The scatter is the larger of two distances of the reference from itself: to its float64 step, and between float32
    steps from weights that are one float32 unit apart. Of the batches the median counts: now and then a ReLU input lies
    within rounding of zero, and which side it falls on changes the gradients of that batch by up to some percent.
    """
    rows = []
    for what in ("gradients", "buffers"):
        found: dict[str, list[float]] = {"d64": [], "d32": [], "nudged": [], "rounded": []}
        for record in a.stage("P8/float64"):
            number = record.key.rpartition("/")[2]
            pairs = {
                "d64": (a, "float64", b, "float64"),
                "d32": (a, "float32", b, "float32"),
                "nudged": (a, "float32", a, "float32-nudged"),
                "rounded": (a, "float64", a, "float32"),
            }
            for name, (one, left, two, right) in pairs.items():
                x, y = one.records.get(f"P8/{left}/{number}"), two.records.get(f"P8/{right}/{number}")
                error = relative(*_joined(x, y, what)) if x and y else math.inf
                if x and not x.facts[what]:
                    error = 0.0  # a model without buffers
                found[name].append(error)
        if not found["d32"]:
            return _stage("P8", "one float32 step", "d32 / own scatter", ENVELOPE, (), "")
        # What cannot be compared, such as a NaN on one side, is no ReLU's doing.
        d32 = statistics.median_high(found["d32"]) if math.inf not in found["d32"] else math.inf
        d64 = max(found["d64"])
        own = max(*found["nudged"], *found["rounded"])
        # Equal bits in float32 leave no ratio to take.
        ratio = d32 / max(d64, 2.0**-53) if d32 else math.inf
        inside = d32 <= ENVELOPE * own
        note = f"d32 {d32:.1e}, d64 {d64:.1e}, the reference's own scatter {own:.1e}"
        if outside := sum(error > ENVELOPE * own for error in found["d32"]):
            note += f", {outside} of {len(found['d32'])} batches outside"
        rows.append(Row(f"{what}: d32 over the envelope", d32 / own if own else float(d32 > 0), inside, note))
        rows.append(Row(f"{what}: G = d32 / d64", ratio, ratio >= RATIO, note))
    ratios = [row.error for row in rows if "G =" in row.name]
    figure = max(row.error for row in rows if "envelope" in row.name)
    lacks = [str(c.manifest["backend"]) for c in (a, b) if "bfloat16" not in c.manifest["precisions"]]
    bf16 = f"bfloat16 not run: {' and '.join(sorted(set(lacks))) or 'this version compares float32 alone'}"
    said = f"G = {min(ratios):.1e} (at least 1e4); {bf16}{' has none' if lacks else ''}"
    passed = all(row.passed for row in rows)
    title = "one float32 step"
    return Stage("P8", title, "d32 / own scatter", figure, ENVELOPE, passed, said, tuple(rows))


def _joined(x: Record, y: Record, what: str) -> tuple[Array | None, Array | None]:
    """All sketches of a kind end to end, in the reference's order; None where the names differ."""
    both = [unbundle(r.facts[what], part) for r in (x, y) if (part := r.array(what)) is not None]
    if len(both) < 2 or both[0].keys() != both[1].keys():
        return None, None
    joined = [np.concatenate([np.zeros(0), *(parts[name][1] for name in both[0])]) for parts in both]
    return joined[0], joined[1]


def free_running(a: Capture, b: Capture) -> Stage:
    """P9: float32 loss curves beside the reference's own from weights one unit off; a gate for the head alone."""
    curves = [
        [float.fromhex(r.facts["loss"]) for r in c.stage(f"P9/{kind}")]
        for c, kind in ((a, "plain"), (b, "plain"), (a, "nudged"))
    ]
    rows = []
    band = 0.0
    gate = a.manifest["recipe"].get("strategy") == "feature_extract"
    for number, (x, y, z) in enumerate(zip(*curves, strict=False)):
        scale = abs(x) or 1.0
        band = max(band, abs(x - z) / scale)
        error = abs(x - y) / scale
        rows.append(Row(f"step {number}", error, error <= HEAD_ONLY if gate else True, f"band {band:.1e}"))
    stopped = [c.records["P9/error"].facts["text"] for c in (a, b) if "P9/error" in c.records]
    figure = max((row.error for row in rows), default=math.inf)
    said = f"{len(rows)} steps; the reference's own band from one float32 unit of the weights is {band:.1e}"
    said += "; " + "; ".join(map(str, stopped)) if stopped else ""
    passed = all(row.passed for row in rows) and bool(rows) and not stopped if gate else None
    limit = HEAD_ONLY if gate else None
    title = "float32 loss curve"
    return Stage("P9", title, "relative loss", figure, limit, passed, said, tuple(rows))


def _stage(
    id: str, title: str, measure: str, limit: float | None, rows: Sequence[Row], said: str, counted: bool = False
) -> Stage:
    if not rows:
        return Stage(id, title, measure, math.inf, limit, False, "nothing to compare", ())
    figure = float(sum(not row.passed for row in rows)) if counted else max(row.error for row in rows)
    return Stage(id, title, measure, figure, limit, all(row.passed for row in rows), said, tuple(rows))


COMPARE: dict[str, Callable[[Capture, Capture], Stage]] = {
    "P1": weights,
    "P2": batches,
    "P3": evaluation,
    "P4": backward,
    "P5": update,
    "P6": trajectory,
    "P7": metrics,
    "P8": locked,
    "P9": free_running,
}
__all__ = ["FLOOR", "compare"]
