"""Look up: what is wrong with a data set."""

from __future__ import annotations

from pathlib import Path

from tlx.cli.options import Json, print_json
from tlx.errors import printable
from tlx.streams import tell


def check(
    data: str,
    /,
    *,
    data_root: Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    html: Path | None = None,
    decisions: Path | None = None,
    json: Json = False,
) -> int:
    """Look at a data set before training: exit code 1 where something would spoil a run, 0 where nothing would.

    Reads every image once: those that cannot be read, copies and near copies within and across parts, the same image
    under two labels, odd sizes and kinds, and the images of each class. Goes on where it was stopped.

    Parameters
    ----------
    data:
        Whatever `tlx run --data` takes.
    data_root:
        Folder that holds the data.
    path_column:
        Column of a .csv or .parquet file with the photos or their paths.
    label_column:
        Column with the labels.
    html:
        Write a page of the pictures to this file.
    decisions:
        Write a row for each image with a problem to this CSV file: look through its decisions, and pass it to `tlx run
        --fixes`.
    """
    import tlx
    from tlx.audit.table import print_check

    columns = {"path_column": path_column, "label_column": label_column}
    result = tlx.check(data, data_root=data_root, html=html, decisions=decisions, **columns)
    for path in (html, decisions):
        if path is not None:
            tell(f"written: {printable(str(path))}")
    if json:
        print_json(result.to_dict())
    else:
        print_check(result)
    return int(result.serious)
