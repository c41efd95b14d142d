"""Arrays and sequences that a user passes in Python."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import ArrayImages, Images
from tlx.data.sources.items import is_image, is_label
from tlx.data.sources.labels import Labels, number_labels, read_labels
from tlx.data.sources.pixels import as_numpy, describe, to_pixels
from tlx.data.sources.sequence import SequenceImages, from_images, from_sequence, is_sequence
from tlx.data.sources.source import Kind, Source
from tlx.errors import DataError, TlxError, closest, one_line

KEYS = ("all", "train", "val", "test", "classes")
ALSO = {"validation": "val", "valid": "val"}  # what others call a part
HOW = "{'train': (images, labels), 'test': (images, labels)}"


def from_arrays(source: Any, root: Path | None = None) -> Source:
    """Arrays and sequences in Python; see `load_data`."""
    try:
        return _from_arrays(source, root)
    except (TlxError, MemoryError):
        raise
    except Exception as error:  # an object of foreign code may fail at anything that it is asked
        reason = one_line(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise DataError(f"data: a {type(source).__name__} cannot be read ({reason})") from error


def _from_arrays(source: Any, root: Path | None) -> Source:
    notes: list[str] = []
    entries = _entries(source, notes)
    names = entries.pop("classes", None)
    if names is not None:
        names = _names(names)
    parts: dict[str, Images] = {}
    labels: dict[str, Labels] = {}
    for part, entry in entries.items():
        parts[part], labels[part] = _part(entry, part, root, notes)
        if len(parts[part]) != len(labels[part].values):
            raise DataError(f"{part}: {len(parts[part])} images but {len(labels[part].values)} labels.")
    classes, numbers, bad = number_labels(labels, names, notes)
    return Source("arrays", classes, {p: _labelled(parts[p], numbers[p]) for p in parts}, notes, bad)


def _names(names: Any) -> tuple[str, ...]:
    if isinstance(names, (str, bytes)) or not hasattr(names, "__iter__"):
        raise DataError(
            f"data['classes'] is {describe(names)}; expected a list of names, in the order of their numbers"
        )
    known = tuple(str(name) for name in names)
    if not known or len(set(known)) != len(known):
        raise DataError(f"data['classes'] {'holds a name twice' if known else 'is empty'}: {', '.join(known)}.")
    return known


def _labelled(images: Images, labels: NDArray[np.int64]) -> Images:
    assert isinstance(images, (ArrayImages, SequenceImages))
    return replace(images, labels=labels)


def _entries(source: Any, notes: list[str]) -> dict[str, Any]:
    """The parts, and "classes" if they are given, in the order of `KEYS`."""
    if isinstance(source, tuple):
        if _is_pair(source):
            notes.append("the tuple was taken as (images, labels)")
            return {"all": source}
        if len(source) != 2:
            raise DataError(
                f"data as a tuple must be (train, test), each (images, labels); got {len(source)} items",
                fix=f"write {HOW}, or a list of (image, label)",
            )
        return {"train": source[0], "test": source[1]}
    if not isinstance(source, Mapping):
        return {"all": source}
    entries: dict[str, Any] = {}
    for key in source:
        name = ALSO.get(key, key) if isinstance(key, str) else key
        if name not in KEYS:
            raise DataError(f"data: unknown key {key!r}.{closest(str(key), KEYS[1:])} Data is written as {HOW}.")
        if name in entries:
            raise DataError(
                f"data: {key!r} is another name of {name!r}, which is there as well", fix="give one of them"
            )
        if name != key:
            notes.append(f"{key!r} was taken as {name!r}")
        entries[name] = source[key]
    if "train" not in entries and "all" not in entries:
        raise DataError("data: arrays need a 'train' entry: (images, labels).")
    if "all" in entries and entries.keys() & {"train", "val", "test"}:
        raise DataError(
            "data: 'all' is a whole, of which the test part is drawn", fix="call it 'train', or give it alone"
        )
    return {key: entries[key] for key in KEYS if key in entries}


def _part(entry: Any, part: str, root: Path | None, notes: list[str]) -> tuple[Images, Labels]:
    """Read a part: (images, labels), or a sequence of (image, label)."""
    if hasattr(entry, "dataset") and hasattr(entry, "batch_size"):
        raise DataError(
            f"{part} is a {type(entry).__name__}, which makes batches: tlx does that itself", fix="pass loader.dataset"
        )
    if hasattr(entry, "iloc") and hasattr(entry, "columns"):
        raise DataError(
            f"{part} is a {type(entry).__name__} with the columns {', '.join(map(str, entry.columns))}",
            fix="pass pairs of path and label: list(zip(table['path'], table['label']))",
        )
    if _is_pair(entry):
        x, y = entry
        if isinstance(x, (list, tuple)):
            images, bad = from_images(x, part, root, notes)
            _same_length(len(x), y, part)
            return images, read_labels(y, part, notes, bad)
        return _array_part(x, y, part, notes)
    if isinstance(entry, Mapping):
        raise DataError(
            f"{part} is a mapping with the keys {', '.join(map(str, list(entry)[:10]))}",
            fix="pass (images, labels), such as (data['image'], data['label'])",
        )
    if is_sequence(entry) and as_numpy(entry) is None:
        return from_sequence(entry, part, root, notes)
    if as_numpy(entry) is not None:
        what = f"it is {describe(entry)} without labels"
    elif hasattr(entry, "__iter__") or hasattr(entry, "__getitem__"):
        raise DataError(f"{part}: a {type(entry).__name__} has no length or no items by number", fix="pass list(data)")
    else:
        what = f"it is {describe(entry)}"
    raise DataError(f"data[{part!r}] must be a pair (images, labels) or a sequence of (image, label): {what}.")


def _is_pair(entry: Any) -> bool:
    """Whether it is (images, labels), and not a sequence of two (image, label) nor (train, test)."""
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        return False
    images, labels = entry
    array = as_numpy(images)
    if array is not None:
        return hasattr(type(labels), "__iter__") or as_numpy(labels) is not None or is_label(labels)
    if not isinstance(images, (list, tuple)) or not len(images) or not is_image(images[0]):
        return False
    if len(images) == 2 and is_label(images[1]) and not (isinstance(images, list) and isinstance(images[1], str)):
        return False  # it is the first of two items
    if len(images) == 2 and isinstance(labels, (list, tuple)) and len(labels) == 2 and not is_label(labels[0]):
        return False  # they are two parts, or two items
    return as_numpy(labels) is not None or isinstance(labels, (list, tuple))


def _array_part(x: Any, y: Any, part: str, notes: list[str]) -> tuple[Images, Labels]:
    array = as_numpy(x)
    assert array is not None
    _same_length(len(array) if array.ndim else 0, y, part)
    bad: dict[int, str] = {}
    if array.dtype.kind == "f" and array.ndim > 1:
        finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        bad = {int(i): f"{part}: image {i} holds NaN or infinity" for i in np.flatnonzero(~finite)}
        if 0 < len(bad) < len(array):
            array = np.where(finite.reshape(-1, *[1] * (array.ndim - 1)), array, 0)
    remarks: Counter[str] = Counter()
    pixels = to_pixels(array, f"{part}: images", batch=True, tensor=hasattr(x, "detach"), remarks=remarks)
    notes += [f"{part}: {remark}" for remark in remarks]
    labels = read_labels(y, part, notes, bad)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return ArrayImages(planes, np.full(len(planes), -1), [f"{part}/{i}" for i in range(len(planes))]), labels


def _same_length(images: int, labels: Any, part: str) -> None:
    array = as_numpy(labels)
    if array is None and not hasattr(labels, "__len__"):
        raise DataError(f"{part}: labels are {describe(labels)}", fix="pass a list or an array of them")
    count = len(labels) if array is None else array.shape[0] if array.ndim else 0
    if images != count:
        raise DataError(f"{part}: {images} images but {count} labels.")


def _is_data(candidate: Any) -> bool:
    """Whether it may be data in Python: whatever has items, though these may be of no use."""
    if isinstance(candidate, (str, bytes, os.PathLike)):
        return False
    return any(hasattr(type(candidate), method) for method in ("__iter__", "__getitem__"))


ARRAYS = Kind(
    name="arrays",
    help="in Python arrays or a sequence of (image, label)",
    read=from_arrays,
    recognises=_is_data,
)
