"""Look up: what is wrong with a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

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
    labels: Annotated[bool, Parameter(negative="")] = False,
    model: str = "resnet18",
    weights: str | None = None,
    run: Path | None = None,
    backend: str | None = None,
    image_size: int | None = None,
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
    labels:
        Also look for labels that are likely to be wrong, and for classes that are alike, by the features of a model.
    model:
        The model whose features: see `tlx models`.
    weights:
        Its weights, as for `tlx run`. [default: ImageNet's]
    run:
        A folder that `tlx run` wrote, whose model gives the features instead.
    backend:
        Where features are computed. [default: torch, or that of the run]
    image_size:
        Pixels a side that the model sees. [default: the model's own]
    html:
        Write a page of the pictures to this file.
    decisions:
        Write a row for each image with a problem to this new CSV file: look through its decisions, and pass it to
        `tlx run --fixes`.
    """
    import tlx
    from tlx.audit.table import print_check

    result = tlx.check(
        data,
        data_root=data_root,
        path_column=path_column,
        label_column=label_column,
        labels=labels,
        model=model,
        weights=weights,
        run=run,
        backend=backend,
        image_size=image_size,
        html=html,
        decisions=decisions,
    )
    for path in (html, decisions):
        if path is not None:
            tell(f"written: {printable(str(path))}")
    if json:
        print_json(result.to_dict())
    else:
        print_check(result)
    return int(result.serious)
