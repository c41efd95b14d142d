"""Embeddings while they are made: parts of some hundred rows in a folder beside the file, joined at the end.

Each part is written in one step, with a digest of the images that it is of. So what was killed goes on after the last
part, and images that changed meanwhile are computed again. The file itself appears only once it is whole. Any number of
processes share the parts: each has a lease, and who is ready when nobody works any more joins them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.atomic import replacing, write_json
from tlx.errors import TlxError
from tlx.files import read_regular
from tlx.leases import Lease
from tlx.runs.embeddings.file import KEY, ROWS, Dtype, as_text, import_pyarrow, opened, schema_of
from tlx.runs.embeddings.items import Item
from tlx.runs.facts import Facts, parse_object
from tlx.runs.folder import writing

JOB, LOCK = "job.json", ".lock"
GROUP = 2**25  # bytes of vectors in a row group of the file
PATIENCE, POLL = 5.0, 0.1  # seconds for a lock that another process has alone, and between two looks at it
LISTED = 100  # images that could not be read, in the metadata


@dataclass(frozen=True, slots=True)
class Bad:
    """An image that cannot be read."""

    index: int
    name: str
    problem: str
    missing: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What the metadata of a part say."""

    inputs: str  # a digest of its images' names, labels and stamps
    sure: bool  # whether every image had a stamp
    rows: int
    bad: tuple[Bad, ...]


def digest_of(items: Iterable[Item]) -> tuple[str, bool]:
    """Return what tells these images from others, and whether all of them say that they are the same images still."""
    digest, sure = hashlib.sha256(), True
    for item in items:
        stamp = item.input.stamp()
        sure = sure and stamp is not None
        line = json.dumps([item.index, as_text(item.input.name), item.label and as_text(item.label), item.part, stamp])
        digest.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest(), sure


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The folder of the parts of a file."""

    folder: Path
    width: int
    dtype: Dtype
    lock: FolderLock

    def lease(self, number: int) -> Lease | None:
        """Return the right to compute a part; None where another process does."""
        return Lease.take(self.folder / f".{number:08}.lock")

    def wait(self, numbers: Iterable[int]) -> None:
        """Wait until no other process computes any of these parts: it is written, or the process was killed."""
        for number in numbers:
            while (lease := self.lease(number)) is None:
                time.sleep(POLL)
            lease.release()

    def alone(self) -> None:
        """Exclude other processes, where nothing tells that they are given the same images; TlxError if there are."""
        if not (self.lock.alone or self.lock.take()):
            problem = "another process writes the same file, and nothing tells whether it has the same images"
            raise TlxError(problem, fix="wait for it")

    def finish(self, out: Path, count: int, facts: dict[str, Any]) -> None:
        """Join the first `count` parts once nobody works on them, unless another process has; and remove them."""
        self.lock.take(wait=True)
        if not os.path.lexists(out):
            self.join(out, count, facts)
        remove(self)

    def path(self, number: int) -> Path:
        """Return where a part lies."""
        return self.folder / f"{number:08}.parquet"

    def read(self, number: int) -> Part | None:
        """Return what a part says of itself; None where there is none, or none that is whole."""
        path = self.path(number)
        if not path.is_file():
            return None
        try:
            with opened(path) as file:
                content = (file.schema_arrow.metadata or {}).get(KEY, b"")
                rows = int(file.metadata.num_rows)
            facts = Facts(str(path), parse_object(content, str(path), ""), "")
            bad = tuple(
                Bad(one.whole("index"), one.text("name"), one.text("problem"), one.flag("missing"))
                for one in facts.inners("bad")
            )
            return Part(facts.text("inputs"), facts.flag("sure"), rows, bad)
        except TlxError:  # a disk that lost it; it is computed again
            return None

    def write(
        self, number: int, items: list[Item], vectors: NDArray[Any], bad: list[Bad], inputs: str, sure: bool
    ) -> None:
        """Write a part in one step: `items` are those that `vectors` [n, width] are of."""
        facts = {
            "inputs": inputs,
            "sure": sure,
            "bad": [{"index": b.index, "name": b.name, "problem": b.problem, "missing": b.missing} for b in bad],
        }
        pa, schema = import_pyarrow(), schema_of(self.width, self.dtype, facts)
        kind = schema.field("vector").type
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), kind.value_type)
        columns = [
            pa.array([item.index for item in items], pa.int64()),
            pa.array([as_text(item.input.name) for item in items], pa.string()),
            pa.array([None if item.label is None else as_text(item.label) for item in items], pa.string()),
            pa.array([as_text(item.part) for item in items], pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, type=kind),
        ]
        with replacing(self.path(number)) as file:
            pa.parquet.write_table(pa.table(columns, schema=schema), file, compression="zstd")

    def join(self, out: Path, count: int, facts: dict[str, Any]) -> None:
        """Write the file from the first `count` parts, in one step; memory holds one row group."""
        pa, schema = import_pyarrow(), schema_of(self.width, self.dtype, facts)
        most = max(1, min(ROWS, GROUP // (4 * self.width)))
        with replacing(out) as file:
            # Names and labels repeat, vectors do not; a dictionary of them would be built in vain.
            options = {"compression": "zstd", "use_dictionary": ["label", "part"], "write_statistics": ["index"]}
            with pa.parquet.ParquetWriter(file, schema, **options) as writer:
                waiting: list[Any] = []
                for number in range(count):
                    with opened(self.path(number)) as part:
                        waiting.append(part.read().replace_schema_metadata(schema.metadata))
                    if sum(map(len, waiting)) >= most:
                        writer.write_table(pa.concat_tables(waiting).combine_chunks(), most)
                        waiting = []
                if waiting:
                    writer.write_table(pa.concat_tables(waiting).combine_chunks(), most)

    def begun(self) -> bool:
        """Whether a part was written."""
        return any(self.folder.glob("*.parquet"))


@contextmanager
def parts_of(out: Path, width: int, dtype: Dtype, job: dict[str, Any]) -> Iterator[Parts]:
    """Share the folder of the parts of a file with whoever does the same job; without a part it is removed again.

    Raises:
        TlxError: the folder cannot be written, is held by a process that shares nothing, or holds something else.
    """
    folder = folder_of(out)
    with writing(folder), closing(_locked(folder, out, job)) as lock:
        if not _is_fresh(folder):
            _check(folder, out, job)
        elif lock.alone:
            write_json(folder / JOB, job)
        else:
            raise TlxError(f"another process is writing {out}", fix="wait for it")
        if lock.alone:
            for left in out.parent.glob(f".{escape(out.name[:40])}.{'[0-9a-f]' * 8}.tmp"):  # of a join that was killed
                left.unlink(missing_ok=True)
        lock.share()
        if not lock.stands():
            raise TlxError(f"another process has just written {out}", fix="repeat the call")
        parts = Parts(folder, width, dtype, lock)
        try:
            yield parts
        finally:
            if folder.exists() and not parts.begun() and lock.take():
                shutil.rmtree(folder, ignore_errors=True)


def _is_fresh(folder: Path) -> bool:
    """Whether nothing is in a folder but locks, and what a kill left of a file that was to be written."""
    return all(name.startswith(".") for name in os.listdir(folder))


class FolderLock:
    """A lock of the folder: processes that do the same job share it, and who joins the parts has it alone."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.alone = path, path.open("ab"), False
        self.take()

    def take(self, wait: bool = False) -> bool:
        """Take the lock alone, if no other process has it too."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            self.alone = True
        except BlockingIOError:
            self.alone = False
        return self.alone

    def share(self) -> None:
        """Share the lock with others; TlxError where one has it alone for long."""
        deadline, self.alone = time.monotonic() + PATIENCE, False
        while True:
            try:
                return fcntl.flock(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    out = self.path.parent.name.removesuffix(".parts")
                    raise TlxError(f"another process is writing {out}", fix="wait for it") from None
                time.sleep(POLL)

    def close(self) -> None:
        """Give it back."""
        self.file.close()

    def stands(self) -> bool:
        """Whether the file that is locked is still there: who has joined the parts removes it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno()))
        return False


def _locked(folder: Path, out: Path, job: dict[str, Any]) -> FolderLock:
    """Return the lock of a folder, which is made if it is not there: alone, or shared with others."""
    while True:
        if os.path.lexists(folder) and not folder.is_dir():
            raise TlxError(f"{folder} is no folder, and the parts of {out.name} go there", fix="rename it")
        if folder.is_dir() and not os.path.lexists(folder / LOCK) and not _is_fresh(folder):
            _check(folder, out, job)
        folder.mkdir(exist_ok=True)
        try:
            lock = FolderLock(folder / LOCK)
        except FileNotFoundError:  # another process has removed the folder meanwhile
            continue
        try:
            if not lock.alone:
                lock.share()
            if lock.stands():
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()


def folder_of(out: Path) -> Path:
    """Return where the parts of a file lie."""
    return out.with_name(f"{out.name}.parts")


def _check(folder: Path, out: Path, job: dict[str, Any]) -> None:
    """Refuse parts of another job, and a folder that tlx did not make."""
    fix = f"remove {folder}, or choose another name for the file"
    try:
        before = parse_object(read_regular(folder / JOB), str(folder / JOB), fix)
    except (OSError, TlxError) as error:
        raise TlxError(f"{folder} holds something else than the parts of {out.name}", fix=fix) from error
    changed = [name for name in job if before.get(name) != job[name]]
    if changed:
        name = changed[0]
        was, now = (json.dumps(values.get(name))[:80] for values in (before, job))
        raise TlxError(f"{folder} was begun with another {name}: {was}, now {now}", fix=f"finish that, {fix}")


def remove(parts: Parts) -> None:
    """Remove the parts of a file that is whole."""
    shutil.rmtree(parts.folder, ignore_errors=True)
