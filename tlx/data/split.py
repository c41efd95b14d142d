"""Parts of a part: chosen classes, limits and the validation split, all stratified and repeatable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.data.images import Images
from tlx.data.multilabel import class_counts, divide, is_multilabel
from tlx.errors import DataError, closest


def check_labels(labels: Any, classes: int | None, where: str) -> NDArray[np.int64]:
    """Labels as int64 [N], each in ``0 .. classes - 1``; floats, booleans and anything else are refused."""
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise DataError(f"{where}: labels must be integers in one dimension, got ragged lists.") from error
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{where}: labels must be integers in one dimension, got {array.dtype} {list(array.shape)}.")
    bad = np.flatnonzero((array < 0) | (array >= classes if classes is not None else False))
    if len(bad):
        last = "" if classes is None else f" .. {classes - 1}"
        raise DataError(f"{where}: label {array[bad[0]]} of sample {bad[0]} is not in 0{last}.")
    return array.astype(np.int64)


def pick_classes(images: Images, known: Sequence[str], wanted: Sequence[str]) -> Images:
    """Return the samples of the wanted classes; their labels become positions in `wanted`.

    Of several labels all samples are kept, also those to which none of the wanted classes applies.
    """
    there, places = set(known), dict[str, int]()
    for name in wanted:
        if name not in there:
            raise DataError(f"classes: the data has no class {name!r}.{closest(name, known)}")
        if name in places:
            raise DataError(f"classes: {name!r} is given twice", fix="name each class once")
        places[name] = len(places)
    if is_multilabel(images.labels):
        columns = [list(known).index(name) for name in wanted]
        return images.select(np.arange(len(images)), images.labels[:, columns])
    table = np.array([places.get(name, -1) for name in known], dtype=np.int64)
    labels = table[images.labels]
    indices = np.flatnonzero(labels >= 0)
    return images.select(indices, labels[indices])


def limit(images: Images, classes: Sequence[str], count: int, what: str) -> Images:
    """At most `count` samples, in the proportions and the order of `images`. Depends on nothing but the labels."""
    if count < len(classes):
        raise DataError(f"{what}={count} leaves a class without an image", fix=f"give at least {len(classes)}")
    if count >= len(images):
        return images
    chosen, _ = _divide(images.labels, len(classes), count, leave=0, seed=0, purpose="limit")
    return images.select(chosen, images.labels[chosen])


def hold_out(
    images: Images, classes: Sequence[str], fraction: float, part: Literal["val", "test"], seed: int = 0
) -> tuple[Images, Images | None]:
    """Hold ``round(fraction * N)`` images out as a validation or a test part, every class in proportion.

    Args:
        images: the training part, or a whole of which there is no test part yet.
        classes: names of the classes.
        fraction: of the images; 0 holds none out.
        part: what the held-out images are for. Each has a random stream of its own.
        seed: a test part keeps the default, so that it is the same whatever the run's seed and runs can be compared.

    Returns:
        What remains, and what was held out or None.

    Raises:
        DataError: the fraction is out of range, or a class would have no image on one side.
    """
    field, stream, what = {
        "val": ("val_fraction", "split", "training images"),
        "test": ("test_fraction", "test", "images"),
    }[part]
    if not 0 <= fraction < 1:
        raise DataError(f"{field} must be at least 0 and below 1, got {fraction}.")
    if fraction == 0:
        return images, None
    count, least = round(fraction * len(images)), int(class_counts(images.labels, len(classes)).min())
    if count < len(classes) or least < 2 or count > len(images) - len(classes):
        raise DataError(
            f"{field}={fraction} of {len(images)} {what} is {count}, which cannot leave an image of each of"
            f" {len(classes)} classes on both sides",
            fix=f"use more images, another fraction, or {field}=0",
        )
    chosen, rest = _divide(images.labels, len(classes), count, leave=1, seed=seed, purpose=stream)
    return images.select(rest, images.labels[rest]), images.select(chosen, images.labels[chosen])


def draw_per_class(images: Images, count: int, seed: int) -> Images:
    """At most `count` images of each class, drawn by the seed, in the order of `images`.

    Each class has one random order for a seed, of which the first are taken: a smaller draw is a part of a larger one.
    """
    chosen = np.flatnonzero(_ranks(images.labels, seed, "images per class") < count)
    return images.select(chosen, images.labels[chosen])


def _divide(
    labels: NDArray[np.int64], classes: int, count: int, *, leave: int, seed: int, purpose: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of `count` random samples and of the rest, each ascending, every class in proportion."""
    if is_multilabel(labels):
        return divide(labels, count, seed=seed, purpose=purpose)
    sizes = np.bincount(labels, minlength=classes)
    shares = _shares(sizes, count, leave)
    chosen = _ranks(labels, seed, purpose) < shares[labels]
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def _ranks(labels: NDArray[np.int64], seed: int, purpose: str) -> NDArray[np.int64]:
    """Each sample's place in a random order of its class, int64 [N]."""
    sizes = np.bincount(labels)
    draw = rng.words(seed, purpose, 0, len(labels), 1)[:, 0]
    by_class = np.lexsort((draw, labels))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def _shares(sizes: NDArray[np.int64], count: int, leave: int) -> NDArray[np.int64]:
    """Divide `count` in proportion to `sizes` by largest remainders: at least one each, `leave` of each not taken."""
    most = np.maximum(sizes - leave, 0)
    least = np.minimum(most, 1)
    total = int(sizes.sum())
    shares, remainders = np.clip(sizes * count // total, least, most), sizes * count % total
    while missing := count - int(shares.sum()):
        step = 1 if missing > 0 else -1
        able = np.flatnonzero(shares < most if missing > 0 else shares > least)
        first = able[np.argsort(-step * remainders[able], kind="stable")]
        shares[first[: abs(missing)]] += step
    return shares
