"""The folder that a capture writes and a comparison reads: manifest.json, trace.jsonl and numbered .npy files.

Nothing in it is trusted: no pickle is read, a file is named by number only, and sizes are bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array, Arrays
from tlx.errors import TlxError

FORMAT = 1
MODULE = "a module"  # the manifest's model where it is a user's own
FACTS = ("must", "recipe", "backend", "versions", "device", "precisions", "planned", "replayed", "inputs")
MAX_ARRAY, MAX_TEXT = 4 << 30, 256 << 20  # bytes
_FILE = re.compile(r"\d{6}\.npy")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the trace: facts as JSON, and the files that hold its arrays."""

    folder: Path
    key: str
    facts: Mapping[str, Any]
    files: Mapping[str, str]

    def array(self, name: str) -> Array | None:
        """Read one array; None where the record has none of that name."""
        file = self.files.get(name)
        if file is None:
            return None
        path = self.folder / file
        try:
            if path.is_symlink() or path.stat().st_size > MAX_ARRAY:
                raise ValueError("a link, or larger than 4 GiB")
            # Mapped first: a header that promises more than the file holds is then an error, not an allocation.
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False), order="C")
        except (OSError, ValueError) as error:
            raise TlxError(f"{path}: cannot read the array {name!r} of {self.key!r}: {_short(error)}") from error

    def arrays(self) -> dict[str, Array]:
        found = {name: self.array(name) for name in self.files}
        return {name: array for name, array in found.items() if array is not None}


class Records(dict[str, Record]):
    """The records by key; one that is missing is a mistake in the folder."""

    folder: Path

    def __missing__(self, key: str) -> Record:
        raise TlxError(f"{self.folder}: trace.jsonl lacks the record {key!r}; capture anew")


class Writer:
    """Writes a capture. The manifest comes last, so a folder without one is unfinished."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise TlxError(f"{folder} is not empty, and tlx overwrites nothing; choose another folder")
            self._trace = (folder / "trace.jsonl").open("w", encoding="utf-8")
        except OSError as error:
            raise TlxError(f"Cannot write to {folder}: {error.strerror}. Choose another folder.") from error
        self.folder, self.count = folder, 0

    def add(self, key: str, facts: Mapping[str, Any] | None = None, arrays: Arrays | None = None) -> None:
        files = {}
        for name, array in (arrays or {}).items():
            files[name] = f"{self.count:06d}.npy"
            np.save(self.folder / files[name], np.array(array, order="C"), allow_pickle=False)
            self.count += 1
        line = {"key": key, "facts": facts or {}, "files": files}
        self._trace.write(json.dumps(line) + "\n")

    def close(self, manifest: Mapping[str, Any]) -> None:
        self._trace.close()
        text = json.dumps({"format": FORMAT, **manifest}, indent=1)
        (self.folder / "manifest.json").write_text(text, encoding="utf-8")


class Capture:
    """A capture that was read: its manifest, and its records by key, in the order they were written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").is_file():
            raise TlxError(
                f"{self.folder} holds no finished capture: manifest.json is missing. See `tlx parity capture`."
            )
        self.manifest: dict[str, Any] = self._object(self._text("manifest.json"))
        if self.manifest.get("format") != FORMAT:
            raise TlxError(f"{self.folder}: a capture of format {self.manifest.get('format')}; this tlx reads {FORMAT}")
        lacking = [name for name in FACTS if name not in self.manifest] or [
            name for name in ("model", "stages", "classes", "data") if name not in self.manifest["must"]
        ]
        if lacking:
            raise TlxError(f"{self.folder}: the manifest lacks {', '.join(lacking)}; capture anew")
        self.records = Records()
        self.records.folder = self.folder
        for line in self._text("trace.jsonl").splitlines():
            values = self._object(line)
            try:
                key, facts, files = str(values["key"]), dict(values["facts"]), dict(values["files"])
            except (KeyError, TypeError, ValueError) as error:
                raise TlxError(f"{self.folder}/trace.jsonl: a line lacks key, facts or files") from error
            for file in files.values():
                if not isinstance(file, str) or not _FILE.fullmatch(file):
                    raise TlxError(f"{self.folder}/trace.jsonl: {file!r} is no array file; expected such as 000012.npy")
            self.records[key] = Record(self.folder, key, facts, files)

    def stage(self, prefix: str) -> list[Record]:
        """The records whose key begins with ``prefix/``."""
        return [record for key, record in self.records.items() if key.startswith(prefix + "/")]

    def _text(self, name: str) -> str:
        path = self.folder / name
        try:
            if path.stat().st_size > MAX_TEXT:
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


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
