"""What lies inside data sets made of data sets, such as subsets: names of classes, and labels that need no reading."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.sources.pixels import as_numpy

DEEPEST = 20  # wrappers in wrappers; a circle would have no end

# Methods that are known to return the item of the data set inside unchanged, and those that return the label that
# stands in an attribute, unless a `target_transform` follows.
UNCHANGED = tuple(
    f"{package}.utils.data.dataset.{name}.__getitem__"
    for package in ("torch", "oneflow")
    for name in ("Subset", "ConcatDataset")
)
STORED = {
    f"{package}.datasets.{name}.__getitem__": attribute
    for package in ("torchvision", "flowvision")
    for name, attribute in (
        ("cifar.CIFAR10", "targets"),
        ("mnist.MNIST", "targets"),
        ("folder.DatasetFolder", "samples"),
        ("svhn.SVHN", "labels"),
        ("stl10.STL10", "labels"),
    )
}


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A data set that holds items itself: the places in the whole that come from it, and where in it they stand."""

    source: Any
    places: NDArray[np.int64]
    indices: NDArray[np.int64]


def unfold(source: Any) -> tuple[list[Leaf], bool]:
    """Return the data sets inside wrappers, and whether all wrappers are known to change no item."""
    everything = np.arange(len(source), dtype=np.int64)
    return _unfold(source, everything, everything, DEEPEST)


def _unfold(source: Any, places: NDArray[np.int64], indices: NDArray[np.int64], depth: int) -> tuple[list[Leaf], bool]:
    inside = _inside(source) if depth else None
    if inside is None:
        return [Leaf(source, places, indices)], True
    leaves: list[Leaf] = []
    exact = _method(source) in UNCHANGED
    for part, positions, inner in inside:
        row = np.full(len(source), -1, dtype=np.int64)
        row[positions] = inner
        here = row[indices] >= 0
        found, same = _unfold(part, places[here], row[indices][here], depth - 1)
        leaves, exact = leaves + found, exact and same
    return leaves, exact


def _inside(source: Any) -> list[tuple[Any, NDArray[np.int64], NDArray[np.int64]]] | None:
    """The data sets directly inside: each with the places that come from it and their indices in it."""
    count = len(source)
    everything = np.arange(count, dtype=np.int64)
    datasets = getattr(source, "datasets", None)
    if isinstance(datasets, (list, tuple)) and datasets and all(hasattr(part, "__len__") for part in datasets):
        ends = np.cumsum([len(part) for part in datasets])
        if ends[-1] == count:
            starts = [0, *ends[:-1].tolist()]
            return [
                (part, everything[start:end], np.arange(end - start, dtype=np.int64))
                for part, start, end in zip(datasets, starts, ends.tolist(), strict=True)
                if end > start
            ]
    for name in ("dataset", "subset"):
        inner: Any = getattr(source, name, None)
        if hasattr(inner, "__len__") and hasattr(inner, "__getitem__") and not isinstance(inner, (str, Mapping)):
            chosen = getattr(source, "indices", None)
            indices = everything if chosen is None or callable(chosen) else np.asarray(chosen)
            if indices.shape != (count,) or indices.dtype.kind not in "iu":
                return None
            indices = np.where(indices < 0, indices + len(inner), indices).astype(np.int64)
            within = ((indices >= 0) & (indices < len(inner))).all()
            return [(inner, everything, indices)] if within else None
    return None


def _method(source: Any) -> str:
    method = getattr(type(source), "__getitem__", None)
    return f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', '')}"


def returned_labels(leaf: Leaf) -> NDArray[np.int64] | None:
    """The labels that a data set is known to return, without reading an item; None where only reading tells."""
    attribute = STORED.get(_method(leaf.source))
    joint = getattr(leaf.source, "transforms", None)
    changed = (getattr(leaf.source, "target_transform", None), getattr(joint, "target_transform", joint))
    if attribute is None or any(transform is not None for transform in changed):
        return None
    values = getattr(leaf.source, attribute)
    if attribute == "samples":
        values = [label for _, label in values]
    return _numbers(values, leaf)


def stored_labels(leaf: Leaf) -> NDArray[np.int64] | None:
    """The labels that a data set holds, which its items need not have; None where it holds none."""
    for attribute in ("targets", "labels"):
        values = getattr(leaf.source, attribute, None)
        if values is not None and not callable(values):
            return _numbers(values, leaf)
    return None


def stored_images(leaf: Leaf) -> Any:
    """What the images of a data set are known to be made of, by index: paths in a list, an array, or None."""
    attribute = STORED.get(_method(leaf.source))
    if attribute == "samples":
        return [str(path) for path, _ in leaf.source.samples]
    return None if attribute is None else as_numpy(getattr(leaf.source, "data", None))


def _numbers(values: Any, leaf: Leaf) -> NDArray[np.int64] | None:
    array = as_numpy(values)
    try:
        array = np.asarray(values) if array is None else array
    except ValueError:  # ragged
        return None
    if array.shape != (len(leaf.source),) or array.dtype.kind not in "iu":
        return None
    return array[leaf.indices].astype(np.int64)


def class_names(source: Any, label_key: Any = None) -> dict[int, str] | None:
    """What a data set calls its class numbers: by `classes`, `class_to_idx` or the feature `label_key`; else None."""
    feature = getattr(source, "features", None)
    feature = feature.get(label_key) if isinstance(feature, Mapping) else None
    listed = next(
        (names for names in (getattr(source, "classes", None), getattr(feature, "names", None)) if _is_list(names)),
        None,
    )
    names = None if listed is None else {i: _name(name) for i, name in enumerate(listed)}
    index = getattr(source, "class_to_idx", None)
    numbered = isinstance(index, Mapping) and all(isinstance(n, numbers.Integral) for n in index.values())
    if numbered and index and (names is None or any(int(index.get(name, i)) != i for i, name in names.items())):
        names = {}  # a data set numbers its labels by this table
        for name, number in index.items():  # several names may have one number
            names[int(number)] = f"{names[int(number)]}/{name}" if int(number) in names else str(name)
    if not names:
        return None
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    return {number: f"{name} ({number})" if name in twice else name for number, name in names.items()}


def _is_list(names: Any) -> bool:
    return isinstance(names, (list, tuple)) or (isinstance(names, np.ndarray) and names.ndim == 1)


def _name(name: Any) -> str:
    return ", ".join(map(str, name)) if isinstance(name, (list, tuple)) else str(name)
