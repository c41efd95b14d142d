"""What a page shows that its run did not write down: a map of embeddings, and where the model looked."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data import Images
from tlx.errors import DataError, TlxError
from tlx.runs.display import Display
from tlx.runs.embeddings.part import vectors_of
from tlx.runs.embeddings.projection import project
from tlx.runs.finished import Finished, restore
from tlx.runs.grad_cam import heat_maps
from tlx.runs.report.contents import Contents
from tlx.runs.report.figures import most_wrong
from tlx.runs.report.page import WRONG, Heat
from tlx.runs.report.verdict import main_part

MAPPED = 1000  # images of a map, evenly spread over the part
STEP = 100  # of them between two lines of progress


def look(
    contents: Contents, backend: str | None, display: Display, **objects: Any
) -> tuple[NDArray[np.float64] | None, Heat, list[str]]:
    """Compute with a run's model what `page.page` takes beside the contents.

    Args:
        contents: of the run, as read from its folder.
        backend: where to compute; None: the backend that trained.
        display: shows how far it has come.
        **objects: `model` and `head`, where the recipe's were Python objects.

    Returns:
        The points of the map [N, 2], not a number for images that are not on it; None where there is none. The heat
        maps of the most wrong images, by row. And in a line each, what could not be had.

    Raises:
        TlxError: the model cannot be built, or there are no images to look at.
    """
    part = main_part(contents)
    if part is None or part not in contents.images:
        why = contents.problem or "the run holds no predictions of its images"
        raise TlxError(f"{contents.run_dir}: {why}, so there is nothing to look at", fix="leave out explain")
    run, images, notes = restore(Path(contents.run_dir), backend, **objects), contents.images[part], []
    points, heat = None, dict[int, NDArray[np.float64]]()
    try:
        points = _points(run, images, display)
    except TlxError as error:
        notes.append(f"no map of embeddings: {error.problem}")
    try:
        heat = _heat(run, images, most_wrong(contents.parts[part], WRONG))
    except TlxError as error:
        notes.append(f"no explanation of mistakes: {error.problem}")
    return points, heat, notes


def _points(run: Finished, images: Images, display: Display) -> NDArray[np.float64]:
    rows = np.arange(0, len(images), -(-len(images) // MAPPED))
    places, vectors, advance = list[int](), list[NDArray[np.float64]](), display.counted("embedding")
    for at in range(0, len(rows), STEP):
        some = vectors_of(run, images, rows[at : at + STEP].tolist())
        places += some.rows.tolist()
        vectors += list(some.vectors)
        advance(min(at + STEP, len(rows)), len(rows))
    points = np.full((len(images), 2), np.nan)
    if vectors:
        points[places] = project(np.stack(vectors), seed=run.recipe.seed, display=display)
    return points


def _heat(run: Finished, images: Images, rows: list[int]) -> dict[int, NDArray[np.float64]]:
    """Return where the model looked for the classes that it predicted; images that are gone are left out."""
    seen: dict[int, NDArray[np.uint8]] = {}
    for row in rows:
        try:
            seen[row] = run.framing.pixels(partial(images.select(np.array([row]), images.labels[[row]]).open, 0))
        except DataError:
            continue
    if not seen:
        return {}
    maps = heat_maps(run, list(seen.values()))
    return {row: heat.astype(np.float64) for row, heat in zip(seen, maps.heat, strict=True)}
