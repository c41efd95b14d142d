"""The folder that a capture writes and a comparison reads: manifest.json, trace.jsonl and numbered .npy files.

The manifest's `must` holds what has to be equal: the recipe's fields that affect the result, the classes, the
fingerprint of the data, and the stages. Captures of tlx 0.1.0 are read: see `_current`.

Nothing in it is trusted: no pickle is read, a file is named by number only, and sizes are bounded.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tlx.atomic import write_atomic
from tlx.backend import Array, Arrays
from tlx.errors import TlxError
from tlx.models.pixels import IMAGENET
from tlx.proof.checked import MANIFEST, check_manifest, check_record
from tlx.recipe import RENAMED, Recipe, fields_affecting

FORMAT = 1
TRACE, END = "trace.jsonl", "manifest.json"  # the latter is written last
MODULE = "a module"  # the manifest's model where it is a user's own
MAX_ARRAY, MAX_TEXT = 4 << 30, 256 << 20  # bytes
# The recipe's fields that have to be equal: all that affect the result, but for two that are compared by what they
# lead to. Weights are compared as arrays, and data by its fingerprint.
MUST_AGREE = tuple(name for name in fields_affecting("result") if name not in ("weights", "data"))
# What NumPy raises where the header of an array, which it reads as Python's literals, is none.
UNREADABLE = (
    *(OSError, ValueError, TypeError, SyntaxError, ArithmeticError, LookupError, AttributeError),
    *(RecursionError, MemoryError, EOFError, tokenize.TokenError),
)
_FLOAT = re.compile(r"-?0x[01]\.[0-9a-f]+p[+-]\d+")
_FILE = re.compile(r"\d{6}\.npy")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the trace: facts as JSON, and the files that hold its arrays."""

    folder: Path
    key: str
    facts: Mapping[str, Any]
    files: Mapping[str, str]

    def array(self, name: str) -> Array | None:
        """Read one array; None where the record has none of that name.

        Raises:
            TlxError: its file is missing, damaged, a link or too large.
        """
        file = self.files.get(name)
        if file is None:
            return None
        path = self.folder / file
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_ARRAY:
                raise ValueError("a link, no file, or larger than 4 GiB")
            # Mapped first: a header that promises more than the file holds is then an error, not an allocation.
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if mapped.dtype.kind not in "fiub":
                raise ValueError(f"numbers of dtype {mapped.dtype}")
            return np.array(mapped, order="C")
        except UNREADABLE as error:
            raise TlxError(f"{path}: cannot read the array {name!r} of {self.key!r}: {_short(error)}") from error

    def needed(self, name: str) -> Array:
        """Read one array.

        Raises:
            TlxError: the record has none of that name, or it cannot be read.
        """
        array = self.array(name)
        if array is None:
            raise TlxError(f"{self.folder}: the record {self.key!r} lacks the array {name!r}; capture anew")
        return array

    def arrays(self) -> dict[str, Array]:
        """Read all arrays of the record, by name."""
        return {name: self.needed(name) for name in self.files}


class Records(dict[str, Record]):
    """The records by key; one that is missing is a mistake in the folder."""

    folder: Path

    def __missing__(self, key: str) -> Record:
        """Raise TlxError, as a whole capture has the record."""
        raise TlxError(f"{self.folder}: trace.jsonl lacks the record {key!r}; capture anew")


class Writer:
    """Writes a capture. The manifest comes last, so a folder without one is unfinished."""

    def __init__(self, folder: Path) -> None:
        """Begin a capture in a new or empty folder; raises TlxError where it holds something or cannot be written."""
        try:
            created = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise TlxError(f"{folder} is not empty, and tlx overwrites nothing; choose another folder")
            self._trace = (folder / TRACE).open("wb", 0)  # what stays in a buffer fails once more at the end
        except OSError as error:
            raise TlxError(f"Cannot write to {folder}: {error.strerror}. Choose another folder.") from error
        self.folder, self.count, self.created = folder, 0, created

    def add(
        self,
        key: str,
        facts: Mapping[str, Any] | None = None,
        arrays: Arrays | None = None,
        written: Mapping[str, str] | None = None,
    ) -> Record:
        """Write one record: a line of JSON, and a file for each array. Raises TlxError where the disk is full.

        Args:
            key: what it is found by.
            facts: plain values.
            arrays: by name.
            written: further arrays by name, each as the file of an earlier record that holds the same numbers.
        """
        files = dict(written or {})
        with self._writing():
            for name, array in (arrays or {}).items():
                files[name] = f"{self.count:06d}.npy"
                np.save(self.folder / files[name], np.array(array, order="C"), allow_pickle=False)
                self.count += 1
            line = json.dumps({"key": key, "facts": facts or {}, "files": files}).encode() + b"\n"
            if self._trace.write(line) != len(line):
                raise OSError("the disk is full")
        return Record(self.folder, key, facts or {}, files)

    def close(self, manifest: Mapping[str, Any]) -> None:
        """Finish the capture; raises TlxError where the disk is full."""
        self._trace.close()
        write_atomic(self.folder / END, json.dumps({"format": FORMAT, **manifest}, indent=1).encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            problem = f"Cannot write to {self.folder}: {error.strerror or error}; the capture is not whole"
            raise TlxError(problem, fix="capture anew, into another folder with room") from error

    def abandon(self) -> None:
        """Delete what was written: no one can use a capture that ended early."""
        self._trace.close()
        with suppress(OSError):
            (self.folder / TRACE).unlink()
            for number in range(self.count):
                (self.folder / f"{number:06d}.npy").unlink(missing_ok=True)
            if self.created:
                self.folder.rmdir()


class Capture:
    """A capture that was read: its manifest, and its records by key, in the order they were written."""

    def __init__(self, folder: str | Path) -> None:
        """Read a capture; its arrays are read when they are asked for. Raises TlxError where it is damaged."""
        self.folder = Path(folder)
        self.manifest = self._manifest()
        self.records = Records()
        self.records.folder = self.folder
        for line in self._text(TRACE).splitlines():
            record = self._record(line, self.engine)
            self.records[record.key] = record

    def _manifest(self) -> dict[str, Any]:
        if not os.path.isfile(self.folder / END):  # False too of a name that is too long
            raise TlxError(f"{self.folder} holds no finished capture: {END} is missing. See `tlx parity capture`.")
        manifest = self._object(self._text(END))
        if manifest.get("format") != FORMAT:
            raise TlxError(f"{self.folder}: a capture of format {manifest.get('format')}; this tlx reads {FORMAT}")
        missing = [name for name in MANIFEST if name not in manifest and not name.endswith("?")]
        if missing:
            raise TlxError(f"{self.folder}: the manifest lacks {', '.join(missing)}; capture anew")
        check_manifest(f"{self.folder}/{END}", manifest)
        if "engine" not in manifest:
            manifest["must"] = _current(manifest["must"])
        return manifest

    def _record(self, line: str, engine: bool) -> Record:
        values, where = self._object(line), f"{self.folder}/{TRACE}"
        try:
            key, facts, files = str(values["key"]), dict(values["facts"]), dict(values["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise TlxError(f"{where}: a line lacks key, facts or files") from error
        for file in files.values():
            if not isinstance(file, str) or not _FILE.fullmatch(file):
                raise TlxError(f"{where}: {file!r} is no array file; expected such as 000012.npy")
        check_record(where, key, facts, engine)
        return Record(self.folder, key, facts, files)

    @property
    def engine(self) -> bool:
        """Whether an engine outside tlx wrote it, with tlx/proof/capture_writer.py; it may then lack any record."""
        return "engine" in self.manifest

    @property
    def precision(self) -> str:
        """What it was computed in, but for the stages in float32: "float64", or "float32" where an engine has that."""
        return str(self.manifest["precision"]) if self.engine else "float64"

    def stage(self, prefix: str) -> list[Record]:
        """Return the records whose key begins with ``prefix/``, in the order in which they were written."""
        return [record for key, record in self.records.items() if key.startswith(prefix + "/")]

    def _text(self, name: str) -> str:
        path = self.folder / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise TlxError(f"{path} cannot be read: it is no file")
            if status.st_size > MAX_TEXT:
                raise TlxError(f"{path} is larger than {MAX_TEXT >> 20} MiB; it is no capture of tlx")
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TlxError(f"{path} cannot be read: {_short(error)}") from error

    def _object(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TlxError(f"{self.folder}: damaged JSON: {_short(error)}") from error
        if not isinstance(value, dict):
            raise TlxError(f"{self.folder}: expected a JSON object, found {type(value).__name__}")
        return value


def _current(must: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal under the names of today; a recipe field that is younger had its default.

    Where that is the model's own value, all models had ImageNet's.
    """
    renamed = {RENAMED.get(name, name): value for name, value in must.items()}
    defaults = {f.name: hexed(f.default) for f in fields(Recipe) if f.name in MUST_AGREE}
    pixels = {name: hexed(getattr(IMAGENET, name)) for name in ("mean", "std", "interpolation")}
    return {**defaults, **pixels, **renamed}


def hexed(value: Any) -> Any:
    """Write floats as hex, so that they compare bit for bit in JSON."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(k): hexed(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [hexed(v) for v in value]
    return value


def readable(value: Any) -> str:
    """Write a value that `hexed` made as Python would, with its floats in decimals."""
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        with suppress(OverflowError):
            return repr(float.fromhex(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {readable(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(readable, value))}]"
    return repr(value)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
