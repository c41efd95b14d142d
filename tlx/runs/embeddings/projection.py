"""Vectors as points on a plane, by t-SNE: what is alike lies together."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.atomic import replacing
from tlx.errors import DataError, TlxError, shown
from tlx.runs.display import Display
from tlx.runs.embeddings.file import Block, Files, Header, blocks, check_out, in_order, joined, read_all, read_headers

POINTS = 5_000  # of a map: scikit-learn takes a minute for them on two cores
FEWEST = 5  # vectors that t-SNE is for; fewer are laid out by their principal components
AXES = 50  # principal components that t-SNE sees, as van der Maaten & Hinton 2008, section 4.2, take 30
PERPLEXITY = 30.0  # their customary one; less where there are few vectors
EVERY, ROUNDS = 50, 15  # openTSNE says after how many of its 750 steps how far it has come
SLOW = 1_000  # points for which scikit-learn, which says nothing, takes more than some seconds

Plane = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingMap:
    """What `tlx.tsne` returns: N points, in the order of the data.

    Attributes:
        coordinates: float64 [N, 2].
        indices: the place of each in the data, int64 [N].
        paths: what the data call each.
        labels: of each; None where it has none.
        parts: of the data that each is in.
        images: how many vectors the files hold; N of them were drawn.
        method: what laid them out.
    """

    coordinates: Plane
    indices: NDArray[np.int64]
    paths: list[str]
    labels: list[str | None]
    parts: list[str]
    images: int
    method: str

    def __repr__(self) -> str:
        return f"<EmbeddingMap of {len(self.coordinates):,} points by {self.method}>"


def project(vectors: NDArray[Any], *, seed: int = 0, display: Display | None = None) -> Plane:
    """Lay vectors out on a plane by t-SNE, so that vectors whose cosine is high lie together.

    Vectors are scaled to length 1 and reduced to 50 principal components; the layout begins with the first two (Kobak
    & Berens, "The art of using t-SNE for single-cell transcriptomics", 2019). Below 5 vectors, and where all are equal,
    it is these two. The same seed gives the same points on the same machine and versions. By openTSNE where that is
    installed, otherwise by scikit-learn.

    Args:
        vectors: float [n, d].
        seed: of what is drawn.
        display: says how far it has come, if it takes long.

    Returns:
        float64 [n, 2], around 0.

    Raises:
        DataError: they are no such array, or not finite.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.shape[1]:
        raise DataError(f"vectors are {array.dtype} {list(array.shape)}; expected float [n, d]")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"vector {int((~np.isfinite(array).all(axis=1)).argmax())} holds NaN or an infinity")
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    array = np.divide(array, lengths, out=np.zeros_like(array), where=lengths > 0)
    array = array - array.mean(axis=0) if len(array) else array
    if len(array) < FEWEST or np.abs(array).max() < 1e-6:
        return _principal(array)
    return _tsne(_reduced(array, seed), _seed(seed), display or Display(quiet=True))


def method() -> str:
    """Say what lays out."""
    from importlib.metadata import version

    name = "openTSNE" if find_spec("openTSNE") is not None else "scikit-learn"
    return f"t-SNE ({name} {version(name)})"


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise TlxError(f"seed is {shown(seed)}; expected a whole number from 0 to {2**32 - 1}")
    return int(seed)


def _principal(centred: Plane) -> Plane:
    """The first two principal components of centred vectors [n, d], each with its largest coordinate positive."""
    points = np.zeros((len(centred), 2))
    if not len(centred) or not np.abs(centred).max() > 1e-6:
        return points
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    found = centred @ axes[:2].T
    signs = np.sign(found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])])
    points[:, : found.shape[1]] = found * np.where(signs == 0, 1, signs)
    return points


def _reduced(centred: Plane, seed: int) -> Plane:
    from sklearn.decomposition import PCA

    if centred.shape[1] <= AXES or len(centred) <= AXES:
        return centred
    solver = "full" if centred.shape[1] <= 10 * AXES else "randomized"
    return np.asarray(PCA(AXES, svd_solver=solver, random_state=seed).fit_transform(centred))


def _tsne(array: Plane, seed: int, display: Display) -> Plane:
    perplexity = min(PERPLEXITY, (len(array) - 1) / 3)
    start = _principal(array)
    start = start / max(start[:, 0].std(), 1e-12) * 1e-4
    options: dict[str, Any]
    if find_spec("openTSNE") is not None:
        from openTSNE import TSNE as Open

        advance, rounds = display.counted("laying out"), count(1)
        options = {"callbacks": lambda *state: advance(next(rounds), ROUNDS), "callbacks_every_iters": EVERY}
        fitted = Open(perplexity=perplexity, initialization=start, random_state=seed, n_jobs=1, **options).fit(array)
        points = np.asarray(fitted, np.float64)
    else:
        from sklearn.manifold import TSNE

        if len(array) > SLOW:
            display.say(f"laying out {len(array):,} images, which takes a minute or less")
        options = {"perplexity": perplexity, "init": start, "random_state": seed, "n_jobs": 1}
        points = np.asarray(TSNE(2, **options).fit_transform(array), np.float64)
    return np.asarray(points - points.mean(axis=0))


def tsne(embeddings: Files, out: str | Path | None = None, *, seed: int = 0, quiet: bool = False) -> EmbeddingMap:
    """Draw a map of embeddings by t-SNE, with a colour for each label.

    Of more than 5,000 images that many are drawn by the seed, of each label in proportion.

    Args:
        embeddings: the file that `tlx.embed` wrote, or a list of its shards.
        out: a .png file, or a .csv file with the columns index, path, label, part, x and y; default: none is written.
        seed: of the images that are drawn, and of their layout.
        quiet: show nothing on stderr.

    Raises:
        DataNotFound: there is no such file.
        DataError: a file is damaged or holds something else, or there are no vectors.
        TlxError: `out` is no such name, or cannot be written.
    """
    target = None if out is None else check_out(out, (".png", ".csv"))
    number, display, headers = _seed(seed), Display(quiet), read_headers(embeddings)
    images = sum(header.rows for header in headers)
    chosen = read_all(embeddings)[1] if images <= POINTS else _sample(headers, number)
    if not len(chosen.indices):
        raise DataError(f"{headers[0].path} holds no vectors", fix="embed some images")
    if len(chosen.indices) < images:
        display.say(f"{POINTS:,} of {images:,} images are on the map, of each label in proportion; for all of them:")
        display.say(larger(headers))
    points = project(chosen.vectors, seed=number, display=display)
    how = method() if len(chosen.indices) >= FEWEST else "principal components"
    plane = EmbeddingMap(points, chosen.indices, chosen.paths, chosen.labels, chosen.parts, images, how)
    if target is not None and target.name.lower().endswith(".csv"):
        _write_csv(plane, target)
    elif target is not None:
        from tlx.runs.embeddings.picture import write_map

        write_map(plane, str(headers[0].facts.get("model")), target)
    return plane


def larger(headers: list[Header]) -> str:
    """Return the command of a viewer that shows any number of vectors."""
    files = " ".join(os.fspath(header.path) for header in headers)
    return f"pip install embedding-atlas; embedding-atlas {files} --vector vector"


def _sample(headers: list[Header], seed: int) -> Block:
    """Return POINTS rows of files, of each label in proportion; memory holds the labels, and what is chosen."""
    names: dict[str | None, int] = {}
    indices, groups = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for header in headers:
        for block in blocks(header):
            indices.append(block.indices)
            groups.append(np.array([names.setdefault(label, len(names)) for label in block.labels], np.int64))
    order = in_order(np.concatenate(indices))
    wanted = np.zeros(len(order), np.bool_)
    wanted[order[_stratified(np.concatenate(groups)[order], seed)]] = True
    chosen, at = [], 0
    for header in headers:
        for block in blocks(header):
            chosen.append(block.at(np.flatnonzero(wanted[at : at + len(block.indices)])))
            at += len(block.indices)
    return joined(chosen, headers[0].width)


def _stratified(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the places of POINTS of some images by their groups [n], drawn by tlx's own streams."""
    shuffled = np.argsort(rng.words(seed, "map", 0, len(groups), 1)[:, 0], kind="stable")
    by_group = shuffled[np.argsort(groups[shuffled], kind="stable")]
    sizes = np.bincount(groups)
    number = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its group
    share = np.empty(len(groups))
    share[by_group] = (number + 0.5) / sizes[groups[by_group]]
    return np.sort(np.argsort(share, kind="stable")[:POINTS])


def _write_csv(plane: EmbeddingMap, target: Path) -> None:
    with replacing(target) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writerow(["index", "path", "label", "part", "x", "y"])
        labels = ["" if label is None else label for label in plane.labels]
        numbers = plane.coordinates.tolist()
        for index, path, label, part, (x, y) in zip(
            plane.indices.tolist(), plane.paths, labels, plane.parts, numbers, strict=True
        ):
            writer.writerow([index, path, label, part, x, y])
        text.detach()
