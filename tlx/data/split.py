"""Parts of a part: chosen classes, limits and the validation split, all stratified and repeatable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.data.images import Images
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
    """The samples of the wanted classes, whose labels become positions in `wanted`."""
    for name in wanted:
        if name not in known:
            raise DataError(f"classes: the data has no class {name!r}.{closest(name, known)}")
        if list(wanted).count(name) > 1:
            raise DataError(f"classes: {name!r} is given twice.")
    table = np.array([wanted.index(name) if name in wanted else -1 for name in known], dtype=np.int64)
    labels = table[images.labels]
    kept = np.flatnonzero(labels >= 0)
    return images.select(kept, labels[kept])


def limit(images: Images, classes: Sequence[str], count: int, what: str) -> Images:
    """At most `count` samples, in the proportions and the order of `images`. Depends on nothing but the labels."""
    if count < len(classes):
        raise DataError(f"{what}={count} leaves a class without an image: give at least {len(classes)}.")
    if count >= len(images):
        return images
    chosen, _ = _divide(images.labels, len(classes), count, leave=0, seed=0, purpose="limit")
    return images.select(chosen, images.labels[chosen])


def split(images: Images, classes: Sequence[str], fraction: float, seed: int) -> tuple[Images, Images | None]:
    """Carve a validation part of ``round(fraction * N)`` samples out of a training part."""
    if not 0 <= fraction < 1:
        raise DataError(f"val_fraction must be at least 0 and below 1, got {fraction}.")
    if fraction == 0:
        return images, None
    count, least = round(fraction * len(images)), int(np.bincount(images.labels, minlength=len(classes)).min())
    if count < len(classes) or least < 2 or count > len(images) - len(classes):
        raise DataError(
            f"val_fraction={fraction} of {len(images)} training images is {count}, which cannot leave an image of each"
            f" of {len(classes)} classes on both sides: use more images, another fraction, or val_fraction=0."
        )
    held, rest = _divide(images.labels, len(classes), count, leave=1, seed=seed, purpose="split")
    return images.select(rest, images.labels[rest]), images.select(held, images.labels[held])


def hold_out(images: Images, classes: Sequence[str], fraction: float) -> tuple[Images, Images]:
    """Carve a test part out of a whole: always the same images, whatever the seed, so that runs can be compared."""
    if not 0 < fraction < 1:
        raise DataError(f"test_fraction must be at least 0 and below 1, got {fraction}.")
    count, least = round(fraction * len(images)), int(np.bincount(images.labels, minlength=len(classes)).min())
    if count < len(classes) or least < 2 or count > len(images) - len(classes):
        raise DataError(
            f"test_fraction={fraction} of {len(images)} images is {count}, which cannot leave an image of each of"
            f" {len(classes)} classes on both sides: use more images, another fraction, or test_fraction=0."
        )
    held, rest = _divide(images.labels, len(classes), count, leave=1, seed=0, purpose="test")
    return images.select(rest, images.labels[rest]), images.select(held, images.labels[held])


def _divide(
    labels: NDArray[np.int64], classes: int, count: int, *, leave: int, seed: int, purpose: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of `count` random samples and of the rest, each ascending, every class in proportion."""
    sizes = np.bincount(labels, minlength=classes)
    shares = _shares(sizes, count, leave)
    draw = rng.words(seed, purpose, 0, len(labels), 1)[:, 0]
    by_class = np.lexsort((draw, labels))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = rank < shares[labels]
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


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
