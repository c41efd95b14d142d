"""Features that earlier runs left on disk, found by what they were computed from: the network and the pixels.

A store is a folder of the cache for one network, which its facts and the hashes of its values identify. The file `rows`
holds the features, and `keys` holds for each of them a hash of the image's pixels and one of the row itself. So neither
a renamed photo nor another split misses a row, and a damaged row is not found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tlx.backend import Array
from tlx.download import cache_folder

LIMIT = 2 * 2**30  # bytes of one store, and of all others together; beyond it the least recently used are removed
SECONDS = 10  # to wait for another process that writes
CHECKED = 8  # images of which the features are computed anew before a store, or a boundary, is trusted
ENTRY = np.dtype([("image", "S16"), ("row", "S16")])


class FeatureStore:
    """Rows of one dtype and shape, by the pixels of their images.

    If the disk refuses to be written, the store stops writing and the run goes on.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.folder, self.dtype, self.shape = folder, dtype, shape
        self.width = int(np.prod(shape)) * dtype.itemsize  # bytes of a row
        self.verified = False  # whether rows were computed anew and were equal
        self._file, self._index = folder / "rows", folder / "keys"
        self._lock = FileLock(folder / ".lock", timeout=SECONDS)
        self._writes = True
        self.read()

    def __len__(self) -> int:
        return len(self._keys)

    def read(self) -> None:
        """Look again at what is on disk, which includes what this process has added."""
        for path in (self._file, self._index):
            path.touch()
        entries = np.fromfile(self._index, ENTRY)
        count = min(len(entries), self._file.stat().st_size // self.width)
        self._order = np.argsort(entries["image"][:count], kind="stable")
        self._keys = entries[self._order]
        # An empty file cannot be mapped.
        self._rows = np.memmap(self._file, np.uint8, "r", shape=(count, self.width)) if count else self._keys

    def find(self, images: Array) -> tuple[Array, Array]:
        """Look images up by their pixels.

        Returns:
            Which of them the store has, bool [n], and the rows of those, in their order.
        """
        wanted = hashes(images)
        at = np.searchsorted(self._keys["image"], wanted, "right") - 1  # the last that was added
        known = at >= 0
        known[known] = self._keys["image"][at[known]] == wanted[known]
        if not known.any():
            return known, np.empty((0, *self.shape), self.dtype)
        rows = np.array(self._rows[self._order[at[known]]])
        rows = rows.view(self.dtype).reshape(-1, *self.shape)
        whole = hashes(rows) == self._keys["row"][at[known]]
        known[known] = whole
        return known, rows[whole]

    def verify(self, images: Array, compute: Callable[[Array], Array]) -> None:
        """Compute the rows of a few images anew. If they differ from what is stored, forget everything.

        What another processor or a changed library computed is whole and yet wrong here. If the store has none of the
        images, it remains unverified.
        """
        if not len(self):
            return
        known, rows = self.find(images)
        if not known.any():
            return
        self.verified = np.array_equal(compute(images[known][:CHECKED]), rows[:CHECKED])
        if not self.verified:
            self.clear()

    def add(self, images: Array, rows: Array) -> None:
        """Append the rows of images; other processes may do the same at the same time."""
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
                # Half a row or key that a killed process left behind goes first.
                file.truncate(count * self.width)
                keys.truncate(count * ENTRY.itemsize)
                file.write(np.ascontiguousarray(rows).data)
                file.flush()
                keys.write(entries.tobytes())
        except OSError:  # the disk is full, the folder is gone, another process holds the lock
            self._writes = False

    def clear(self) -> None:
        """Forget all rows, on disk too."""
        try:
            with self._lock:
                self._index.unlink()
                self._file.unlink()
        except OSError:
            self._writes = False
        self._keys, self._order = self._keys[:0], self._order[:0]


def open_store(network: Mapping[str, Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> FeatureStore | None:
    """Open the store of a network, and make room for it; None if the cache cannot be written."""
    facts = json.dumps({**network, "dtype": dtype.str, "shape": list(shape)}, sort_keys=True)
    home = cache_folder() / "features"
    folder = home / hashlib.sha256(facts.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        _make_room(home, folder)
        return FeatureStore(folder, dtype, shape)
    except OSError:
        return None


def _make_room(home: Path, wanted: Path) -> None:
    """Remove the least recently used of the other stores until they are within the limit."""
    sizes = {f: sum(file.stat().st_size for file in f.iterdir()) for f in home.iterdir() if f != wanted}
    for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime):
        if sum(sizes.values()) <= LIMIT:
            break
        shutil.rmtree(folder)
        del sizes[folder]


def hashes(rows: Array) -> Array:
    """Return a hash of 16 bytes over the shape and the bytes of each row, S16 [n]."""
    shape = repr(rows.shape[1:]).encode()
    digests = [hashlib.blake2b(shape + np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in rows]
    return np.array(digests, dtype="S16")
