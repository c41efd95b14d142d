"""The images of a file of embeddings that are most like others, by the cosine of their vectors."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import EXTENSIONS
from tlx.errors import DataError, TlxError
from tlx.runs.classify import BadImages, classify
from tlx.runs.display import Display
from tlx.runs.embeddings.embedder import Embedder, differs, open_embedder
from tlx.runs.embeddings.file import Block, Files, Header, blocks, read_headers
from tlx.runs.inputs import Input, Notes, find_inputs

TOP = 12
QUERIES = 10_000  # whose vectors and neighbours are in memory together
DIGITS = 9  # of a cosine: what differs by less is equal, as float32 vectors tell no more


class Neighbor(TypedDict):
    """An image of the file, and the cosine of its vector and the query's: 1 is the same direction."""

    index: int
    path: str
    label: str | None
    part: str
    cosine: float


class Similar(TypedDict):
    """What is most like one image, the nearest first; with `error` there is nothing, because it cannot be read."""

    path: str
    neighbors: list[Neighbor]
    error: str | None


def similar(
    source: str | Path,
    images: Any,
    embeddings: Files,
    *,
    top: int = TOP,
    sheet: str | Path | None = None,
    backend: str | None = None,
    weights: str | None = None,
    quiet: bool = False,
    model: Any = None,
    head: Any = None,
) -> list[Similar]:
    """Find the images of a file of embeddings that are most like others.

    The file is read a few thousand rows at a time. Of equal cosines, rounded to 9 digits, the image that comes first in
    the data counts as nearer. A vector of zeros has cosine 0 with all others.

    Args:
        source: what made the embeddings: the folder of the run, or the name of the model.
        images: the queries: whatever `tlx.predict` takes.
        embeddings: the file that `tlx.embed` wrote, or a list of its shards.
        top: how many neighbours to return of each.
        sheet: a .png file for a sheet of pictures: each query with its neighbours.
        backend: where the vectors of the queries are computed, as in `tlx.embed`.
        weights: of a model by its name, as in `tlx.embed`.
        quiet: show nothing on stderr.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Raises:
        DataError: a file is no such file, is of another model or preprocessing, or there is no query that can be read.
        TlxError: `top` is below 1, or the sheet cannot be written.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise TlxError(f"top is {top}; expected at least 1")
    if sheet is not None:
        from tlx.runs.embeddings.sheet import check_sheet

        check_sheet(sheet)
    headers = read_headers(embeddings)
    run = open_embedder(source, backend, weights, model=model, head=head)
    for header in headers:
        check_alike(run, header)
    display = Display(quiet)
    asked, vectors, rows = _queries(run, images, display)
    nearest = _nearest(np.array(vectors, np.float64).reshape(len(vectors), -1), headers, top)
    found = iter(nearest)
    for row in rows:
        if row["error"] is None:
            row["neighbors"] = next(found)
    if sheet is not None:
        from tlx.runs.embeddings.sheet import write_sheet

        readable = [(item, row["neighbors"]) for item, row in zip(asked, rows, strict=True) if row["error"] is None]
        write_sheet(sheet, readable, headers, run.recipe.max_pixels)
    return rows


def check_alike(run: Embedder, header: Header) -> None:
    """Raise DataError where the vectors of a file cannot be compared with those of a model."""
    if what := differs(run.identity(), header.identity()):
        fix = "name what made them, or embed the data again into another file"
        raise DataError(f"{header.path} holds vectors of {what}", fix=fix)


def _queries(
    run: Embedder, images: Any, display: Display
) -> tuple[list[Input], list[NDArray[np.float64]], list[Similar]]:
    """Return the queries, the vectors of those that can be read, and a row for each."""
    notes, bad = Notes(), BadImages(display)
    asked: list[Input] = []
    vectors: list[NDArray[np.float64]] = []
    rows: list[Similar] = []
    with closing(classify(run, find_inputs(images, notes, run.recipe.max_pixels))) as outcomes:
        for item, vector in chain.from_iterable(outcomes):
            if len(asked) == QUERIES:
                raise DataError(f"there are more than {QUERIES:,} queries", fix="ask for fewer at a time")
            problem = vector.problem.rstrip(".") if isinstance(vector, DataError) else None
            asked.append(item)
            rows.append({"path": item.name, "neighbors": [], "error": problem})
            if isinstance(vector, DataError):
                bad.add(item, vector)
            else:
                bad.say()
                vectors.append(vector)
    for note in notes.all():
        display.say(note)
    if not rows:
        raise DataError(f"no images: expected files, folders of photos ({', '.join(sorted(EXTENSIONS))}) or arrays")
    bad.conclude(len(rows))
    return asked, vectors, rows


def _nearest(queries: NDArray[np.float64], headers: Sequence[Header], top: int) -> list[list[Neighbor]]:
    """Return the neighbours of each query [Q, width], the nearest first."""
    best: list[list[tuple[float, int, Neighbor]]] = [[] for _ in queries]
    unit = _unit(queries)
    for header in headers:
        for block in blocks(header):
            cosines = np.round(unit @ _unit(block.vectors.astype(np.float64)).T, DIGITS) + 0.0  # no -0.0
            for number, row in enumerate(cosines):
                ranked = [
                    (-float(row[i]), int(block.indices[i]), _neighbor(block, i, row[i])) for i in _first(row, top)
                ]
                best[number] = heapq.nsmallest(top, chain(best[number], ranked), key=lambda entry: entry[:2])
    return [[neighbor for _, _, neighbor in entries] for entries in best]


def _first(cosines: NDArray[np.float64], top: int) -> NDArray[np.int64]:
    """Return the places of the highest, of equal ones all that may count."""
    if len(cosines) <= top:
        return np.arange(len(cosines))
    least = np.partition(cosines, -top)[-top]
    above, equal = np.flatnonzero(cosines > least), np.flatnonzero(cosines == least)
    return np.concatenate([above, equal[: top - len(above)]]) if len(above) < top else above


def _neighbor(block: Block, place: int, cosine: float) -> Neighbor:
    return {
        "index": int(block.indices[place]),
        "path": block.paths[place],
        "label": block.labels[place],
        "part": block.parts[place],
        "cosine": float(cosine),
    }


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
