"""Any sequence of (image, label) in Python, such as a list or a torchvision data set, read when needed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.file_hashes import HASH, Advance, FileHashes, Hashes, hash_of
from tlx.data.images import MAX_PIXELS, ArrayImages, Images, read_photo, seen
from tlx.data.sources.items import PAIR, Form, find_form
from tlx.data.sources.labels import Labels, read_labels
from tlx.data.sources.pixels import SystematicError, as_image, as_numpy, is_path
from tlx.data.sources.wrappers import Leaf, class_names, returned_labels, stored_images, stored_labels, unfold
from tlx.data.view import View
from tlx.errors import DataError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLED = 16  # images that enter the fingerprint
COMPARED = 4  # items that are read twice, to find out whether they change, or what wrappers do to them
GIVEN_UP = 100  # so many unusable items at the beginning tell enough


@dataclass(frozen=True, slots=True, eq=False)
class SequenceImages:
    """Images of a sequence; `indices` are their places in it. It is read by several threads at once."""

    source: Any
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    form: Form = PAIR
    root: Path = Path()  # paths of images are relative to it
    decoded: bool = False  # whether every image was decoded once already
    max_pixels: int = MAX_PIXELS  # of a photo that an item names by its path
    known: Hashes | None = None  # of the whole sequence: hashes of the images that were read, b"" of the others

    @property
    def names(self) -> Sequence[str]:
        """The places in the sequence, as text."""
        return [str(i) for i in self.indices]

    @property
    def size(self) -> None:
        """None: the images may have many sizes."""
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int, view: View | None = None) -> Image:
        """Image `index` in mode RGB: the whole, or a view of it."""
        place = int(self.indices[index])
        where = f"data: image {place} of {_kind(self.source)}"
        try:
            image, _ = self.form.split(self.source[place], where)
            if is_path(image):
                return read_photo(self.root / image, view, self.max_pixels)
            return seen(as_image(image, where), view)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{where} cannot be read: {_reason(error)}") from error

    def undecodable(self) -> dict[str, str]:
        """Try every image that was not tried; return the names of those that cannot be decoded, and the problems."""
        problems: dict[str, str] = {}
        for index, name in enumerate([] if self.decoded else self.names):
            try:
                self.open(index)
            except DataError as error:
                problems[name] = error.problem.rstrip(".")
        return problems

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 [H, W, 3]."""
        return np.asarray(self.open(index))

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> SequenceImages:
        """The images at `indices`, in that order, under new labels."""
        return replace(self, indices=self.indices[indices], labels=labels)

    def hashes(self, files: FileHashes, advance: Advance | None = None) -> Hashes:
        """A hash of each image: of its pixels, or of the file that it is read from, or of what a data set holds.

        Raises:
            DataError: an image cannot be read.
        """
        hashes = np.zeros(len(self.source), HASH) if self.known is None else self.known.copy()
        paths: dict[int, str] = {}
        for leaf in unfold(self.source)[0]:
            stored = stored_images(leaf)
            for place, index in zip(leaf.places.tolist(), leaf.indices.tolist(), strict=True):
                if isinstance(stored, list):
                    paths[place] = stored[index]
                elif stored is not None and not hashes[place]:
                    hashes[place] = hash_of(np.ascontiguousarray(stored[index]).tobytes())
        for index in np.flatnonzero(hashes[self.indices] == b"").tolist():
            place = int(self.indices[index])
            if place not in paths:
                image, _ = self.form.split(self.source[place], f"data: item {place} of {_kind(self.source)}")
                if is_path(image):
                    paths[place] = str(self.root / image)
                else:
                    hashes[place] = _hash_of_pixels(self.pixels(index))
        unread = [place for place in self.indices.tolist() if place in paths and not hashes[place]]
        spans = [(os.path.abspath(paths[place]), 0, -1) for place in unread]
        hashes[unread] = files.of(self.root, spans, advance)
        return hashes[self.indices]

    def digest(self) -> bytes:
        """Covers the kind, the places, and the pixels of a few images, which show what transforms do."""
        digest = hashlib.sha256(f"{_kind(self.source)} {len(self.source)}".encode())
        digest.update(self.indices.astype("<i8").tobytes())
        for index in np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int)):
            pixels = self.pixels(int(index))
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
        return digest.digest()


def is_sequence(source: Any) -> bool:
    """Whether it has a length and items by number, and is not text, a mapping or an array."""
    able = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return able and not isinstance(source, (str, bytes, Mapping, np.ndarray))


def from_sequence(source: Any, part: str, root: Path | None, notes: list[str]) -> tuple[Images, Labels]:
    """Return the images and the labels of a sequence of items; see `tlx.data.sources.items` for what these may be.

    The labels are those that the sequence returns. They are taken from where a data set stores them only if it is known
    to return these; otherwise every item is read once, which finds the unusable ones as well. A list whose images are
    arrays of one size is held in memory.

    Raises:
        DataError: it is empty, no item can be used, or its items do not stay as they are.
    """
    count = _length(source, part)
    leaves, exact = unfold(source)
    known = [returned_labels(leaf) if exact else None for leaf in leaves]
    everything = np.arange(count, dtype=np.int64)
    unknown = [leaf.places for leaf, numbers in zip(leaves, known, strict=True) if numbers is None]
    places = np.sort(np.concatenate(unknown)) if unknown else everything[:0]
    sampled = np.unique(np.linspace(0, count - 1, COMPARED).astype(np.int64))
    reading = _read(source, part, root or Path(), np.union1d(places, sampled))
    stored = np.full(count, -1, dtype=np.int64)
    for leaf, numbers in zip(leaves, known, strict=True):
        if numbers is not None:
            stored[leaf.places] = numbers
    if any(stored[i] >= 0 and stored[i] != label for i, label in reading.labels.items() if _is_number(label)):
        places, known = everything, [None] * len(leaves)  # the items tell otherwise
        reading = _read(source, part, root or Path(), everything)
    raw: Any = stored
    if len(places):
        raw = [reading.labels.get(i, stored[i]) for i in range(count)]
        if not isinstance(source, (list, tuple)):
            notes.append(f"{part}: {len(places)} of {count} items were read once, to learn their labels")
    notes += reading.notes
    labels = read_labels(raw, part, notes, reading.bad)
    images = _images(source, part, root or Path(), reading, len(places) == count)
    return images, _with_names(labels, source, leaves, known if exact else None, reading.form, part, notes)


def from_images(source: Sequence[Any], part: str, root: Path | None, notes: list[str]) -> tuple[Images, dict[int, str]]:
    """Return the images of a list without labels, and what is wrong with those that cannot be used."""
    items = [(image, 0) for image in source]
    reading = _read(items, part, root or Path(), np.arange(_length(items, part), dtype=np.int64))
    notes += reading.notes
    return _images(items, part, root or Path(), reading, True), reading.bad


@dataclass(slots=True)
class _Reading:
    """What reading some items of a sequence told."""

    form: Form
    labels: dict[int, Any]
    bad: dict[int, str]
    notes: list[str]
    pixels: list[NDArray[np.uint8] | None] | None  # of each place, if all images are arrays of one size
    has_paths: bool
    hashes: Hashes  # of each place, b"" where nothing was read


def _length(source: Any, part: str) -> int:
    try:
        count = len(source)
    except Exception as error:  # an object of foreign code
        raise DataError(f"{part}: {_kind(source)} has no length ({_reason(error)})", fix="pass a list") from error
    if not count:
        raise DataError(f"data: {part} is empty.")
    return count


def _read(source: Any, part: str, root: Path, places: NDArray[np.int64]) -> _Reading:
    """Read the items at `places`: labels, and whether the images can be used."""
    form: Form | None = None
    notes: list[str] = []
    remarks: Counter[str] = Counter()
    shape: tuple[int, ...] | None = None
    hashes = np.zeros(len(source), HASH)
    reading = _Reading(PAIR, {}, {}, notes, [] if isinstance(source, (list, tuple)) else None, False, hashes)
    for i in places.tolist():
        where, pixels = f"{part}: item {i}", None
        try:
            item = source[i]
            form = form or find_form(item, where, part, notes)
            image, label = form.split(item, where)
            if is_path(image):
                reading.has_paths, reading.pixels = True, None
                if not (root / image).is_file():
                    raise DataError(f"{where}: no such file: {root / image}")
            else:
                pixels = np.asarray(as_image(image, f"{part}: image {i} of {_kind(source)}", remarks))
                hashes[i] = _hash_of_pixels(pixels)
                if as_numpy(image) is None:
                    reading.pixels = None
            reading.labels[i] = label
        except SystematicError:
            raise
        except DataError as error:
            reading.bad[i] = error.problem.rstrip(".")
        except Exception as error:  # whatever foreign code raises
            reading.bad[i] = f"{where} cannot be read: {_reason(error)}"
        if reading.pixels is not None:
            shape = shape or (None if pixels is None else pixels.shape)
            reading.pixels.append(pixels)
            if pixels is not None and pixels.shape != shape:
                reading.pixels = None
        if not reading.labels and len(reading.bad) >= min(GIVEN_UP, len(places)):
            raise DataError(next(iter(reading.bad.values())))
    notes += [
        f"{part}: {remark}" + (f" ({times} of {len(places)} images)" if times < len(places) else "")
        for remark, times in remarks.items()
    ]
    reading.form = form or PAIR
    return reading


def _images(source: Any, part: str, root: Path, reading: _Reading, complete: bool) -> Images:
    """The images of a sequence, in memory if they are arrays of one size; otherwise it is tried that they stay."""
    count = len(source)
    none = np.full(count, -1, dtype=np.int64)
    if reading.pixels is not None:
        shape = next(pixels.shape for pixels in reading.pixels if pixels is not None)
        planes = np.zeros((count, 3, *shape[:2]), dtype=np.uint8)
        for i, pixels in enumerate(reading.pixels):
            if pixels is not None:
                planes[i] = pixels.transpose(2, 0, 1)
        return ArrayImages(planes, none, [f"{part}/{i}" for i in range(count)])
    indices = np.arange(count, dtype=np.int64)
    decoded = complete and not reading.has_paths
    images = SequenceImages(source, indices, none, reading.form, root, decoded, known=reading.hashes)
    usable = np.array(sorted(reading.labels), dtype=np.int64)
    for i in [] if reading.has_paths else usable[np.unique(np.linspace(0, len(usable) - 1, COMPARED).astype(int))]:
        if not np.array_equal(images.pixels(int(i)), images.pixels(int(i))):
            raise SystematicError(
                f"{part}: item {i} of {_kind(source)} is another image each time that it is read",
                fix="leave random transforms out of the data set: `augment` names those of tlx",
            )
    return images


def _with_names(
    labels: Labels,
    source: Any,
    leaves: list[Leaf],
    known: list[NDArray[np.int64] | None] | None,
    form: Form,
    part: str,
    notes: list[str],
) -> Labels:
    """Add what the data sets inside call the numbers that are returned; `known` is None if wrappers may change these.

    Where a number returned is another than the number stored, as behind a `target_transform`, its name goes along.
    """
    if labels.is_text:
        return labels
    if known is None and class_names(source, form.label):
        places = np.arange(len(source), dtype=np.int64)
        leaves, known = [Leaf(source, places, places)], [None]
    names: list[dict[int, str] | None] = []
    for i, leaf in enumerate(leaves):
        own = class_names(leaf.source, form.label)
        usable = np.array([k for k, place in enumerate(leaf.places.tolist()) if place not in labels.bad], dtype=int)
        if own and len(usable) and (known is None or known[i] is None):
            before = _numbers_inside(leaf, known is None, usable)
            own = _follow(own, leaf, before, labels, part, notes)
        names.append(own)
    distinct = {tuple(sorted(own.items())) for own in names if own}
    if not distinct:
        return labels
    if len(distinct) == 1:
        return replace(labels, names=next(own for own in names if own))
    if not all(names):
        raise DataError(
            f"{part}: {_kind(source)} joins data sets that number their classes differently, one of them without names",
            fix="give that one `classes`",
        )
    notes.append(f"{part}: joins data sets that number their classes differently: they were matched by name")
    text = np.full(len(labels.values), "", dtype=object)
    bad = dict(labels.bad)
    for leaf, own in zip(leaves, names, strict=True):
        for place in leaf.places.tolist():
            number = int(labels.values[place])
            text[place] = (own or {}).get(number, "")
            if not text[place]:
                bad.setdefault(place, f"{part}: label {number} of sample {place} has no name in its data set")
    return Labels(text.astype(str), bad=bad)


def _numbers_inside(leaf: Leaf, wrapped: bool, usable: NDArray[Any]) -> dict[int, int] | None:
    """The numbers that the names belong to, by position in the leaf: all where they are stored, otherwise a few."""
    stored = returned_labels(leaf) if wrapped else stored_labels(leaf)
    if stored is not None:
        return {k: int(stored[k]) for k in usable.tolist()}
    if not wrapped:
        return {} if getattr(leaf.source, "target_transform", None) is None else None
    numbers: dict[int, int] = {}
    for k in usable[np.unique(np.linspace(0, len(usable) - 1, COMPARED).astype(int))].tolist():
        try:
            item = leaf.source[int(leaf.indices[k])]
            _, label = find_form(item, "", "", []).split(item, "")
        except Exception:  # foreign code; then nothing is known of it
            return None
        if not _is_number(label):
            return None
        numbers[k] = int(label)
    return numbers


def _follow(
    names: dict[int, str], leaf: Leaf, before: dict[int, int] | None, labels: Labels, part: str, notes: list[str]
) -> dict[int, str] | None:
    """Give each number that is returned the name of the number that it stands for; None if that is not clear."""
    pairs = {(number, int(labels.values[leaf.places[k]])) for k, number in (before or {}).items()}
    if before is not None and all(number == returned for number, returned in pairs):
        return names
    numbers = [number for number, _ in pairs]
    if before is None or len(set(numbers)) < len(numbers) or len(before) < len(leaf.places) - len(labels.bad):
        notes.append(f"{part}: the names of {_kind(leaf.source)} do not belong to the numbers that are returned")
        return None
    followed: dict[int, str] = {}
    for number, returned in sorted(pairs):
        name = names.get(number, str(number))
        followed[returned] = f"{followed[returned]}/{name}" if returned in followed else name
    listed = ", ".join(f"{number} {name}" for number, name in sorted(followed.items())[:5])
    notes.append(f"{part}: labels are returned otherwise than they are stored: {listed}")
    return followed


def _hash_of_pixels(pixels: NDArray[np.uint8]) -> bytes:
    return hash_of(repr(pixels.shape).encode(), pixels.tobytes())


def _is_number(label: Any) -> bool:
    try:
        return not isinstance(label, (str, bytes)) and int(label) == label
    except Exception:  # foreign code
        return False


def _reason(error: Exception) -> str:
    return one_line(" ".join(str(error).split()) or type(error).__name__)


def _kind(source: Any) -> str:
    return type(source).__name__
