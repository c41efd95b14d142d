"""Features of earlier runs, found by what they were computed of: the network, by its facts and hashes, and the pixels.

A shelf is a folder of the cache for one network; `keys` has for each row of `rows` a hash of the image's pixels and one
of the row. So neither a renamed photo nor another split misses it, and a row that was damaged is not found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tlx.backend import Array
from tlx.download import cache_folder

LIMIT = 2 * 2**30  # bytes of one shelf, and of all others together, of which the least recently used give way
SECONDS = 10  # to wait for another process that writes
ENTRY = np.dtype([("image", "S16"), ("row", "S16")])


class Shelf:
    """Rows of one dtype and shape. Whatever the disk refuses ends the writing, never the run."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.folder, self.dtype, self.shape = folder, dtype, shape
        self.width = int(np.prod(shape)) * dtype.itemsize
        self.proven = False  # whether a row was computed anew and found equal
        self._file, self._index = folder / "rows", folder / "keys"
        self._lock = FileLock(folder / ".lock", timeout=SECONDS)
        self._writes = True
        self.read()

    def __len__(self) -> int:
        return len(self._keys)

    def read(self) -> None:
        """Look what is there now, what this process added included."""
        for path in (self._file, self._index):
            path.touch()
        found = np.fromfile(self._index, ENTRY)
        count = min(len(found), self._file.stat().st_size // self.width)
        self._order = np.argsort(found["image"][:count], kind="stable")
        self._keys = found[self._order]
        # An empty file cannot be mapped.
        self._rows = np.memmap(self._file, np.uint8, "r", shape=(count, self.width)) if count else self._keys

    def find(self, images: Array) -> tuple[Array, Array]:
        """Which of the images are there, bool [n], and their rows [found, ...]."""
        wanted = hashes(images)
        at = np.searchsorted(self._keys["image"], wanted, "right") - 1  # the last that was added
        there = at >= 0
        there[there] = self._keys["image"][at[there]] == wanted[there]
        if not there.any():
            return there, np.empty((0, *self.shape), self.dtype)
        rows = np.array(self._rows[self._order[at[there]]])
        rows = rows.view(self.dtype).reshape(-1, *self.shape)
        whole = hashes(rows) == self._keys["row"][at[there]]
        there[there] = whole
        return there, rows[whole]

    def add(self, images: Array, rows: Array) -> None:
        """Append the rows of images; other processes may do the same."""
        entries = np.empty(len(rows), ENTRY)
        entries["image"], entries["row"] = hashes(images), hashes(rows)
        if not self._writes:
            return
        try:
            with self._lock, self._index.open("ab") as keys, self._file.open("ab") as file:
                count = min(keys.tell() // ENTRY.itemsize, file.tell() // self.width)
                if (count + len(rows)) * (self.width + ENTRY.itemsize) > LIMIT:
                    self._writes = False
                    return
                # What a killed process left behind of a row or a key goes first.
                file.truncate(count * self.width)
                keys.truncate(count * ENTRY.itemsize)
                file.write(np.ascontiguousarray(rows).data)
                file.flush()
                keys.write(entries.tobytes())
        except OSError:  # the disk is full, the folder is gone, another process holds the lock
            self._writes = False

    def clear(self) -> None:
        """Forget all rows: they are not what this machine computes."""
        try:
            with self._lock:
                self._index.unlink()
                self._file.unlink()
        except OSError:
            self._writes = False
        self._keys, self._order = self._keys[:0], self._order[:0]


def open_shelf(network: Mapping[str, Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Shelf | None:
    """The shelf of a network; None where the cache cannot be written."""
    facts = json.dumps({**network, "dtype": dtype.str, "shape": list(shape)}, sort_keys=True)
    home = cache_folder() / "features"
    folder = home / hashlib.sha256(facts.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        _make_room(home, folder)
        return Shelf(folder, dtype, shape)
    except OSError:
        return None


def _make_room(home: Path, wanted: Path) -> None:
    """Remove the least recently used of the other shelves until these are within the limit."""
    sizes = {f: sum(file.stat().st_size for file in f.iterdir()) for f in home.iterdir() if f != wanted}
    for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime):
        if sum(sizes.values()) <= LIMIT:
            break
        shutil.rmtree(folder)
        del sizes[folder]


def hashes(rows: Array) -> Array:
    """A hash of 16 bytes of the shape and the bytes of each row, S16 [n]."""
    shape = repr(rows.shape[1:]).encode()
    each = [hashlib.blake2b(shape + np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in rows]
    return np.array(each, dtype="S16")
