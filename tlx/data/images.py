"""A part of a data set: labelled images held in memory or decoded from files when needed."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from tlx.data.view import View
from tlx.errors import DataError
from tlx.files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image


LISTED = 10  # bad photos that an error spells out before it counts

# What Pillow itself reads. Its other formats start programs (EPS runs Ghostscript) or are no photos.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12, annex B
# fmt: off
EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".heic", ".heif", ".hif",
}
# fmt: on

# Above the 102 million of medium-format cameras and the 108 million of phones. Pillow holds a pixel in 4 bytes, so
# that each thread which decodes may take 512 MB.
MAX_PIXELS = 128_000_000
DEPTHS = (8, 12, 16, 24, 32)  # bits of a grey pixel, as sensors and formats have them


class TooManyPixels(DataError):
    """A photo has more pixels than are allowed."""


class Images(Protocol):
    """Labelled images in a fixed order."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each sample, int64 [N] in ``0 .. classes - 1``; of several labels [N, classes], of 0 and 1."""

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
        """SHA-256 of what decides the pixels, for the fingerprint of a data set. See `tlx.data.fingerprint`."""


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

    def hashes(self) -> NDArray[np.bytes_]:
        """A hash of each image's pixels, S16 [N]."""
        digests = (hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest() for image in self.array)
        return np.frombuffer(b"".join(digest[:16] for digest in digests), dtype="S16")


@dataclass(frozen=True, slots=True, eq=False)
class FileImages:
    """Photos on disk: `names` are paths below `root`, with forward slashes."""

    root: Path
    labels: NDArray[np.int64]
    names: Sequence[str]
    max_pixels: int = MAX_PIXELS
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
            return self._read(index, view)
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

        def problem(index: int) -> str:
            try:
                self._read(index)
            except DataError as error:
                return error.problem.rstrip(".")
            return ""

        with ThreadPoolExecutor(workers) as pool:
            problems = dict(zip(self.names, pool.map(problem, range(len(self))), strict=True))
        return {name: problem for name, problem in problems.items() if problem}

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each photo as it is stored, int64 [N]. Raises DataError where one is not there."""
        return np.fromiter((_size(path) for path, _, _ in self.spans(range(len(self)))), np.int64, len(self))

    def spans(self, indices: Iterable[int]) -> list[tuple[str, int, int]]:
        """Where photos are stored: the path of the file, the first byte in it and how many; 0, -1: all of it."""
        root = os.path.abspath(self.root)
        names = (self.names[i] for i in indices)
        return [(name if name.startswith("/") else f"{root}/{name}", 0, -1) for name in names]

    def content(self, index: int, end: int | None = None) -> bytes:
        """A photo as it is stored, or its last `end` bytes. Raises OSError where it cannot be read."""
        with open_regular(self.root / self.names[index]) as file:
            if end is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - end))
            return file.read()

    def _read(self, index: int, view: View | None = None) -> Image:
        return read_photo(self.root / self.names[index], view, self.max_pixels)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as uint8 [H, W, 3]."""
        return np.asarray(self.open(index))

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> FileImages:
        """The photos at `indices`, in that order, under new labels."""
        return replace(self, labels=labels, names=[self.names[i] for i in indices])

    def digest(self) -> bytes:
        """Covers names and sizes of the files, as tlx 0.1.0 knew them again."""
        lines = [f"{name}\0{size}\n" for name, size in zip(self.names, self.sizes().tolist(), strict=True)]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).digest()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="replace or remove it") from error


def seen(image: Image, view: View | None) -> Image:
    """Return an RGB image as a whole, or a view of it."""
    return image if view is None else view.of(image)


def read_photo(path: Path, view: View | None = None, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode a photo from a file. See `decode`."""
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is not a file, or a link to nothing", fix="remove it") from error
    except OSError as error:  # such as a pipe, or a folder above it that may not be entered
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="remove it") from error
    with file:
        return decode(file, view, where=path, max_pixels=max_pixels)


def decode(file: BinaryIO | bytes, view: View | None = None, *, where: object, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode a photo, or a view of it, into mode RGB, turned upright by its EXIF orientation.

    Where a view shrinks a JPEG, it is decoded at 1/2, 1/4 or 1/8, which its format makes cheap, as long as that is
    still at least `view.GAP` times as large as the view: then resampling averages the difference away.

    Only formats that Pillow reads by itself are opened, whatever the file's name says; HEIC where its plug-in is
    installed. `to_rgb` says what becomes of other modes. Only the first frame of an animation is used.

    Args:
        file: an open file, or its content.
        view: what to return of it; None: the whole.
        where: names the photo in errors.
        max_pixels: a photo of more pixels is refused before it is decoded.

    Raises:
        DataError: the photo cannot be decoded, or has more than `max_pixels`.
    """
    from PIL import Image, UnidentifiedImageError

    source = io.BytesIO(file) if isinstance(file, bytes) else file
    # Pillow's decoders raise much more than OSError on damaged files (SyntaxError, struct.error, IndexError ...).
    try:
        with Image.open(source, formats=formats_up_to(max_pixels)) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(where, f"{image.width} x {image.height}", max_pixels)
            return _view(image, view, where)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(where, "far too many", max_pixels) from error
    except UnidentifiedImageError as error:
        if not _is_heic(source):
            raise DataError(
                f"{where} cannot be decoded as an image: it is none of {', '.join(FORMATS)} or HEIC, or is damaged",
                fix="replace or remove it",
            ) from error
        if "HEIF" not in Image.OPEN and _register_heif():
            return decode(source, view, where=where, max_pixels=max_pixels)
        reason = "is damaged" if "HEIF" in Image.OPEN else 'needs the plug-in pillow-heif (pip install "tlx[heic]")'
        raise DataError(f"{where} is a HEIC photo, which {reason}.") from error
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{where} cannot be decoded as an image: {reason}", fix="replace or remove it") from error


def _too_large(where: object, pixels: str, max_pixels: int) -> DataError:
    problem = f"{where} has {pixels} pixels, more than max_pixels={max_pixels} allows"
    return TooManyPixels(problem, fix="raise max_pixels, or shrink the photo")


@cache
def _register_formats() -> None:
    from PIL import Image

    Image.init()
    # Pillow warns of large photos before `decode` can refuse them, which says the same.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def formats_up_to(max_pixels: int) -> list[str]:
    """What `Image.open` may open here. Pillow's own limit is raised if it is stricter than `max_pixels`."""
    from PIL import Image

    _register_formats()
    own = Image.MAX_IMAGE_PIXELS  # Pillow refuses twice as many
    if own is not None and 2 * own < max_pixels:
        Image.MAX_IMAGE_PIXELS = max_pixels
    return [name for name in (*FORMATS, "HEIF") if name in Image.OPEN]


def _register_heif() -> bool:
    """Let Pillow open HEIC; False where the plug-in is not installed. It is loaded when the first such photo comes."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _is_heic(source: BinaryIO) -> bool:
    """Whether a file's first bytes are those of HEIC, whatever its name says."""
    source.seek(0)
    head = source.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


def _view(image: Image, view: View | None, where: object) -> Image:
    """A view of an image that was opened and not yet loaded."""
    if view is None:
        return to_rgb(_upright(image), where)
    if image.format not in ("JPEG", "MPO"):
        return seen(to_rgb(_upright(image), where), view)
    turned = orientation_of(image) in (5, 6, 7, 8)
    width, height = image.size[::-1] if turned else image.size
    box = view.box(width, height)
    times = view.times(box)
    if times > 1:
        image.draft(None, (-(-image.width // times), -(-image.height // times)))
    upright = to_rgb(_upright(image), where)
    across, down = upright.width / width, upright.height / height
    return view.of(upright, (box[0] * across, box[1] * down, box[2] * across, box[3] * down))


def orientation_of(image: Image) -> int:
    """The EXIF orientation, 1 to 8. Damaged EXIF says nothing: the photo can be whole all the same."""
    from PIL import ExifTags

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as the decoders do, it raises anything
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(image: Image) -> Image:
    """Load an image and turn it by its EXIF orientation, in place."""
    from PIL import ImageOps

    image.load()  # Pillow turns a TIFF here, and takes its orientation out
    if orientation_of(image) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    return image


def to_rgb(image: Image, where: object) -> Image:
    """Convert an image of any mode to RGB; one that is RGB already is returned as it is.

    Grey of more than 8 bits is scaled by its range: the least of `DEPTHS` that holds its brightest pixel, because a
    file does not say that its 16 bits hold 12. Floating-point grey up to 1 is scaled by 1. Alpha is dropped, as
    torchvision does.

    Raises:
        DataError: there is no such conversion, or grey pixels are negative or not finite; `where` names the image.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):  # convert("RGB") would clip these
        return _grey(image, where).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"{where} has pixels of mode {image.mode}", fix="convert it to RGB") from error


def _grey(image: Image, where: object) -> Image:
    from PIL import Image as module

    wide: NDArray[Any] = np.asarray(image)
    top = wide.max(initial=0)
    if not np.isfinite(wide).all() or wide.min(initial=0) < 0 or top >= 2 ** DEPTHS[-1]:
        raise DataError(
            f"{where} has grey pixels that are negative, not finite or above 32 bits",
            fix="scale them to 8 bits per channel",
        )
    if image.mode == "F" and top <= 1:
        return module.fromarray((wide * 255 + 0.5).astype(np.uint8))
    depth = next(bits for bits in DEPTHS if top < 2**bits)
    return module.fromarray((wide // 2 ** (depth - 8)).astype(np.uint8))
