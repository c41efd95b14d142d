"""A part of a data set: labelled images held in memory or decoded from files when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tlx.data.geometry import Box, resize
from tlx.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


GAP = 2.0  # as Pillow's own `Image.thumbnail` has it
LISTED = 10  # bad photos that an error spells out before it counts


@dataclass(frozen=True, slots=True)
class View:
    """A box of an image, which may depend on its size, resampled to size x size."""

    box: Callable[[int, int], Box]  # of (width, height)
    size: int


class Images(Protocol):
    """Labelled images in a fixed order."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each sample, int64 [N] in ``0 .. classes - 1``."""

    @property
    def names(self) -> Sequence[str]:
        """Path or id of each sample, unique within the part."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) if all images are equal in size, else None."""

    def __len__(self) -> int: ...

    def open(self, index: int, view: View | None = None) -> Image:
        """Image `index` in mode RGB, upright: the whole, or a view of it."""

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 [H, W, 3]."""

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> Images:
        """The samples at `indices`, in that order, under new labels."""

    def digest(self) -> bytes:
        """SHA-256 of what decides the pixels, for the fingerprint of a data set."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayImages:
    """Images of one size in memory: `array` is uint8 [N, 3, H, W]."""

    array: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: Sequence[str]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every image."""
        return self.array.shape[2], self.array.shape[3]

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int, view: View | None = None) -> Image:
        """Image `index` in mode RGB: the whole, or a view of it."""
        from PIL import Image

        return seen(Image.fromarray(self.pixels(index)), view)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 [H, W, 3]."""
        return np.ascontiguousarray(self.array[index].transpose(1, 2, 0))

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> ArrayImages:
        """The images at `indices`, in that order, under new labels."""
        return ArrayImages(self.array[indices], labels, [self.names[i] for i in indices])

    def digest(self) -> bytes:
        """Covers every pixel."""
        digest = hashlib.sha256(repr(self.array.shape).encode())
        digest.update(np.ascontiguousarray(self.array).data)
        return digest.digest()


@dataclass(frozen=True, slots=True, eq=False)
class FileImages:
    """Photos on disk: `names` are paths below `root`, with forward slashes."""

    root: Path
    labels: NDArray[np.int64]
    names: Sequence[str]
    _scan: Lock = field(default_factory=Lock, repr=False)

    @property
    def size(self) -> None:
        """None: photos have many sizes, which only decoding tells."""
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int, view: View | None = None) -> Image:
        """Decode a photo. When one fails, all others are tried, so that the error lists every bad one."""
        try:
            return read_photo(self.root / self.names[index], view)
        except DataError as error:
            with self._scan:
                bad = self.undecodable()
            if len(bad) < 2:
                raise
            listed = "; ".join(bad[name] for name in list(bad)[:LISTED])
            more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
            raise DataError(
                f"{len(bad)} of {len(self)} photos cannot be decoded: {listed}{more}",
                fix="replace or remove them, or leave them out with on_bad_image='skip'",
            ) from error

    def undecodable(self, workers: int = 2) -> dict[str, str]:
        """Try every photo; return the names of those that cannot be decoded, and what is wrong with them."""

        def problem(name: str) -> str:
            try:
                read_photo(self.root / name)
            except DataError as error:
                return error.problem.rstrip(".")
            return ""

        with ThreadPoolExecutor(workers) as pool:
            problems = dict(zip(self.names, pool.map(problem, self.names), strict=True))
        return {name: problem for name, problem in problems.items() if problem}

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 [H, W, 3]."""
        return np.asarray(self.open(index))

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> FileImages:
        """The photos at `indices`, in that order, under new labels."""
        return FileImages(self.root, labels, [self.names[i] for i in indices])

    def digest(self) -> bytes:
        """Covers names and sizes of the files: reading every photo would take as long as an epoch."""
        lines = [f"{name}\0{_size(self.root / name)}\n" for name in self.names]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).digest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="replace or remove it") from error


def seen(image: Image, view: View | None) -> Image:
    """Return an RGB image as a whole, or a view of it."""
    return image if view is None else resize(image, view.box(image.width, image.height), view.size)


def read_photo(path: Path, view: View | None = None) -> Image:
    """Decode a photo, or a view of it, into mode RGB, turned upright by its EXIF orientation.

    Where a view shrinks a JPEG, it is decoded at 1/2, 1/4 or 1/8, which its format makes cheap, as long as that is
    still at least `GAP` times as large as the view: then resampling averages the difference away.

    Grey, palette and CMYK are converted; 16-bit grey keeps its upper 8 bits; alpha is dropped, as torchvision does;
    only the first frame of an animation is used.

    Raises:
        DataError: the file, which is named, cannot be decoded, or has more pixels than Pillow's limit against
            decompression bombs.
    """
    from PIL import ExifTags, Image, ImageOps

    # Pillow's decoders raise much more than OSError on damaged files (SyntaxError, struct.error, IndexError ...).
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise DataError(f"{path} is not a file, or a link to nothing", fix="remove it")
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise DataError(f"{path}: {image.width} x {image.height} pixels is more than the limit of {limit}.")
            if view is None:
                return to_rgb(ImageOps.exif_transpose(image), path)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            width, height = image.size[::-1] if turned else image.size
            box = view.box(width, height)
            times = int(min(box[2] - box[0], box[3] - box[1]) / (GAP * view.size))
            if times > 1:  # only JPEG takes notice
                image.draft(None, (-(-image.width // times), -(-image.height // times)))
            upright = to_rgb(ImageOps.exif_transpose(image), path)
            across, down = upright.width / width, upright.height / height
            return resize(upright, (box[0] * across, box[1] * down, box[2] * across, box[3] * down), view.size)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} cannot be decoded as an image: {reason}", fix="replace or remove it") from error


def to_rgb(image: Image, where: object) -> Image:
    """Convert an image of any mode to RGB; see `read_photo`."""
    from PIL import Image as module

    if image.mode == "F":
        raise DataError(f"{where} holds floating-point pixels", fix="convert it to 8 bits per channel")
    if image.mode.startswith("I"):  # convert("RGB") would clip 16-bit grey to white
        wide: NDArray[Any] = np.asarray(image)
        return module.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
