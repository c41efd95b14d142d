"""A check as it is printed."""

from __future__ import annotations

import numpy as np

from tlx.audit.result import SHOWN, Check, Problem, Row
from tlx.console import Console, styled
from tlx.runs.display import print_table

CLASSES = 20  # rows of the table of classes
COLOURS = {"serious": "red", "warning": "yellow", "note": "dim"}


def print_check(result: Check) -> None:
    """Print what was found to stdout: the counts, then a line for each problem, the worst first."""
    console = Console(soft_wrap=True)
    console.print(f"{result.data}: {result.images:,} images of {len(result.classes):,} classes")
    _print_counts(result)
    for note in (*result.notes, *result.skipped):
        console.print(f"note: {note}")
    for problem in result.problems:
        console.print(styled(f"{problem.severity:8}", COLOURS[problem.severity]), f"{problem.text}{_examples(problem)}")
    serious = sum(problem.severity == "serious" for problem in result.problems)
    if serious:
        console.print(f"{serious} serious {'problem' if serious == 1 else 'problems'}: mend them before training")
    else:
        console.print("nothing serious")


def _print_counts(result: Check) -> None:
    counts = np.array(list(result.counts.values()), dtype=np.int64)  # [parts, classes]
    order = np.argsort(-counts.sum(axis=0), kind="stable")
    if len(order) > CLASSES:  # the largest and the smallest
        order = np.concatenate([order[: CLASSES // 2], order[-CLASSES // 2 :]])
    rows = [(result.classes[i], *(f"{n:,}" for n in counts[:, i].tolist())) for i in order.tolist()]
    print_table(("class", *result.counts), rows, right=range(1, len(counts) + 1))
    if len(result.classes) > len(order):
        print(f"and {len(result.classes) - len(order):,} classes between these: see --json")


def _examples(problem: Problem) -> str:
    groups = problem.groups
    if groups:
        shown = ["; ".join(" = ".join(_called(row) for row in group[:SHOWN]) for group in groups[:SHOWN])]
    else:
        shown = [_called(row) for row in problem.rows[:SHOWN]]
    more = ", ..." if len(groups or problem.rows) > SHOWN else ""
    return f": {', '.join(shown)}{more}" if problem.rows else ""


def _called(row: Row) -> str:
    if row.suggested:
        return f"{row.path} ({row.label}, rather {row.suggested}, {row.sure:.0%})"
    prefix = f"{row.part}/"
    return row.path if "/" in row.path or row.part == "all" else prefix + row.path
