"""Where two captures first differ, and which module or stretch between modules is to blame: facts, no words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tlx.proof.artifact import Capture, Record
from tlx.proof.measure import distances, relative, unbundle
from tlx.proof.passes import LIMIT
from tlx.proof.result import Alone, Between, Difference, Row, Stage


def first_difference(a: Capture, b: Capture, stages: Sequence[Stage]) -> Difference | None:
    """Return what the first failing stage shows; None where none fails."""
    stage = next((stage for stage in stages if stage.passed is False), None)
    if stage is None:
        return None
    row = next((row for row in stage.rows if not row.passed), None)
    # Replaying a module says nothing about a loss that differs while every output is equal.
    if row is None or stage.id not in ("P3", "P4") or row.kind in ("loss", "correct", "dropout"):
        return Difference(stage, row)
    return Difference(stage, row, blame(a, b, row))


def blame(a: Capture, b: Capture, row: Row) -> Alone | Between | None:
    """Find the module that differs by itself, or the stretch between two that do not.

    Returns None where the modules were not replayed on the reference's own input.
    """
    replays = list(_replays(a, b))
    if not replays:
        return None
    module = row.path.rpartition(".")[0] if row.kind in ("gradient", "buffer") else row.path
    guilty = [(path, quantity, error) for path, quantity, error in replays if error > LIMIT]
    if not guilty:
        return _between(a, b, module)
    path, quantity, error = next((finding for finding in guilty if finding[0] == module), guilty[0])
    others = {other for other, _, _ in guilty} - {path}
    return Alone(path, quantity, error, _classes(a, b, path), len(others), _is_transposed(a, b, path))


def _replays(a: Capture, b: Capture) -> Iterator[tuple[str, str, float]]:
    """Yield path, what was compared, and distance for each module that was fed the same arrays on both sides."""
    if b.manifest.get("replayed") != a.manifest.get("inputs"):
        return
    reference = {str(record.facts["path"]): record for record in a.stage("P4/replay")}
    for record in b.stage("P4/replay"):
        path = str(record.facts["path"])
        if path not in reference:
            continue
        for kind in ("forward", "buffers", "gradients"):
            x, y = reference[path].array(kind), record.array(kind)
            if x is None or y is None:
                continue
            ours, theirs = unbundle(reference[path].facts[kind], x), unbundle(record.facts[kind], y)
            if ours:
                for quantity, error in distances(ours, theirs).items():
                    yield path, quantity, error


def _classes(a: Capture, b: Capture, path: str) -> tuple[str, str]:
    reference, candidate = (_visits(c).get(path) for c in (a, b))
    return (
        str(reference.facts["kind"]) if reference else "?",
        str(candidate.facts["kind"]) if candidate else "?",
    )


def _visits(c: Capture) -> dict[str, Record]:
    """Return the first visit of each module."""
    return {str(record.facts["path"]): record for record in reversed(c.stage("P4/visit") or c.stage("P3/visit"))}


def _between(a: Capture, b: Capture, path: str) -> Between:
    """Find what lies before the module whose input differs: modules without parameters, or functions."""
    reference, previous_in_reference = _before(a, path)
    candidate, previous = _before(b, path)
    x, y = _visits(a).get(path), _visits(b).get(path)
    compared = x is not None and y is not None and bool(b.stage("P4/visit"))
    input_equal = compared and x is not None and y is not None and relative(x.array("input"), y.array("input")) <= LIMIT
    return Between(path, previous or previous_in_reference, input_equal, reference, candidate)


def _before(c: Capture, path: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the modules without parameters right before a module, as path and class, and the one before them."""
    modules: list[tuple[str, str]] = []
    previous = ""
    for record in c.stage("P4/visit"):
        if str(record.facts["path"]) == path:
            break
        if "output" in record.files:
            modules, previous = [], str(record.facts["path"])
        else:
            modules.append((str(record.facts["path"]), str(record.facts["kind"])))
    return tuple(modules), previous


def _is_transposed(a: Capture, b: Capture, path: str) -> bool:
    """Tell whether the candidate's module gives the reference's output once its weight is transposed."""
    for record in b.stage("P4/replay"):
        numbers = record.array("transposed")
        if record.facts["path"] != path or numbers is None:
            continue
        reference = next((r for r in a.stage("P4/replay") if r.facts["path"] == path), None)
        if reference is None or (forward := reference.array("forward")) is None:
            return False
        expected = unbundle(reference.facts["forward"], forward).get("output")
        transposed = unbundle(record.facts.get("transposed", []), numbers).get("output")
        if expected and transposed and relative(expected[1], transposed[1]) <= LIMIT:
            return True
    return False
