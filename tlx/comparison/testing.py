"""Read the test part once for each chosen cell, and keep what it gave."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tlx.comparison.cells import HIDDEN, last_line, take_lease
from tlx.comparison.choice import Entry
from tlx.comparison.commands import holds_objects, objects_of
from tlx.comparison.drive import OTHERS, POLL, Say, start_tlx
from tlx.comparison.plan import Cell, Plan
from tlx.comparison.resampling import Answers
from tlx.errors import RunDamaged, TlxError
from tlx.files import read_regular
from tlx.leases import Lease
from tlx.manifest import CARD, read_files
from tlx.runs.card import read_card
from tlx.runs.evaluation import evaluate
from tlx.runs.folder import writing
from tlx.runs.table import parse_multilabel, parse_table, readable

TESTS = "test"  # the folder of the tables


def read_tests(plan: Plan, entries: Sequence[Entry], say: Say) -> tuple[dict[str, Answers], dict[str, str]]:
    """Return the answers of the chosen cells on the test part, and of those that have none what was wrong, by name.

    Each table is written once, by whichever driver comes first. The cells of a candidate that was not chosen stay
    unread.
    """
    cells = [cell for entry in entries if entry.chosen for cell in entry.candidate.cells]
    with writing(plan.folder):
        (plan.folder / TESTS).mkdir(exist_ok=True)
    answers, problems = dict[str, Answers](), dict[str, str]()
    pending = list(cells)
    while pending:
        left = []
        for cell in pending:
            if not table_of(plan, cell).is_file():
                if (lease := take_lease(plan, cell.name)) is None:
                    left.append(cell)
                    continue
                try:
                    problem = "" if table_of(plan, cell).is_file() else _evaluate(plan, cell, lease)
                finally:
                    lease.release()
                if problem:
                    problems[cell.name] = problem
                    say(f"test of {cell.label}: failed: {problem}")
                    continue
            try:
                answers[cell.name] = _read(plan, cell)
            except TlxError as error:
                problems[cell.name] = str(error)
        pending = left
        time.sleep(OTHERS if pending else 0)
    return answers, problems


def table_of(plan: Plan, cell: Cell) -> Path:
    """Return where the table of a cell's test part lies."""
    return plan.folder / TESTS / f"{cell.name}.csv"


def _evaluate(plan: Plan, cell: Cell, lease: Lease) -> str:
    """Write the table; return what was wrong, or ""."""
    table = table_of(plan, cell)
    if holds_objects(cell.recipe):
        try:
            evaluate(cell.run_dir, quiet=True, csv=table, **objects_of(cell.recipe))
        except TlxError as error:
            return str(error)
        return ""
    log = plan.folder / HIDDEN / f"{cell.name}.test.log"
    with writing(log), log.open("wb") as file:
        process = start_tlx(["evaluate", str(cell.run_dir), "--csv", str(table)], file, lease)
        try:
            while process.poll() is None:
                time.sleep(POLL)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        return last_line(log) or f"its process ended with code {process.returncode}"
    return ""


def _read(plan: Plan, cell: Cell) -> Answers:
    path = table_of(plan, cell)
    card = read_card(read_files(cell.run_dir, (CARD,))[CARD], cell.run_dir)
    classes = card.classes
    try:
        content = read_regular(path)
        if card.thresholds is not None:
            table = parse_multilabel(content, path, classes)
            answers = Answers(tuple(table.path), table.labels, table.probability, len(classes))
        else:
            columns, number = parse_table(content, path, classes), {readable(n): k for k, n in enumerate(classes)}
            labels, said = (np.array([number[name] for name in columns[c]], np.int64) for c in ("label", "prediction"))
            answers = Answers(tuple(columns["path"]), labels, said, len(classes))
    except (OSError, RunDamaged) as error:
        raise TlxError(f"{path} cannot be read", fix="delete it, and it is written again") from error
    if not answers.names:
        raise TlxError(f"{path} has no rows", fix="delete it, and it is written again")
    return answers


def unread_choice(plan: Plan, answers: Mapping[str, Answers]) -> int:
    """Count the cells whose test part was read for an earlier choice, of a smaller comparison in the same folder."""
    tables = {path.stem for path in (plan.folder / TESTS).glob("*.csv")}
    return len(tables - answers.keys())
