"""Where two captures first differ, which module is to blame, and what that means, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tlx.proof.artifact import Capture, Record
from tlx.proof.measure import distances, relative, unbundle
from tlx.proof.result import BOUNDARY, ONE_SIDED, Row, Stage

LIMIT = 1e-10  # of P3 and P4


def first_difference(a: Capture, b: Capture, stages: Sequence[Stage]) -> str:
    """Return what the first failing stage says; empty where none fails."""
    failed = next((stage for stage in stages if stage.passed is False), None)
    if failed is None:
        return ""
    row = next((r for r in failed.rows if not r.passed), Row("", math.inf, False, failed.summary))
    if failed.id in ("P3", "P4"):
        return modules(a, b, failed, row)
    if failed.id == "P5":
        return _update(failed)
    if failed.id == "P6" and failed.measure != "steps":
        return _trajectory(failed, row)
    if failed.id == "P8":
        return f"One float32 step differs by more than rounding: {row.name} is {row.error:.1e} ({row.note})."
    lead = {"P1": "The weights differ after loading", "P2": "The stacks are fed different data"}
    note = f" ({row.note})" if row.note else ""
    return f"{lead.get(failed.id, failed.title.capitalize() + ' differs')}: {row.name}{note}."


def modules(a: Capture, b: Capture, stage: Stage, row: Row) -> str:
    """Name the module that differs by itself, else the stretch between two that do not."""
    said = []
    path = row.name.removeprefix("output ")
    if row.name.startswith("gradient "):
        said.append("Outputs and loss are equal and gradients are not: the backward pass differs")
        path = row.name.removeprefix("gradient ").rpartition(".")[0]
    elif row.name.startswith("buffer "):
        said.append("Outputs and loss are equal and running statistics are not")
        path = row.name.removeprefix("buffer ").rpartition(".")[0]
    elif row.name == "loss":
        return f"Every module's output is equal and the loss is not ({row.note}): the loss function differs."
    else:
        of = "the logits" if path == "logits" else f"that of {path}"
        said.append(f"{'In eval mode the' if stage.id == 'P3' else 'The'} first output that differs is {of}")
    said[-1] += f" ({row.name}: {row.error:.1e})"
    if (alone := [r.name.removeprefix("output ") for r in stage.rows if r.note == ONE_SIDED]) and stage.passed is False:
        said[-1] += f"; {', '.join(alone)} cannot be compared, being a module on one side only"
    replayed = _replays(a, b)
    if not replayed:
        return said[0] + "."
    guilty = [(name, what, error) for name, what, error in replayed if error > LIMIT]
    if guilty:
        name, what, error = next((g for g in guilty if g[0] == path), guilty[0])
        text = f"{_kind(a, b, name)}, fed the reference's own input, gives another {what} ({error:.1e})"
        others = {g[0] for g in guilty} - {name}
        alike = "so does another module" if len(others) == 1 else f"so do {len(others)} other modules"
        text += f"; {alike}" if others else "; every other module by itself is equal"
        hint = _transposed(a, b, name)
        return f"{said[0]}. Replayed alone, {text}.{hint}"
    between = _between(a, b, path)
    return f"{said[0]}. Replayed alone, every module that owns parameters is equal: {between}."


def _replays(a: Capture, b: Capture) -> list[tuple[str, str, float]]:
    """Each module fed the same arrays on both sides: path, what was compared, distance."""
    if b.manifest.get("replayed") != a.manifest.get("inputs"):
        return []
    left = {str(r.facts["path"]): r for r in a.stage("P4/replay")}
    found = []
    for record in b.stage("P4/replay"):
        path = str(record.facts["path"])
        if path not in left:
            continue
        for kind in ("forward", "buffers", "gradients"):
            pairs = [
                unbundle(r.facts[kind], numbers) for r in (left[path], record) if (numbers := r.array(kind)) is not None
            ]
            if len(pairs) == 2 and pairs[0]:
                found += [(path, name, error) for name, error in distances(pairs[0], pairs[1]).items()]
    return found


def _kind(a: Capture, b: Capture, path: str) -> str:
    kinds = [_visits(c).get(path) for c in (a, b)]
    names = [str(k.facts["kind"]) if k else "?" for k in kinds]
    shown = names[0] if names[0] == names[1] else f"{names[0]}, in the candidate {names[1]}"
    return f"{path} ({shown})"


def _visits(c: Capture) -> dict[str, Record]:
    return {str(r.facts["path"]): r for r in reversed(c.stage("P4/visit") or c.stage("P3/visit"))}


def _between(a: Capture, b: Capture, path: str) -> str:
    """Say what lies before the module whose input differs: modules without parameters, or functions."""
    shown = []
    previous = ""
    for c in (a, b):
        kinds: list[str] = []
        for r in c.stage("P4/visit"):
            if str(r.facts["path"]) == path:
                break
            if "output" in r.files:
                kinds, previous = [], str(r.facts["path"])
            else:
                kinds.append(f"{r.facts['path']} ({r.facts['kind']})")
        shown.append(", ".join(kinds) or "functions without a module")
    here = _visits(a).get(path)
    if here is not None and b.stage("P4/visit"):
        other = _visits(b).get(path)
        if other and relative(here.array("input"), other.array("input")) <= LIMIT:
            return "how its result is used afterwards differs"
    if not previous:
        return "what enters the model differs, as by resizing, the order of channels or normalisation"
    where = f"between {previous} and {path}"
    both = shown[0] if shown[0] == shown[1] else f"{shown[0]} in the reference, {shown[1]} in the candidate"
    return f"the fault lies {where}, where no parameter is: {both}"


def _transposed(a: Capture, b: Capture, path: str) -> str:
    """Say so where the candidate's module gives the reference's output once its weight is transposed."""
    for record in b.stage("P4/replay"):
        numbers = record.array("transposed")
        if record.facts["path"] != path or numbers is None:
            continue
        wanted = next((r for r in a.stage("P4/replay") if r.facts["path"] == path), None)
        if wanted is None or (forward := wanted.array("forward")) is None:
            return ""
        reference = unbundle(wanted.facts["forward"], forward)["output"]
        twisted = unbundle(record.facts["transposed"], numbers)["output"]
        if relative(reference[1], twisted[1]) <= LIMIT:
            return " With its square weight transposed it is equal: the weight is used transposed."
    return ""


def _update(stage: Stage) -> str:
    wrong = [row for row in stage.rows if not row.passed]
    row = wrong[0]
    names = {r.name.partition(": ")[2] for r in wrong if r.name.startswith(row.name.partition(":")[0])}
    slots = sorted({n.rpartition("/")[2] for n in names if "/" in n})
    what = f"optimizer slot {', '.join(slots)}" if slots else "the update of the values"
    return (
        f"From equal gradients the optimizer departs from the NumPy oracle: {row.name} ({row.error:.1e}); "
        f"wrong after that update: {len(names)} arrays, {what}."
    )


def _trajectory(stage: Stage, row: Row) -> str:
    said, last = _departure(stage, row), stage.rows[-1]
    return f"{said} Then {last.note.rstrip('.')}." if "stopped" in last.note and last is not row else said


def _departure(stage: Stage, row: Row) -> str:
    number = stage.rows.index(row)
    events = [r for r in stage.rows[max(number - 1, 0) : number + 1] if BOUNDARY in r.note]
    if "stopped" in row.note or row.name == "end":
        return f"Equal until {row.name}: {row.note}."
    if number == 0:
        return f"The first step already differs ({row.note}: {row.error:.1e}), though all of P1 to P5 is equal."
    said = f"Equal until {row.name}"
    if events:
        event = next(part for part in events[-1].note.split("; ") if part.startswith(BOUNDARY)).removeprefix(BOUNDARY)
        said += f", {'where' if events[-1] is row else f'just after {events[-1].name}, where'} {event}"
    return f"{said}. First wrong: {row.note.rpartition('; ')[2]} ({row.error:.1e})."
