"""The file of decisions: a row for each image with a problem, which a person looks through and a run applies."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from tlx.atomic import replacing
from tlx.audit.result import Check, Row
from tlx.data.fixes import COLUMNS


def write_decisions(path: str | Path, result: Check) -> int:
    """Write the file; return how many rows it has.

    What a note says, such as that photos are grey, needs no decision and has no row.

    Raises:
        TlxError: the file cannot be written.
    """
    rows = [row for problem in result.problems if problem.severity != "note" for row in problem.rows]
    with replacing(os.path.realpath(path)) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(_cells, rows))
        text.detach()
    return len(rows)


def _cells(row: Row) -> list[str]:
    sure = "" if row.sure is None else f"{row.sure:.3f}"
    group = "" if row.group is None else str(row.group)
    return [row.part, row.path, row.problem, row.label, row.suggested, row.decision, sure, group, row.content]
