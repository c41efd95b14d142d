"""Features that earlier runs left on disk, found by what they were computed from: the network and the pixels.

A store is a folder of the cache for one network, which its facts and the hashes of its values identify. The file `rows`
holds the features, and `keys` holds for each of them a hash of the image's pixels and a seal: one hash over the store's
name, the image's hash and the row. So neither a renamed photo nor another split misses a row, and a row that is not
what was computed for that image by that network is not found, whatever happened to the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tlx.backend import Array
from tlx.download import cache_folder

FORMAT = 2  # of the two files; stores of another one are not found, and go when room is made
LIMIT = 2 * 2**30  # bytes of one store, and of all others together; beyond it the least recently used are removed
ATTEMPTS = 5  # to open a store that other processes remove
SECONDS = 10  # to wait for another process that writes
CHECKED = 8  # images of which the features are computed anew before a store, or a boundary, is trusted
ENTRY = np.dtype([("image", "S16"), ("seal", "S16")])


class FeatureStore:
    """Rows of one dtype and shape, by the pixels of their images; the folder's name says of what network they are.

    If the disk refuses to be written, the store stops writing, `problem` says why, and the run goes on.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.folder, self.dtype, self.shape = folder, dtype, shape
        self.width = int(np.prod(shape)) * dtype.itemsize  # bytes of a row
        self.verified = False  # whether rows were computed anew and were equal
        self.problem = ""
        self._file, self._index = folder / "rows", folder / "keys"
        self._lock = FileLock(folder / ".lock", timeout=SECONDS)
        self._writes = True
        self._close: Callable[[], object] = lambda: None
        self.read()

    def __len__(self) -> int:
        return len(self._keys)

    def read(self) -> None:
        """Look again at what is on disk, which includes what this process has added."""
        for path in (self._file, self._index):
            path.touch()
        entries = np.fromfile(self._index, ENTRY)
        # The file is read rather than mapped: a mapped file that another process cuts ends this one with SIGBUS.
        opened = os.open(self._file, os.O_RDONLY)
        self._close()
        self._rows, self._close = opened, weakref.finalize(self, os.close, opened)
        count = min(len(entries), os.fstat(self._rows).st_size // self.width)
        self._order = np.argsort(entries["image"][:count], kind="stable")
        self._keys = entries[self._order]
        self._seen, self._added = count, set[bytes]()  # what was added since, by whichever process

    def find(self, images: Array) -> tuple[Array, Array]:
        """Look images up by their pixels. If a row is not what was computed for its image, forget everything.

        Returns:
            Which of them the store has, bool [n], and the rows of those, in their order.
        """
        wanted = hashes(images)
        at = np.searchsorted(self._keys["image"], wanted, "right") - 1  # the last that was added
        known = at >= 0
        known[known] = self._keys["image"][at[known]] == wanted[known]
        rows = np.zeros((int(known.sum()), self.width), np.uint8)
        for row, place in zip(rows, self._order[at[known]], strict=True):
            with suppress(OSError):  # of a disk that is damaged; like a file that is cut, it leaves zeros
                content = os.pread(self._rows, self.width, int(place) * self.width)
                row[: len(content)] = np.frombuffer(content, np.uint8)
        whole = seals(self.folder.name, wanted[known], rows) == self._keys["seal"][at[known]]
        known[known] = whole
        if not whole.all():
            self.clear()
        return known, rows[whole].view(self.dtype).reshape(-1, *self.shape)

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
        if not self._writes:
            return
        entries = np.empty(len(rows), ENTRY)
        entries["image"] = hashes(images)
        entries["seal"] = seals(self.folder.name, entries["image"], rows)
        try:
            with self._lock, self._index.open("a+b", 0) as keys, self._file.open("ab", 0) as file:
                count = min(keys.tell() // ENTRY.itemsize, file.tell() // self.width)
                if (count + len(rows)) * (self.width + ENTRY.itemsize) > LIMIT:
                    self._writes = False
                    return
                # Half a row or key that a killed process left behind goes first.
                file.truncate(count * self.width)
                keys.truncate(count * ENTRY.itemsize)
                new = self._new(entries["image"], keys, count)
                try:
                    _write(file, rows[new].tobytes())
                    _write(keys, entries[new].tobytes())
                except OSError:
                    file.truncate(count * self.width)  # half of them would only fill a disk that is full
                    raise
        except OSError as error:  # the disk is full, the folder is gone, another process holds the lock
            self._writes, self.problem = False, unwritable(error)

    def _new(self, images: Array, keys: RawIOBase, count: int) -> list[int]:
        """The places of images of which no process has added the row since the files were read."""
        if count < self._seen:  # another process has forgotten everything
            self._seen, self._added = 0, set()
        keys.seek(self._seen * ENTRY.itemsize)
        added = np.frombuffer(keys.read((count - self._seen) * ENTRY.itemsize) or b"", ENTRY)
        self._added.update(added["image"].tolist())
        self._seen = count
        first = {image: place for place, image in reversed(list(enumerate(images.tolist())))}  # of equal pixels
        return sorted(place for image, place in first.items() if image not in self._added)

    def clear(self) -> None:
        """Forget all rows, on disk too."""
        try:
            with self._lock:
                self._index.unlink(missing_ok=True)
                self._file.unlink(missing_ok=True)
        except OSError as error:
            self._writes, self.problem = False, unwritable(error)
        self._keys, self._order = self._keys[:0], self._order[:0]


def open_store(network: Mapping[str, Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> FeatureStore:
    """Open the store of a network, and make room for it; OSError if the cache cannot be written."""
    facts = json.dumps({**network, "dtype": dtype.str, "shape": list(shape), "format": FORMAT}, sort_keys=True)
    home = cache_folder() / "features"
    folder = home / hashlib.sha256(facts.encode()).hexdigest()[:32]
    for attempt in range(ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
            _make_room(home, folder)
            return FeatureStore(folder, dtype, shape)
        except (FileNotFoundError, FileExistsError):  # another process made room, and removed this one meanwhile
            if attempt + 1 == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _make_room(home: Path, wanted: Path) -> None:
    """Remove the least recently used of the other stores until they are within the limit.

    Other processes may do the same, or use what is removed: a store leaves its place in one step, so that theirs is
    either whole or gone.
    """
    used: list[tuple[float, Path, int]] = []
    for folder in home.iterdir():
        if folder.name.startswith("."):  # its process was killed, or another still opened a file in it
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with suppress(OSError):  # another process has removed it
            if folder != wanted:
                used.append((folder.stat().st_mtime, folder, sum(file.stat().st_size for file in folder.iterdir())))
    total = sum(size for _, _, size in used)
    for _, folder, size in sorted(used):
        if total <= LIMIT:
            break
        total -= size
        gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        with suppress(OSError):
            os.replace(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)


def _write(file: RawIOBase, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a disk that fills up takes some first
        rest = rest[file.write(rest) :]


def unwritable(error: OSError) -> str:
    """Say why the cache cannot be written."""
    if isinstance(error, TimeoutError):
        return "another process has been writing to the cache for long"
    folder = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
    return f"the cache{folder} cannot be written: {error.strerror or error}; TLX_CACHE may name another folder"


def hashes(rows: Array) -> Array:
    """Return a hash of 16 bytes over the shape and the bytes of each row, S16 [n]."""
    shape = repr(rows.shape[1:]).encode()
    digests = [hashlib.blake2b(shape + np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in rows]
    return np.array(digests, dtype="S16")


def seals(name: str, images: Array, rows: Array) -> Array:
    """Return a hash of 16 bytes over a store's name, and the hash of the image and the bytes of each row, S16 [n]."""
    of_images = np.ascontiguousarray(images).tobytes()
    digests = []
    for at, row in enumerate(rows):
        content = name.encode() + of_images[16 * at : 16 * at + 16] + np.ascontiguousarray(row).tobytes()
        digests.append(hashlib.blake2b(content, digest_size=16).digest())
    return np.array(digests, dtype="S16")
