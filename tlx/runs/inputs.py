"""Images to classify, of whatever kind: found one after the other, so that any number of them takes no memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.data import KINDS, ArrayImages, Data, FileImages, Images
from tlx.data.images import read_photo, seen
from tlx.data.multilabel import is_multilabel
from tlx.data.sources.arrays import from_arrays
from tlx.data.sources.csv_file import SUFFIXES
from tlx.data.sources.folder import is_photo
from tlx.data.sources.pixels import as_image
from tlx.data.sources.registry import open_source
from tlx.data.sources.sequence import is_sequence
from tlx.data.view import View
from tlx.errors import DataError, DataNotFound

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 5  # names of left-out files in a note


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """One image: its name, how it is opened (called by another thread), and its class where that is known.

    `stamp` tells without decoding whether it is still the same image, by a file's time and size or by the pixels in
    memory; it returns None where nothing tells. `text` is the label of an item (image, label), as a text.
    """

    name: str
    open: Callable[[View | None], Image]
    label: int = 0
    stamp: Callable[[], str | None] = lambda: None
    text: str | None = None


@dataclass(slots=True, eq=False)
class Notes:
    """What was passed over while images were looked for."""

    skipped: int = 0
    names: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def skip(self, name: str) -> None:
        """Count a file, and remember the first names."""
        self.skipped += 1
        self.names += [name] if self.skipped <= SHOWN else []

    def all(self) -> list[str]:
        """Everything that there is to say, a line each."""
        if not self.skipped:
            return self.lines
        plural = "1 file that is not an image" if self.skipped == 1 else f"{self.skipped} files that are not images"
        shown = ", ".join(self.names) + (", ..." if self.skipped > SHOWN else "")
        return [*self.lines, f"skipped {plural} by name: {shown}"]


def find_inputs(images: Any, notes: Notes, max_pixels: int) -> Iterator[Input]:
    """Find images one after the other; see `tlx.predict` for what they may be. A photo of more pixels cannot be read.

    Raises:
        DataError: `images` is nothing of that kind; or, in the iterator, one of them is no image in Python.
    """
    if isinstance(images, Data):
        return chain.from_iterable(map(partial(of_part, max_pixels=max_pixels), images.parts.values()))
    if isinstance(images, Mapping) or _is_pair(images):
        source = from_arrays(images if isinstance(images, Mapping) else {"all": images})
        return chain.from_iterable(map(partial(of_part, max_pixels=max_pixels), source.parts.values()))
    if hasattr(images, "select") and hasattr(images, "labels"):
        return of_part(images, max_pixels)
    if isinstance(images, np.ndarray):
        one = images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3))
        return _of_items([images] if one else images if images.ndim else [], notes, max_pixels)
    if isinstance(images, (str, os.PathLike)) or _is_pillow(images):
        return _of_items([images], notes, max_pixels)
    if is_sequence(images) and not isinstance(images, (list, tuple)) and not _holds_paths(images):
        return (Input(f"image {i}", partial(_open_item, images, i)) for i in range(len(images)))
    if isinstance(images, Iterable):
        return _of_items(images, notes, max_pixels)
    raise DataError(f"images must be files, folders or uint8 arrays; got {type(images).__name__}")


def columns_for(data: Any, separator: str | None) -> dict[str, str | None]:
    """Return how a list of photos is read for a run whose labels have this separator; {} where it is no list."""
    listed = isinstance(data, (str, os.PathLike)) and Path(data).suffix.lower() in SUFFIXES
    return {"label_separator": separator} if listed else {}


def of_part(images: Images, max_pixels: int) -> Iterator[Input]:
    """The images of a part of a data set, with their labels; where there may be several, with their places."""
    several = is_multilabel(images.labels)
    if isinstance(images, FileImages):
        images = replace(images, max_pixels=max_pixels)
    for index, (path, label) in enumerate(zip(paths_of(images), images.labels, strict=True)):
        yield Input(
            path, partial(_open_one, images, index), index if several else int(label), partial(_stamp_of, images, index)
        )


def paths_of(images: Images) -> Iterator[str]:
    """Return what names each image of a part: its path, or how the data names it."""
    if isinstance(images, FileImages):
        return (str(images.root / name) for name in images.names)
    return iter(images.names)


def _open_one(images: Images, index: int, view: View | None) -> Image:
    chosen = np.array([index])  # alone: `FileImages` tries all others where one cannot be decoded
    return images.select(chosen, images.labels[chosen]).open(0, view)


def _open_item(images: Any, index: int, view: View | None) -> Image:
    where = f"image {index} of {type(images).__name__}"
    try:
        image = images[index]
    except Exception as error:
        raise DataError(f"{where} cannot be read: {' '.join(str(error).split())}") from error
    return seen(as_image(image[0] if isinstance(image, (tuple, list)) else image, where), view)


def _is_pair(images: Any) -> bool:
    """Whether it is (images, labels)."""
    if not isinstance(images, (tuple, list)) or len(images) != 2:
        return False
    first, second = images
    arrays = isinstance(first, np.ndarray) and isinstance(second, np.ndarray)
    return arrays and first.ndim > 2 and second.ndim == 1 and np.issubdtype(second.dtype, np.integer)


def _holds_paths(images: Any) -> bool:
    try:
        return isinstance(images[0], (str, os.PathLike))
    except Exception:  # of a data set whose first image cannot be read, too
        return False


def _is_pillow(image: Any) -> bool:
    from PIL import Image as module

    return isinstance(image, module.Image)


def _of_items(images: Iterable[Any], notes: Notes, max_pixels: int) -> Iterator[Input]:
    number = 0
    for image in images:
        text = None
        if isinstance(image, tuple) and len(image) == 2:
            image, label = image
            text = str(label)
        if isinstance(image, (str, os.PathLike)):
            for item in _of_path(Path(image), notes, max_pixels):
                yield item if text is None else replace(item, text=text)
                number += 1
            continue
        if _is_pillow(image):
            name = f"image {number}"
            yield Input(name, partial(_show, image, name), 0, partial(_stamp_of_pillow, image), text)
        else:
            item = _of_array(image, f"array {number}")
            yield item if text is None else replace(item, text=text)
        number += 1


def _of_path(path: Path, notes: Notes, max_pixels: int) -> Iterator[Input]:
    try:
        return _of_kind(path, notes, max_pixels)
    except OSError as error:  # such as a name that is too long
        if isinstance(error, DataError):
            raise
        problem = DataError(f"{path} cannot be read: {error.strerror}")
        return iter([Input(str(path), partial(_fail, problem))])


def _of_kind(path: Path, notes: Notes, max_pixels: int) -> Iterator[Input]:
    for kind in reversed(KINDS.values()):
        if kind.matches(path) and kind.name != "folder":  # a folder to classify needs no classes
            return _of_source(path, notes, max_pixels)
    if path.is_dir():
        return _below(str(path), notes, max_pixels)
    if str(path) in KINDS and KINDS[str(path)].named and not path.exists():
        return _of_source(str(path), notes, max_pixels)
    return iter([Input(str(path), partial(_open_file, path, max_pixels), 0, partial(_stamp_of_file, str(path)))])


def _of_source(source: Path | str, notes: Notes, max_pixels: int) -> Iterator[Input]:
    opened = open_source(source)
    notes.lines += opened.notes
    return chain.from_iterable(map(partial(of_part, max_pixels=max_pixels), opened.parts.values()))


def _open_file(path: Path, max_pixels: int, view: View | None) -> Image:
    if not os.path.exists(path):
        raise DataNotFound(f"{path} does not exist")
    return read_photo(path, view, max_pixels)


def _below(top: str, notes: Notes, max_pixels: int) -> Iterator[Input]:
    """All photos below a folder by their sorted paths; other visible files are noted.

    A folder to which links lead too is read once: thirty folders that each lead twice to the next have 2^30 paths.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [f"{top}/"]  # the next one last; no recursion, because folders in folders may be thousands
    while waiting:
        path = waiting.pop()
        if not path.endswith("/"):
            if is_photo(path):
                yield Input(path, partial(_open_file, Path(path), max_pixels), 0, partial(_stamp_of_file, path))
            else:
                notes.skip(path)
            continue
        folder = path[:-1] or path
        try:
            status = os.stat(folder)
            place = (status.st_dev, status.st_ino)
            if place in seen:
                notes.skip(folder)
                continue
            seen.add(place)
            with os.scandir(folder) as entries:  # as paths sort: a folder by its name and a slash
                names = sorted(e.name + "/" * e.is_dir() for e in entries if not e.name.startswith("."))
        except OSError as error:
            problem = DataError(f"{folder} cannot be read: {error.strerror}")
            yield Input(folder, partial(_fail, problem))
            continue
        waiting += [os.path.join(folder, name) for name in reversed(names)]


def _fail(problem: DataError, view: View | None) -> Image:
    raise problem


def _show(image: Any, name: str, view: View | None) -> Image:
    return seen(as_image(image, name), view)


def _of_array(image: Any, name: str) -> Input:
    array: NDArray[Any] = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)) or not array.size:
        raise DataError(f"{name} is {array.dtype} {list(array.shape)}; expected uint8 [H, W, 3] or [H, W]")
    return Input(name, partial(_show, array, name), 0, partial(_stamp_of_array, array))


def _stamp_of(images: Images, index: int) -> str | None:
    if isinstance(images, ArrayImages):
        return _stamp_of_array(images.array[index])
    if not isinstance(images, FileImages):
        return None
    ((path, first, length),) = images.spans([index])
    stamp = _stamp_of_file(path)
    return None if stamp is None else f"{stamp} {first} {length}"


def _stamp_of_file(path: str) -> str | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "missing"  # so that a photo which has come back is another one
    return f"{status.st_size} {status.st_mtime_ns}"


def _stamp_of_array(array: NDArray[Any]) -> str:
    return f"{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _stamp_of_pillow(image: Any) -> str | None:
    try:
        return f"{image.mode} {image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"
    except Exception:  # as decoders do, it raises anything
        return None
