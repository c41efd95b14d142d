"""Where the image and the label stand in an item: (image, label), a named tuple, or a mapping with keys for both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlx.data.sources.pixels import SystematicError, as_numpy, describe, is_path
from tlx.errors import DataError

IMAGE_KEYS = ("image", "img", "photo", "picture", "pixel_values", "x")
PATH_KEYS = ("path", "file", "filename", "file_name", "filepath", "image_path")
LABEL_KEYS = ("label", "labels", "target", "class", "class_name", "category", "y", "fine_label", "coarse_label")


@dataclass(frozen=True, slots=True)
class Form:
    """Keys of the image and of the label: places in a tuple of `entries`, or names in a mapping (`entries` is 0)."""

    image: Any = 0
    label: Any = 1
    entries: int = 2

    def split(self, item: Any, where: str) -> tuple[Any, Any]:
        """Return the image and the label of an item; a DataError says how it differs from the others."""
        if self.entries:
            if not isinstance(item, (tuple, list)):
                raise DataError(f"{where} is not a pair (image, label): it is {describe(item)}")
            if len(item) != self.entries:
                raise DataError(f"{where} has {len(item)} entries; expected {self.entries}")
        else:
            for key in (self.image, self.label):
                if not isinstance(item, Mapping) or key not in item:
                    raise DataError(f"{where} is {describe(item)} without {key!r}")
        return item[self.image], item[self.label]


PAIR = Form()


def find_form(item: Any, where: str, part: str, notes: list[str]) -> Form:
    """Find the image and the label in the first item of a data set.

    Raises:
        DataError: it is not an item at all. `SystematicError` if it is one, but not of one image and one label.
    """
    if isinstance(item, Mapping):
        image, label = _keys(list(item), where)
        notes.extend(_note(part, image, label, item))
        return Form(image, label, 0)
    if not isinstance(item, (tuple, list)):
        what = "an image without a label" if is_image(item) and not isinstance(item, str) else describe(item)
        raise DataError(f"{where} is not a pair (image, label): it is {what}")
    fields = list(getattr(item, "_fields", ()))
    if len(fields) == len(item) and set(fields) & {*IMAGE_KEYS, *PATH_KEYS} and set(fields) & set(LABEL_KEYS):
        image, label = _keys(fields, where)
        notes.extend(_note(part, image, label, fields))
        return Form(fields.index(image), fields.index(label), len(item))
    if len(item) != 2:
        raise SystematicError(
            f"{where} is not a pair (image, label): it has {len(item)} entries",
            fix="pass pairs, such as [(item[0], item[1]) for item in dataset]",
        )
    if is_image(item[1]) and not isinstance(item[1], str) and not is_image(item[0]):
        raise SystematicError(f"{where} is (label, image); expected (image, label)", fix="[(x, y) for y, x in dataset]")
    return PAIR


def is_image(value: Any) -> bool:
    """Whether a value may be one image: Pillow's, an array or a tensor of two or three axes, or a path."""
    from PIL.Image import Image

    if isinstance(value, Image) or is_path(value):
        return True
    array = None if np.isscalar(value) else as_numpy(value)
    return array is not None and array.ndim in (2, 3) and array.size > array.shape[0]


def is_label(value: Any) -> bool:
    """Whether a value may be one label: a number, a text, or a row of numbers."""
    if isinstance(value, (str, bytes, bool, int, float)):
        return True
    if isinstance(value, (list, tuple)):
        return all(isinstance(entry, (bool, int, float)) for entry in value)
    array = as_numpy(value)
    return array is not None and array.ndim <= 1


def _keys(keys: list[Any], where: str) -> tuple[Any, Any]:
    """The keys of the image and the label; an image goes before a path."""
    labels = [key for key in keys if key in LABEL_KEYS]
    images = [key for key in keys if key in IMAGE_KEYS] or [key for key in keys if key in PATH_KEYS]
    if len(keys) == 2 and len(labels) + len(images) == 1:  # the other key can only be the other one
        (other,) = (key for key in keys if key not in (*labels, *images))
        labels, images = labels or [other], images or [other]
    for what, candidates in (("image", images), ("label", labels)):
        if len(candidates) != 1:
            listed = ", ".join(repr(key) for key in keys)
            number = f"{len(candidates)} of them" if candidates else "none of them"
            raise SystematicError(
                f"{where} has the keys {listed}: {number} may be the {what}",
                fix="pass pairs, such as [(item['image'], item['label']) for item in dataset]",
            )
    return images[0], labels[0]


def _note(part: str, image: Any, label: Any, keys: Iterable[Any]) -> list[str]:
    unused = [repr(key) for key in keys if key not in (image, label)]
    if (image, label) == ("image", "label") and not unused:
        return []
    more = f"; not used: {', '.join(unused)}" if unused else ""
    return [f"{part}: the image is {image!r} of each item and the label is {label!r}{more}"]
