"""Train and use: the command that shows runs as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tlx.cli.options import Json, print_json
from tlx.errors import printable


def report(
    *run_dirs: Path,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    explain: Annotated[bool, Parameter(negative="")] = False,
    backend: str | None = None,
    json: Json = False,
) -> None:
    """Write the page of a run again, or one page that compares several: a file that any browser opens.

    Parameters
    ----------
    run_dirs:
        A folder that `tlx run` wrote, or several.
    out:
        The file to write. Default: report.html, in the folder of the run, or of several in the present one.
    explain:
        Add what takes the model: a map of embeddings, and where the model looked for its worst mistakes; of one run.
    backend:
        Compute that on this backend. [default: the one that trained]
    """
    import tlx

    written = tlx.report(list(run_dirs), out, explain=explain, backend=backend)
    if json:
        print_json({"runs": [str(run_dir) for run_dir in run_dirs], "out": str(written)})
    else:
        print(f"written: {printable(str(written))}")
