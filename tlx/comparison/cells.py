"""A cell as its folder shows it, and the lease by which one of several processes works on it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tlx.atomic import write_json
from tlx.comparison.commands import objects_of
from tlx.comparison.plan import Cell, Plan
from tlx.errors import TlxError, shown
from tlx.files import read_regular
from tlx.leases import Lease
from tlx.manifest import CARD, HISTORY, MANIFEST, RECIPE, read_files, read_manifest
from tlx.models.hub import HUB
from tlx.recipe import Recipe
from tlx.runs.facts import Facts, parse_object
from tlx.runs.folder import RESULT, writing
from tlx.runs.scores import MEANS

HIDDEN = ".compare"  # leases, outputs of the processes, what failed
CellState = Literal["absent", "interrupted", "finished", "failed"]
FIX = "delete the folder, and the cell runs again"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cell has come to. Accuracies lie between 0 and 1; what it does not have is None."""

    state: CellState
    problem: str = ""  # of a cell that failed, in one line
    val_accuracy: float | None = None  # of the best epoch
    val_loss: float | None = None
    seconds: float | None = None
    fingerprint: str = ""  # of its data
    val_balanced_accuracy: float | None = None  # None too where an earlier tlx wrote it
    val_macro_f1: float | None = None
    val_average_precision: float | None = None  # mAP, where several labels may apply to an image


def read_outcome(plan: Plan, cell: Cell) -> Outcome:
    """Return what a cell has come to; one that is damaged, or another's, has failed."""
    folder = cell.run_dir
    try:
        manifest = read_manifest(folder)
        if manifest is None and not os.path.lexists(folder / RECIPE):
            problem = read_failure(plan, cell)
            return Outcome("failed", problem) if problem else Outcome("absent")
        if manifest is None or RESULT not in manifest.files:
            problem = read_failure(plan, cell)
            return Outcome("failed", problem) if problem else Outcome("interrupted")
        return _finished(cell)
    except TlxError as error:
        return Outcome("failed", str(error))


def settled(plan: Plan, cell: Cell) -> Outcome | None:
    """Return what a cell has come to; None where there is something left to do."""
    outcome = read_outcome(plan, cell)
    return outcome if outcome.state in ("finished", "failed") else None


def _finished(cell: Cell) -> Outcome:
    folder = cell.run_dir
    contents = read_files(folder, (RECIPE, RESULT, CARD, HISTORY))
    recorded = Recipe.from_toml(folder / RECIPE, objects_of(cell.recipe), content=contents[RECIPE])
    if where := _difference(cell.recipe, recorded):
        raise TlxError(f"{folder} holds another run: {where}", fix=FIX)
    result = Facts(str(folder / RESULT), parse_object(contents[RESULT], str(folder / RESULT)), FIX)
    if not result.has("val_accuracy"):
        raise TlxError(f"{folder} has no validation accuracy, by which compare chooses", fix="raise val_fraction")
    accuracy, best = result.real("val_accuracy", 0, 1), result.whole("best_epoch", 1)
    history = result.inners("history")
    if best > len(history):
        raise result.wrong("best_epoch", f"at most {len(history)}")
    trained = sum(epoch.real("seconds", 0, 1e12) for epoch in history)
    seconds = max(trained, result.real("wall_seconds", 0, 1e12))  # the latter is of the last process alone
    card = Facts(str(folder / CARD), parse_object(contents[CARD], str(folder / CARD)), FIX)
    loss = history[best - 1].real("val_loss")
    means = [result.real(f"val_{name}", 0, 1) if result.has(f"val_{name}") else None for name in MEANS]
    name = "val_average_precision"
    means.append(history[best - 1].real(name, 0, 1) if history[best - 1].has(name) else None)
    return Outcome("finished", "", accuracy, loss, seconds, card.inner("data").text("fingerprint"), *means)


def _difference(asked: Recipe, recorded: Recipe) -> str:
    """Say in which field a run is not what its cell is to be; what is chosen automatically may be anything."""
    full = asked.resolved()
    for field in full.changed():
        value = getattr(full, field.name)
        free = field.metadata["affects"] == "speed" or field.name in ("out", "data_root", "max_pixels")
        there = getattr(recorded, field.name)
        pinned = field.name == "weights" and str(there).startswith(HUB)  # names a commit, which no cell does
        if not free and not pinned and not _same(value, there):
            return f"its {field.name} is {shown(there)}, and the cell's {shown(value)}"
    return ""


def _same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and one == other)


def read_failure(plan: Plan, cell: Cell) -> str:
    """Return the line with which a cell failed; "" where it has not."""
    path = _failure(plan, cell)
    try:
        return Facts(str(path), parse_object(read_regular(path, 1 << 20), str(path)), "").text("problem")
    except (OSError, TlxError):
        return ""


def write_failure(plan: Plan, cell: Cell, problem: str) -> None:
    """Remember with which line a cell failed."""
    write_json(_failure(plan, cell), {"problem": problem})


def _failure(plan: Plan, cell: Cell) -> Path:
    return plan.folder / HIDDEN / f"{cell.name}.failed.json"


def clear_failures(plan: Plan) -> None:
    """Forget what failed, so that it is tried again."""
    for path in (plan.folder / HIDDEN).glob("*.failed.json"):
        path.unlink(missing_ok=True)


def take_lease(plan: Plan, name: str) -> Lease | None:
    """Return the right to work on what has this name; None where another process has it."""
    path = plan.folder / HIDDEN / f"{name}.lock"
    with writing(path, fix="choose another folder with out"):
        return Lease.take(path)


@contextmanager
def joined(plan: Plan, afresh: bool = True) -> Iterator[None]:
    """Work on a comparison's folder, maybe with others; whoever comes first and `afresh` tries again what failed."""
    with writing(plan.folder, fix="choose another folder with out"):
        (plan.folder / HIDDEN).mkdir(parents=True, exist_ok=True)
        file = (plan.folder / HIDDEN / "drivers.lock").open("ab")
    try:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if afresh else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if afresh:
                clear_failures(plan)
        except BlockingIOError:
            pass
        except OSError as error:
            raise TlxError(f"{plan.folder} cannot be locked: {error.strerror}", fix="use another disk") from error
        fcntl.flock(file, fcntl.LOCK_SH)
        yield
    finally:
        file.close()


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST, RECIPE))


def last_line(log: Path, begin: int = 0) -> str:
    """Return the line in which a command of tlx said what was wrong, from a byte on; "" where it said nothing."""
    with suppress(OSError):
        text = read_regular(log)[begin:].decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        told = [line.removeprefix("tlx: ") for line in lines if line.startswith("tlx: ")]
        return (told or lines or [""])[-1].strip()
    return ""
