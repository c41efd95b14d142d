"""Arrays and sequences that a user passes in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import ArrayImages, Images
from tlx.data.sources.sequence import from_sequence, is_sequence
from tlx.data.sources.source import Kind, Source
from tlx.data.split import check_labels
from tlx.errors import DataError, closest


def from_arrays(source: Any, root: Path | None = None) -> Source:
    """Arrays and sequences in Python; see `load_data`."""
    entries = _entries(source)
    names = entries.pop("classes", None)
    if names is not None:
        names = tuple(str(name) for name in names)
    parts: dict[str, Images] = {}
    for part, entry in entries.items():
        if _is_pair_of_arrays(entry):
            x, y = entry
            parts[part] = _array_part(x, check_labels(y, None if names is None else len(names), part), part)
        elif is_sequence(entry):
            parts[part], own = from_sequence(entry, part)
            names = names or own
        else:
            raise DataError(f"data[{part!r}] must be a pair (images, labels) or a sequence of (image, label).")
    if names is None:
        top = max(int(images.labels.max(initial=0)) for images in parts.values())
        count = len(parts.get("train", parts.get("all", ())))
        if top >= count:
            raise DataError(f"data: label {top} among {count} training images", fix="number the classes from 0")
        names = tuple(str(i) for i in range(top + 1))
    if len(set(names)) != len(names):
        raise DataError(f"data['classes'] holds a name twice: {', '.join(names)}.")
    for part, images in parts.items():
        check_labels(images.labels, len(names), part)
    return Source("arrays", names, parts)


def _entries(source: Any) -> dict[str, Any]:
    if isinstance(source, tuple):
        if len(source) != 2:
            raise DataError(f"data as a tuple must be (train, test), each (images, labels); got {len(source)} items.")
        return {"train": source[0], "test": source[1]}
    if not isinstance(source, Mapping):
        return {"all": source}
    for key in source:
        if key not in ("train", "val", "test", "all", "classes"):
            raise DataError(f"data: unknown key {key!r}.{closest(str(key), ['train', 'val', 'test', 'classes'])}")
    if "train" not in source and "all" not in source:
        raise DataError("data: arrays need a 'train' entry: (images, labels).")
    order = ("all", "train", "val", "test", "classes")
    return {key: source[key] for key in order if key in source}


def _is_pair_of_arrays(entry: Any) -> bool:
    """Whether it is (images, labels), and not a sequence of two (image, label)."""
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        return False
    first = entry[0]
    return not (
        isinstance(first, (tuple, list)) and len(first) == 2 and not np.isscalar(first[0]) and _is_label(first[1])
    )


def _is_label(value: Any) -> bool:
    return np.ndim(value) == 0 and not isinstance(value, str)


def _array_part(x: Any, labels: NDArray[np.int64], part: str) -> ArrayImages:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{part}: images must be equal in size", fix="resize them first or pass a folder") from error
    if array.dtype != np.uint8:
        raise DataError(f"{part}: images must be uint8 0..255, got {array.dtype}", fix="convert them first")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape:
        raise DataError(f"{part}: images must be [N, height, width, 3] or [N, height, width], got {list(array.shape)}.")
    if len(array) != len(labels):
        raise DataError(f"{part}: {len(array)} images but {len(labels)} labels.")
    planes = np.broadcast_to(array.transpose(0, 3, 1, 2), (len(array), 3, *array.shape[1:3]))
    return ArrayImages(np.array(planes, order="C"), labels, [f"{part}/{i}" for i in range(len(labels))])


ARRAYS = Kind(
    name="arrays",
    help="in Python arrays or a sequence of (image, label)",
    read=from_arrays,
    recognises=lambda candidate: isinstance(candidate, (Mapping, tuple)) or is_sequence(candidate),
)
