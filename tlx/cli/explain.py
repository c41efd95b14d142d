"""Train and use: the command that shows what a run looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tlx.cli.options import Json, print_json
from tlx.errors import printable


def explain(
    run_dir: Path,
    /,
    *images: Path,
    backend: str | None = None,
    class_name: Annotated[str | None, Parameter(name="--class")] = None,
    out: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("explained"),
    json: Json = False,
) -> None:
    """Show which parts of photos speak for their class (Grad-CAM): a picture of each, beside its heat map.

    Parameters
    ----------
    run_dir:
        A folder that `tlx run` wrote.
    images:
        Files, folders from which every photo is taken, or data sets, such as an .npz file, of which every image is.
    backend:
        Compute on this backend instead of the one that trained.
    class_name:
        The class to explain. [default: the one that is predicted for each photo]
    out:
        A folder for the pictures.
    """
    from tlx.runs.explanation import explanations
    from tlx.runs.prediction import reported

    rows = reported(explanations(run_dir, images, backend, class_name=class_name, out=out))
    if json:
        print_json({"run_dir": str(run_dir), "explanations": [row.to_dict() for row in rows]})
        return
    for row in rows:
        if row.error is None:
            print(f"{printable(row.path)}: {'; '.join(row.words)}; {printable(str(row.file))}", flush=True)
