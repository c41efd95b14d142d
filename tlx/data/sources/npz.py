"""Arrays in a NumPy ``.npz`` file, read without pickle and within its declared size."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from tlx.data.sources.arrays import from_arrays
from tlx.data.sources.source import Kind, Source
from tlx.errors import DataError, closest
from tlx.files import open_regular

NAMES = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "images", "labels", "classes")
LIMIT = 32 * 2**30  # bytes of all arrays together; more does not belong in memory
# Photos never shrink to a hundredth; from SUSPECT bytes on, that is taken for a bomb. Conversions to 8-bit RGB take
# several times as many.
RATIO, SUSPECT = 100, 2**26


def read_npz(file: Path) -> dict[str, Any]:
    """Return what `from_arrays` takes: parts as (images, labels), and class names if there are any.

    The file holds ``x_train, y_train`` and, if wanted, ``x_val, y_val``, ``x_test, y_test``; or ``images, labels``,
    from which the test part is drawn; and ``classes``, an array of text.

    Raises:
        DataError: the file is damaged, hostile or does not hold these arrays.
    """
    arrays = _arrays(file)
    pairs = {"all": ("images", "labels"), **{part: (f"x_{part}", f"y_{part}") for part in ("train", "val", "test")}}
    parts: dict[str, Any] = {}
    for part, (x, y) in pairs.items():
        if (x in arrays) != (y in arrays):
            raise DataError(f"{file}: has {x if x in arrays else y} but not {y if x in arrays else x}.")
        if x in arrays:
            parts[part] = (arrays[x], arrays[y])
    if ("all" in parts) == ("train" in parts):
        raise DataError(f"{file}: holds {', '.join(arrays) or 'nothing'}; expected x_train, y_train or images, labels.")
    if "all" in parts and len(parts) > 1:
        raise DataError(f"{file}: has images, labels beside parts of their own", fix="name them x_train, y_train")
    if "classes" in arrays:
        if arrays["classes"].dtype.kind != "U":
            raise DataError(f"{file}: classes are {arrays['classes'].dtype}; expected text.")
        parts["classes"] = [str(name) for name in arrays["classes"].ravel()]
    return parts


def from_npz(file: Path, root: Path | None = None) -> Source:
    """A data set of the arrays in a file: see `read_npz`."""
    return replace(from_arrays(read_npz(file)), name=file.stem)


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            entries: dict[str, zipfile.ZipInfo] = {}
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name not in NAMES:
                    raise DataError(f"{file}: unknown array {name!r}.{closest(name, NAMES)}")
                if name in entries:
                    raise DataError(f"{file}: the array {name!r} is in it twice.")
                entries[name] = entry
            size = sum(entry.file_size for entry in entries.values())
            if size > LIMIT:
                raise DataError(f"{file}: its arrays take more than {LIMIT // 2**30} GiB", fix="use a folder of photos")
            # Of the whole file: entries may share their bytes.
            if size > max(SUSPECT, RATIO * os.fstat(stream.fileno()).st_size):
                raise DataError(f"{file}: it unpacks to {size} bytes, suspiciously many.")
            return {name: _array(archive, entry, file) for name, entry in entries.items()}
    except DataError:
        raise
    except Exception as error:  # zipfile and zlib raise a dozen kinds on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} is damaged or not an .npz file ({reason}).") from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Path) -> NDArray[Any]:
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)  # type: ignore[no-untyped-call]
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)  # type: ignore[no-untyped-call]
        if dtype.hasobject:
            raise DataError(
                f"{file}: {entry.filename} holds Python objects, which are not read", fix="save it as plain numbers"
            )
        if prod(shape) * max(1, dtype.itemsize) > entry.file_size:
            raise DataError(f"{file}: {entry.filename} declares {list(shape)} {dtype}, more than it holds.")
    with archive.open(entry) as stream:
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
    return array


NPZ = Kind(name="npz", help="an .npz of arrays", read=from_npz, suffix=".npz")
