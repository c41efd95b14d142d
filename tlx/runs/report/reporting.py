"""Write the page of a run, at its end or later, or one page that compares several."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlx.atomic import write_atomic
from tlx.data import Data, Loader
from tlx.errors import TlxError, one_line
from tlx.files import read_regular
from tlx.manifest import REPORT
from tlx.runs.display import Display
from tlx.runs.export import check_target
from tlx.runs.folder import RunFolder, resumed_folder
from tlx.runs.logits import Spool
from tlx.runs.report.contents import Contents, contents_of, read_contents
from tlx.runs.report.page import is_page, page


def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    explain: bool = False,
    backend: str | None = None,
    data: Any = None,
    model: Any = None,
    head: Any = None,
    quiet: bool = False,
) -> Path:
    """Write the page of a finished run again, or one page that compares several.

    Nothing is computed anew but what `explain` adds.

    Args:
        runs: a folder that `tlx run` wrote, or several.
        out: the file to write; an existing one is replaced in one step. Default: `report.html`, in the folder of the
            run, or of several in the present one, where it replaces only an earlier page of tlx's.
        explain: add what takes the model: a map of the embeddings of 1,000 images at most, and where the model looked
            for its worst mistakes; of one run only.
        backend: where that is computed. Default: the backend that trained.
        data: the run's data again, where it was passed in Python or lies elsewhere now; of one run only.
        model: with `explain`, the module again, where the run's was a Python object.
        head: likewise.
        quiet: show nothing on stderr, where it otherwise says how far it has come.

    Returns:
        The file. It needs nothing else, and may be moved.

    Raises:
        RunNotFound: there is no finished run in a folder.
        RunDamaged: a file of a run is missing or is not what the run wrote.
        TlxError: `out` belongs to a run, or cannot be written; or `data` are not those of the run.
    """
    folders = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    if not folders:
        raise TlxError("runs is empty; expected the folder of a run, or of several")
    several = len(folders) > 1
    for name, value in (("data", data), ("explain", explain or None)):
        if several and value is not None:
            raise TlxError(f"{name} is of one run, but runs are {len(folders)}; leave it out")
    for name, value in (("backend", backend), ("model", model), ("head", head)):
        if value is not None and not explain:
            raise TlxError(f"{name} has no effect without explain; leave it out, or pass explain")
    display = Display(quiet)
    target = None if out is None else Path(out)
    if target is not None:
        check_target(Path(os.path.realpath(target)), "html")
    if several:
        from tlx.runs.report.comparison import comparison_of

        advance, contents = display.counted("reading the runs"), []
        for number, run in enumerate(folders, 1):
            contents.append(read_contents(run))
            advance(number, len(folders))
        if len({one.summary.multilabel for one in contents}) > 1:
            problem = "images have one label each in some of these runs, and may have several in others"
            raise TlxError(f"{problem}, so their figures cannot be compared", fix="compare those of one kind")
        text = comparison_of(contents)
        if target is None:
            target = _own_place(Path(REPORT))
    else:
        of_run = read_contents(folders[0], data)
        if explain and of_run.summary.multilabel:
            problem = f"explain needs one label for each image, but those of {of_run.run_dir} may have several"
            raise TlxError(problem, fix="leave explain out")
        text = _explained(of_run, backend, display, model, head) if explain else page(of_run)
    content = text.encode(errors="backslashreplace")
    if target is not None:
        write_atomic(target, content)
        return target
    try:
        with resumed_folder(folders[0]) as folder:
            put_report(folder, content)
    except TlxError as error:
        if not error.problem.startswith("Cannot write"):
            raise
        elsewhere = f"write it elsewhere, with: tlx report {shlex.quote(str(folders[0]))} -o {REPORT}"
        raise TlxError(error.problem, fix=elsewhere) from error
    return folders[0] / REPORT


def _explained(contents: Contents, backend: str | None, display: Display, model: Any, head: Any) -> str:
    from tlx.runs.report.model import look

    points, heat, notes = look(contents, backend, display, model=model, head=head)
    display.notes(notes)
    return page(contents, points, heat)


def _own_place(path: Path) -> Path:
    """Return a path if nothing is there but an earlier page; what else a user has there is not replaced unasked."""
    if os.path.lexists(path):
        try:
            earlier = is_page(read_regular(path).decode(errors="replace"))
        except OSError:
            earlier = False
        if not earlier:
            raise TlxError(f"{path} is there already, and is no page of tlx's", fix="name another file with: -o FILE")
    return path


def put_report(folder: RunFolder, content: bytes) -> None:
    """Put a page into the folder of a run, where it takes the place of an earlier one."""
    place = folder.path / REPORT
    if os.path.lexists(place) and not place.is_file():  # a commit could not put a file there
        raise TlxError(f"Cannot write {place}: what is there is no file")
    if folder.old:  # of tlx 0.1.0, which has no manifest to name it
        write_atomic(folder.path / REPORT, content)
        return
    folder.put(REPORT, content)
    folder.commit()


def page_at_end(
    result: Mapping[str, Any],
    card: Mapping[str, Any],
    data: Data,
    loader: Loader,
    judged: Loader,
    spools: Mapping[str, Spool],
) -> tuple[bytes, str]:
    """Return the page of a run that ends, and a note where it cannot be drawn: that must not cost the run its result.

    The arguments are those of `contents.contents_of`.
    """
    try:
        return page(contents_of(result, card, data, loader, judged, spools)).encode(errors="backslashreplace"), ""
    except Exception as error:
        return b"", f"the report could not be drawn: {one_line(f'{type(error).__name__}: {error}')}"


def put_at_end(folder: RunFolder, content: bytes) -> str:
    """Put the page of a run that has ended into its folder; return a note where that fails, as on a full disk."""
    try:
        if content:
            put_report(folder, content)
    except (TlxError, OSError) as error:
        return f"the report could not be written: {one_line(str(error))}"
    return ""
