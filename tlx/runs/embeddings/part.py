"""The vectors of some images of a finished run's own data, as a report of the run draws them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlx.data import Images
from tlx.errors import DataError, TlxError, closest, shown
from tlx.runs.classify import classify
from tlx.runs.embeddings.embedder import of_run
from tlx.runs.evaluation import own_data
from tlx.runs.finished import Finished, restore
from tlx.runs.inputs import of_part


class PartVectors(NamedTuple):
    """Vectors of n images of a part."""

    rows: NDArray[np.int64]  # of the part, those whose image can be read, in the order that was asked for [n]
    vectors: NDArray[np.float64]  # what enters the head [n, width]


def part_vectors(
    run_dir: str | Path,
    part: str,
    rows: Sequence[int],
    backend: str | None = None,
    *,
    model: Any = None,
    head: Any = None,
) -> PartVectors:
    """Return the vectors of some images of a part of a finished run's data; those no longer there are left out.

    Args:
        run_dir: a folder that `tlx run` wrote.
        part: "train", "val" or "test".
        rows: places of the images in the part, as in the run's table of predictions; some hundred at most.
        backend: where they are computed; default: the backend that trained.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Raises:
        RunNotFound: there is no finished run in the folder.
        DataError: its data cannot be opened any more.
        TlxError: there is no such part or row, or a vector is not finite.
    """
    run = restore(run_dir, backend, model=model, head=head)
    parts = own_data(run).parts
    if part not in parts:
        raise TlxError(f"{run_dir} has no part {shown(part)}.{closest(str(part), parts)}")
    return vectors_of(run, parts[part], rows)


def vectors_of(run: Finished, images: Images, rows: Sequence[int]) -> PartVectors:
    """Return the vectors of some images of a part that is open already."""
    places = np.array(rows, np.int64).reshape(-1)
    if outside := [int(place) for place in places if not 0 <= place < len(images)]:
        raise TlxError(f"there is no row {outside[0]} of {len(images)}")
    chosen = images.select(places, images.labels[places])
    network = of_run(run)
    good: list[int] = []
    vectors: list[NDArray[np.float64]] = []
    with closing(classify(network, of_part(chosen, run.recipe.max_pixels))) as outcomes:
        for place, (_, vector) in zip(places.tolist(), chain.from_iterable(outcomes), strict=True):
            if not isinstance(vector, DataError):
                good.append(place)
                vectors.append(vector)
    width = vectors[0].size if vectors else network.width
    return PartVectors(np.array(good, np.int64), np.array(vectors, np.float64).reshape(len(good), width))
