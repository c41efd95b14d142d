"""What photos hold, as hashes that the cache keeps, so that a million files are read once and not by every run."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tlx.atomic import write_atomic
from tlx.data.loader import ahead
from tlx.download import cache_folder
from tlx.errors import DataError, TlxError
from tlx.files import open_regular

HASH = "S16"  # SHA-256, of which 16 bytes are kept: processors compute it faster than what else hashlib has
ROW = np.dtype([("key", HASH), ("hash", HASH)])
ROWS = 4_000_000  # of one table, 128 MB
LIMIT = 2**29  # bytes of all tables; those that were not used for the longest time go
# A file that changed so shortly before it was read may change again without another time: what is known of it is not
# kept. File systems count in steps of up to 2 s.
YOUNG = 2.0
THREADS = 8  # they wait for the disk
CHUNK = 64  # files that a thread takes at once
BLOCK = 2**20  # bytes read at once

Span = tuple[str, int, int]  # path of a file, first byte of the photo in it, and how many; 0, -1: all of it
Hashes = NDArray[np.bytes_]  # HASH [N]
T = TypeVar("T")
R = TypeVar("R")
Advance = Callable[[int, int], object]  # images so far, of how many


def hash_of(*parts: Any) -> bytes:
    """The hash of bytes, or of what has a buffer of them."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()[:16]


def as_hashes(hashes: Sequence[bytes]) -> Hashes:
    """Put hashes into an array."""
    return np.frombuffer(b"".join(hashes), dtype=HASH)


class FileHashes:
    """Hashes of files, known again by path, inode, size and times: a file that was replaced has others.

    They are kept in a table for each root of data. One that is damaged, or cannot be written, is as if it were not
    there, and of runs that write at once the last one's stays.
    """

    def __init__(self) -> None:
        self._tables: dict[Path, NDArray[Any]] = {}

    def of(self, root: Path, spans: Sequence[Span], advance: Advance | None = None) -> Hashes:
        """Return the hash of each photo, reading those that are not known.

        Args:
            root: of the data; names the table.
            spans: where the photos are.
            advance: is told how many are known.

        Raises:
            DataError: a file is missing, none, or cannot be read.
        """
        file = _table_file(root)
        keys = as_hashes([key_of(span, facts_of(span[0])) for span in spans])
        hashes = self._look_up(file, keys)
        unknown = np.flatnonzero(hashes == b"")
        known, fresh = len(spans) - len(unknown), []
        try:
            wanted = [spans[i] for i in unknown.tolist()]
            for at, (key, digest, lasting) in enumerate(in_threads(_read, wanted)):
                hashes[unknown[at]] = digest
                if lasting:
                    fresh.append((key, digest))
                if advance is not None and at % CHUNK == 0:
                    advance(known + at + 1, len(spans))
        finally:  # a run that was stopped here need not begin again
            if fresh:
                self._keep(file, np.array(fresh, dtype=ROW))
        return hashes

    def known(self, root: Path, spans: Sequence[Span]) -> Hashes | None:
        """Return the hashes of photos if all are known, without reading one; otherwise None."""
        file = _table_file(root)
        if not len(self._table(file)):
            return None
        with contextlib.suppress(DataError):
            hashes = self._look_up(file, as_hashes([key_of(span, facts_of(span[0])) for span in spans]))
            return None if (hashes == b"").any() else hashes
        return None

    def learn(self, root: Path, rows: NDArray[Any]) -> None:
        """Keep hashes of photos that were read elsewhere: `rows` [N] are of `ROW`."""
        file = _table_file(root)
        self._table(file)
        if len(rows):
            self._keep(file, rows)

    def _look_up(self, file: Path, keys: Hashes) -> Hashes:
        """Return the hashes of keys; an empty one where there is none."""
        table = self._table(file)
        if not len(table):
            return np.zeros(len(keys), dtype=HASH)
        at = np.minimum(np.searchsorted(table["key"], keys), len(table) - 1)
        return np.where(table["key"][at] == keys, table["hash"][at], np.zeros(1, dtype=HASH))

    def _table(self, file: Path) -> NDArray[Any]:
        if file not in self._tables:
            self._tables[file] = read_table(file)
        return self._tables[file]

    def _keep(self, file: Path, fresh: NDArray[Any]) -> None:
        table = np.concatenate([fresh, self._tables[file], read_table(file)])[:ROWS]
        table = table[np.unique(table["key"], return_index=True)[1]]
        self._tables[file] = table
        write_table(file, table)


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Do something with each item; in threads, and in order."""
    chunks = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    rounds = iter(lambda: list(itertools.islice(chunks, THREADS)), [])
    with closing(ahead(lambda chunk: [work(item) for item in chunk], rounds, THREADS)) as done:
        yield from itertools.chain.from_iterable(itertools.chain.from_iterable(done))


def facts_of(path: str) -> os.stat_result:
    """Return what the system says of a photo's file; DataError where there is none."""
    try:
        facts = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="replace or remove it") from error
    if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
        raise DataError(f"{path} is not a file, or a link to nothing", fix="remove it")
    return facts


def key_of(span: Span, facts: os.stat_result) -> bytes:
    """What a photo is known by. Whoever restores the time of the last change still changes that of the inode."""
    times = f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
    return hash_of(f"{times} {span[1]} {span[2]} {span[0]}".encode("utf-8", "surrogateescape"))


def _read(span: Span) -> tuple[bytes, bytes, bool]:
    """Return the key and the hash of a photo, and whether the one will stand for the other."""
    path, start, left = span
    digest = hashlib.sha256()
    facts_of(path)
    try:
        with open_regular(path) as file:
            facts = os.fstat(file.fileno())
            lasting = max(facts.st_mtime, facts.st_ctime) < time.time() - YOUNG
            file.seek(start)
            while block := file.read(BLOCK if left < 0 else min(left, BLOCK)):
                digest.update(block)
                left -= len(block) if left > 0 else 0
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", fix="replace or remove it") from error
    return key_of(span, facts), digest.digest()[:16], lasting


def _table_file(root: Path) -> Path:
    return table_file(root, "hashes")


def table_file(root: Path, kind: str) -> Path:
    """Return where the cache keeps what is known of the photos below a root."""
    return cache_folder() / kind / hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]


def read_table(file: Path, row: Any = ROW) -> NDArray[Any]:
    """Return the rows of a table by ascending key; none where there is no table or it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = file.read_bytes()
        if hash_of(content[16:]) == content[:16]:
            os.utime(file)
            return np.frombuffer(content, dtype=row, offset=16)
    return np.zeros(0, dtype=row)


def write_table(file: Path, table: NDArray[Any]) -> None:
    """Replace a table, and remove the least recently used ones; where that fails, files are read again later."""
    with contextlib.suppress(OSError, TlxError):
        file.parent.mkdir(parents=True, exist_ok=True)
        content = table.tobytes()
        write_atomic(file, hash_of(content) + content)
        _make_room(file.parent)


def _make_room(home: Path) -> None:
    """Remove the least recently used tables until they are within the limit."""
    facts = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in home.iterdir())
    size = sum(size for _, size, _ in facts)
    for _, one, file in facts:
        if size <= LIMIT:
            break
        file.unlink()
        size -= one
