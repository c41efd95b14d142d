"""The images to embed, one after the other, each with its place in the data, its label and its part."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.data import KINDS, Data, Images
from tlx.data.multilabel import joined
from tlx.data.sources.folder import Tree
from tlx.data.sources.registry import open_source
from tlx.data.sources.sequence import is_sequence
from tlx.data.sources.source import Source
from tlx.data.view import View
from tlx.errors import DataError, TlxError, shown
from tlx.runs.inputs import Input, Notes, columns_for, find_inputs, of_part

if TYPE_CHECKING:
    from PIL.Image import Image

WHOLE = "all"  # the part of data that has no parts


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """An image, its place in the whole data from 0 on, its label where it has one, and the part that it is in."""

    index: int
    input: Input
    label: str | None
    part: str


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The images of some data; `total` is how many there are, where that is known before they were looked for."""

    items: Iterator[Item]
    total: int | None
    notes: Notes


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `of` equal parts of the data: every image whose place leaves the remainder `number` - 1."""

    number: int = 1
    of: int = 1

    def has(self, index: int) -> bool:
        """Whether the image at this place is in it."""
        return index % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_shard(text: Any) -> Shard:
    """Read "3/16": the third of sixteen; None is the whole."""
    if text is None:
        return Shard()
    number, slash, of = text.partition("/") if isinstance(text, str) else ("", "", "")
    digits = all(value.isascii() and value.isdigit() and len(value) < 10 for value in (number, of))
    if not slash or not digits or not 1 <= int(number) <= int(of):
        raise TlxError(f"shard is {shown(text)}; expected such as '3/16', from '1/16' to '16/16'")
    return Shard(int(number), int(of))


def find_items(data: Any, root: Any, max_pixels: int, separator: str | None = None) -> Found:
    """Find the images of whatever `tlx.predict` and `tlx.load_data` take, with the labels that the data give them.

    A folder without folders of classes holds unlabelled photos; so does one with as many loose photos as folders, or
    one that cannot be read as a data set, and then a note says so. Labels in a list may have a separator.

    Raises:
        DataError: it is no data; or, in the iterator, one of the images is none.
    """
    notes = Notes()
    if isinstance(data, Data):
        return _of_parts(data.parts, data.classes, {}, notes, max_pixels)
    if hasattr(data, "select") and hasattr(data, "labels"):
        return _of_parts({WHOLE: data}, None, {}, notes, max_pixels)
    if isinstance(data, (str, os.PathLike)) and not _holds_labels(data, notes):
        return _unlabelled(data, notes, max_pixels)
    if _is_labelled(data):
        try:
            source = open_source(data, root, columns_for(data, separator), on_bad_image="skip")
        except DataError as error:
            if not _is_plain_folder(data):
                raise
            notes.lines.append(f"the photos have no labels: {error.problem}")
            return _unlabelled(data, notes, max_pixels)
        return _of_source(source, notes, max_pixels)
    return _unlabelled(data, notes, max_pixels)


def _is_labelled(data: Any) -> bool:
    """Whether it is a data set, and not some images."""
    if isinstance(data, (str, os.PathLike, Mapping)):
        return True
    if isinstance(data, tuple):
        return len(data) == 2 and hasattr(data[0], "ndim") and hasattr(data[1], "ndim")
    if not is_sequence(data) or not len(data):
        return False
    try:
        first = data[0]
    except Exception:  # of a data set whose first image cannot be read
        return not isinstance(data, list)
    return isinstance(first, (tuple, Mapping))


def _holds_labels(data: str | os.PathLike[str], notes: Notes) -> bool:
    """Whether a text or a path may lead to more than a photo, or a folder of loose photos."""
    text = os.fspath(data)
    if "://" in text or text in KINDS or not os.path.exists(text):
        return True  # or to nothing, which is said better there
    if not _is_plain_folder(text):
        return any(kind.matches(Path(text)) for kind in KINDS.values())
    try:
        folders, photos = Tree(Path(text)).inside()
    except OSError:
        return True
    if folders and len(photos) >= len(folders):
        notes.lines.append(f"the photos have no labels, because {len(photos)} of them lie outside of the folders")
    return len(folders) > len(photos)


def _is_plain_folder(data: Any) -> bool:
    if not isinstance(data, (str, os.PathLike)) or not os.path.isdir(data):
        return False
    kinds = (kind.name for kind in reversed(KINDS.values()) if kind.matches(Path(data)))
    return next(kinds, "folder") == "folder"


def _unlabelled(data: Any, notes: Notes, max_pixels: int) -> Found:
    inputs = find_inputs(data, notes, max_pixels)
    items = (Item(index, item, item.text, WHOLE) for index, item in enumerate(inputs))
    total = len(data) if hasattr(data, "__len__") and not isinstance(data, (str, list, tuple)) else None
    return Found(items, total, notes)


def _of_source(source: Source, notes: Notes, max_pixels: int) -> Found:
    notes.lines += source.notes
    return _of_parts(source.parts, source.classes, source.bad, notes, max_pixels)


def _of_parts(
    parts: Mapping[str, Images],
    classes: Sequence[str] | None,
    bad: Mapping[str, Mapping[int, str]],
    notes: Notes,
    max_pixels: int,
) -> Found:
    def of_one(part: str, images: Images) -> Iterable[tuple[str, Input, str | None]]:
        problems = bad.get(part, {})
        for index, item in enumerate(of_part(images, max_pixels)):
            broken, name = index in problems, _name_of(images.labels[index], classes)
            yield part, replace(item, open=partial(_refuse, problems[index])) if broken else item, name

    every = chain.from_iterable(of_one(part, images) for part, images in parts.items())
    items = (Item(index, item, name, part) for index, (part, item, name) in enumerate(every))
    return Found(items, sum(map(len, parts.values())), notes)


def _name_of(label: Any, classes: Sequence[str] | None) -> str | None:
    """The name of an image's label, or of several with "|" between them; None where it has none."""
    if np.ndim(label):
        return joined(label, classes or [str(number) for number in range(len(label))]) or None
    if classes is None:
        return str(label)
    return classes[label] if 0 <= label < len(classes) else None


def _refuse(problem: str, view: View | None) -> Image:
    raise DataError(problem)
