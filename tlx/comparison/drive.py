"""Run the cells that are left: each in a process of its own, so that none can end the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from tlx.atomic import write_atomic
from tlx.backend.threads import cores
from tlx.comparison.cells import HIDDEN, Outcome, is_run, last_line, read_outcome, settled, take_lease, write_failure
from tlx.comparison.commands import holds_objects, objects_of, run_arguments
from tlx.comparison.plan import Cell, Plan, recipe_file
from tlx.errors import TlxError
from tlx.leases import Lease
from tlx.runs.folder import writing
from tlx.runs.job import run

POLL = 0.1  # seconds between two looks at what runs
OTHERS = 1.0  # seconds between two looks at what other drivers run
Say = Callable[[str], None]


@dataclass(slots=True, eq=False)
class Running:
    """A process that works on a cell, with the lease that it shares."""

    cell: Cell
    lease: Lease
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    begin: int = 0  # of what it writes, in the log of all that worked on the cell


def run_cells(plan: Plan, jobs: int, say: Say, show: Say, wait: bool = True) -> dict[str, Outcome]:
    """Run every cell that is not finished, or wait for the driver that does; return what each has come to, by name.

    `say` is told what has ended, `show` again and again how things stand. Without `wait`, it ends where others work on
    all that is left.

    A process that the system kills fails here, and is not remembered: another driver, or the next, goes on with it.
    """
    pending, outcomes = list(plan.cells), dict[str, Outcome]()
    running: list[Running] = []
    total, here = len(pending), holds_objects(pending[0].recipe)
    try:
        while pending or running:
            left = []
            for place, cell in enumerate(pending):
                if len(running) >= jobs:
                    left += pending[place:]
                    break
                outcome = settled(plan, cell)
                if outcome is None and (lease := take_lease(plan, cell.name)) is not None:
                    # Another driver may have finished it between the look and the lease.
                    if (outcome := settled(plan, cell)) is not None:
                        lease.release()
                    elif here:
                        outcome = _run_here(plan, cell, lease)
                        say(line_of(cell, outcome, len(outcomes) + 1, total))
                    else:
                        running.append(_start(plan, cell, lease, jobs))
                        continue
                if outcome is None:
                    left.append(cell)
                else:
                    outcomes[cell.name] = outcome
            pending = left
            if not (running or wait):
                break
            labels = ", ".join(entry.cell.label for entry in running) or "waiting for other drivers"
            show(f"{len(outcomes)} of {total} cells done; {labels}")
            time.sleep(POLL if running else OTHERS if pending else 0)
            for ended in [entry for entry in running if entry.process.poll() is not None]:
                running.remove(ended)
                outcomes[ended.cell.name] = outcome = _end(plan, ended)
                say(line_of(ended.cell, outcome, len(outcomes), total))
    finally:
        _stop(running)
    return outcomes


def _start(plan: Plan, cell: Cell, lease: Lease, jobs: int) -> Running:
    if is_run(cell.run_dir):
        arguments = ["run", "--resume", str(cell.run_dir)]
    else:
        file = recipe_file(plan.folder, cell)
        arguments, needs_file = run_arguments(cell.recipe, cell.run_dir, file)
        if needs_file:
            write_atomic(file, cell.recipe.to_toml().encode())
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(cores()) // jobs)))
    path = plan.folder / HIDDEN / f"{cell.name}.log"
    with writing(path):
        log = path.open("ab")
    begin = log.tell()
    process = start_tlx(arguments, log, lease, environment)
    return Running(cell, lease, process, log, begin)


def _end(plan: Plan, ended: Running) -> Outcome:
    """Say what a process that has ended left, and give its cell back."""
    ended.log.close()
    try:
        outcome = read_outcome(plan, ended.cell)
        if outcome.state in ("finished", "failed"):
            return outcome
        code = ended.process.returncode
        if code < 0:
            return Outcome("failed", f"its process was ended by {signal.Signals(-code).name}; the same command goes on")
        said = last_line(plan.folder / HIDDEN / f"{ended.cell.name}.log", ended.begin)
        problem = said or f"its process ended with code {code}"
        if code < 128:  # otherwise a signal stopped it
            write_failure(plan, ended.cell, problem)
        return Outcome("failed", problem)
    finally:
        ended.lease.release()


def _run_here(plan: Plan, cell: Cell, lease: Lease) -> Outcome:
    """Run a cell in this process, which alone has its Python objects."""
    try:
        if is_run(cell.run_dir):
            run(resume=cell.run_dir, quiet=True, **objects_of(cell.recipe))
        else:
            run(cell.recipe, quiet=True)
    except TlxError as error:
        write_failure(plan, cell, str(error))
        return Outcome("failed", str(error))
    finally:
        lease.release()
    return read_outcome(plan, cell)


def _stop(running: list[Running]) -> None:
    """End what still runs: each saves where it stands."""
    for entry in running:
        if entry.process.poll() is None:
            entry.process.terminate()
    for entry in running:
        entry.process.wait()
        entry.log.close()
        entry.lease.release()


def line_of(cell: Cell, outcome: Outcome, number: int, total: int) -> str:
    """Say what a cell has come to."""
    ranked, accuracy = outcome.val_average_precision, outcome.val_accuracy
    figures = "" if accuracy is None else f"val {accuracy:.4f}" if ranked is None else f"val mAP {ranked:.4f}"
    figures = f"{figures}, {outcome.seconds:.1f} s" if figures else ""
    return f"{number}/{total}  {cell.label}: {figures or 'failed: ' + outcome.problem}"


def start_tlx(
    arguments: list[str], log: IO[bytes], lease: Lease, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command of tlx in a process that shares a lease, and writes all that it says to a file."""
    command, pass_fds = [sys.executable, "-m", "tlx", *arguments], [lease.file.fileno()]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=pass_fds
    )
