"""What is known of each image of a data set: size, kind, and hashes by which copies and near copies are found.

Reading photos takes most of the time, so that what was found is kept in the cache, by path, inode, size and times of
the file: a check that was killed goes on where it was, and one of the same photos again takes seconds. Processes that
check the same photos at the same time share them out, by leases beside the table.
"""

from __future__ import annotations

import fcntl
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.data import FileImages, Images
from tlx.data.file_hashes import (
    HASH,
    YOUNG,
    FileHashes,
    Span,
    facts_of,
    hash_of,
    in_threads,
    key_of,
    read_table,
    table_file,
    write_table,
)
from tlx.data.file_hashes import ROW as HASH_ROW
from tlx.data.images import decode, formats_up_to, orientation_of
from tlx.errors import DataError, TlxError
from tlx.leases import Lease

if TYPE_CHECKING:
    from PIL.Image import Image

FACT = np.dtype(
    [
        ("key", HASH),  # by which a file is known again; b"" of what is no file
        ("content", HASH),  # of the photo as it is stored; b"" of what is no file
        ("pixels", HASH),  # of the decoded image, upright, in RGB
        ("phash", "<u8"),  # perceptual hash; it counts where `HASHED` is set
        ("mirrored", "<u8"),  # that of the mirrored image, likewise
        ("width", "<u4"),
        ("height", "<u4"),
        ("flags", "<u4"),
        ("thumb", "u1", (192,)),  # the image in 8 x 8 pixels, RGB
    ]
)
# What a photo can be, as bits of `flags`.
GREY, CMYK, ROTATED, ANIMATED, DEEP, ALPHA, PLAIN, HASHED = (1 << bit for bit in range(8))
VERSION = "checks-2"  # of the table; another one has another meaning
SAVE_SECONDS, SHARE = 10.0, 20  # between two saves of what was read, and as many times as long as the last one took
SHARE_SIZE, POLL = 1024, 0.2  # photos that a process takes at once, and seconds between two looks at what others read
LARGEST = 2**30  # bytes of a file that is read as a photo
SMALL = 64  # pixels a side, to which an image is reduced before it is hashed
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")

Fact = NDArray[Any]
Place = tuple[int, int, int]  # device, inode, first byte: where a photo is stored
Advance = Callable[[int, int], object]


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What is known of the images of one part.

    `rows` are of `FACT`, [N]; `problems` says of an image that cannot be read what is wrong with it; `places` are where
    photos are stored, with links followed, and empty for what is no file.
    """

    rows: Fact
    problems: dict[int, str]
    places: list[Place | None]


def can_hash() -> bool:
    """Whether the library of perceptual hashes is installed."""
    return find_spec("imagehash") is not None


def facts_of_part(images: Images, files: FileHashes, advance: Advance | None = None) -> Facts:
    """Read every image of a part; what the cache knows of photos is not read again.

    Args:
        images: the part.
        files: learns the hashes of photos that were read, so that a run need not read them.
        advance: is told how many images of how many are known.
    """
    if isinstance(images, FileImages):
        return _of_files(images, files, advance)
    rows, problems = np.zeros(len(images), FACT), {}
    for i, outcome in enumerate(in_threads(partial(_of_item, images), range(len(images)))):
        if isinstance(outcome, str):
            problems[i] = outcome
        else:
            rows[i] = outcome
        if advance is not None:
            advance(i + 1, len(images))
    return Facts(rows, problems, [None] * len(images))


def _of_item(images: Images, index: int) -> Fact | str:
    try:
        return _fact(images.open(index))
    except DataError as error:
        return error.problem.rstrip(".")


def _of_files(images: FileImages, files: FileHashes, advance: Advance | None) -> Facts:
    spans = images.spans(range(len(images)))
    store = _Store(images, files)
    rows, problems, places = np.zeros(len(images), FACT), {}, list[Place | None]([None] * len(images))
    for i, outcome in enumerate(in_threads(_stat, spans)):
        if isinstance(outcome, str):
            problems[i] = outcome
        else:
            rows["key"][i], places[i] = outcome
    rows = store.look_up(rows)
    unknown = [i for i in np.flatnonzero(rows["pixels"] == b"").tolist() if i not in problems]
    done = len(images) - len(unknown)
    shares = deque([*block] for _, block in groupby(unknown, lambda i: i // SHARE_SIZE))
    others = 0  # shares in a row that other processes read
    try:
        while shares:
            share = shares.popleft()
            if not store.take(spans[share[0] // SHARE_SIZE * SHARE_SIZE]):
                shares.append(share)
                if (others := others + 1) >= len(shares):
                    store.save()  # or two processes would wait for each other
                    time.sleep(POLL)
                    others = 0
                continue
            others = 0
            store.refresh()
            rows[share] = store.look_up(rows[share])
            left = [i for i in share if rows["pixels"][i] == b""]
            done += len(share) - len(left)
            for i, read in zip(left, in_threads(partial(_read, images, spans), left), strict=True):
                done += 1
                if isinstance(read, str):
                    problems[i] = read
                else:
                    rows[i], lasting = read
                    store.add(rows[i], lasting)
                if advance is not None:
                    advance(done, len(images))
            store.done()
    finally:  # what was read before a stop need not be read again
        store.done()
        store.save()
    return Facts(rows, problems, places)


class _Store:
    """The table of one root in the cache. One that is damaged, or cannot be written, is as if it were not there."""

    def __init__(self, images: FileImages, files: FileHashes) -> None:
        kind = VERSION if can_hash() else f"{VERSION}-plain"  # without hashes, photos are to be read again once it is
        self.root, self.files, self.file = images.root, files, table_file(images.root, kind)
        self.stamp = _stamp(self.file)  # of the table, before it was read
        self.table, self.fresh, self.saved = read_table(self.file, FACT), list[Fact](), time.monotonic()
        self.took = 0.0  # seconds of the last save
        self.leases = self.file.parent.with_name(f"{kind}-leases") / self.file.name
        self.lease: tuple[Path, Lease] | None = None  # of what is read now
        self.unsaved: list[tuple[Path, Lease]] = []  # of what was read, until it is in the table

    def look_up(self, rows: Fact) -> Fact:
        """Return rows, filled in where their key is known."""
        if len(self.table):
            at = np.minimum(np.searchsorted(self.table["key"], rows["key"]), len(self.table) - 1)
            known = (self.table["key"][at] == rows["key"]) & (rows["key"] != b"")
            rows[known] = self.table[at[known]]
        return rows

    def take(self, first: Span) -> bool:
        """Take the photos from this one on; False where another process reads them."""
        path = self.leases / hash_of(f"{first}".encode("utf-8", "surrogateescape")).hex()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lease = Lease.take(path)
        except OSError:  # without a cache nothing is shared
            return True
        self.lease = None if lease is None else (path, lease)
        return lease is not None

    def done(self) -> None:
        """Keep the lease of what was taken until it is in the table."""
        self.unsaved += [] if self.lease is None else [self.lease]
        self.lease = None

    def refresh(self) -> None:
        """Read the table again if another process has written it."""
        if (stamp := _stamp(self.file)) != self.stamp:
            self.table, self.stamp = read_table(self.file, FACT), stamp

    def add(self, row: Fact, lasting: bool) -> None:
        """Remember a row, unless its file is too young to be known again."""
        if lasting:
            self.fresh.append(row.copy())
        if time.monotonic() - self.saved > max(SAVE_SECONDS, SHARE * self.took):
            self.save()

    def save(self) -> None:
        """Write what is new."""
        started = time.monotonic()
        if self.fresh:
            fresh = np.array(self.fresh, dtype=FACT)
            with suppress(OSError, TlxError), self._locked():
                table = np.concatenate([fresh, read_table(self.file, FACT), self.table])
                self.table = table[np.unique(table["key"], return_index=True)[1]]
                write_table(self.file, self.table)
            hashes = np.zeros(len(fresh), HASH_ROW)
            hashes["key"], hashes["hash"] = fresh["key"], fresh["content"]
            self.files.learn(self.root, hashes)
        for path, lease in self.unsaved:
            path.unlink(missing_ok=True)  # before it is given back; whoever waits for it finds all of it in the table
            lease.release()
        self.fresh, self.unsaved, self.saved = [], [], time.monotonic()
        self.took = self.saved - started

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let no other process write the table, which would lose what this one adds."""
        self.leases.mkdir(parents=True, exist_ok=True)
        with (self.leases / "table").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _stamp(file: Path) -> tuple[int, int] | None:
    """What tells that a table was written anew."""
    with suppress(OSError):
        status = file.stat()
        return status.st_ino, status.st_size
    return None


def _stat(span: Span) -> tuple[bytes, Place] | str:
    try:
        status = facts_of(span[0])
    except DataError as error:
        return error.problem.rstrip(".")
    return key_of(span, status), (status.st_dev, status.st_ino, span[1])


def _read(images: FileImages, spans: list[Span], index: int) -> tuple[Fact, bool] | str:
    """Return what a photo is, and whether its file is old enough to be known again by its times; or what is wrong."""
    name = images.names[index]
    try:
        status = facts_of(spans[index][0])
        size = spans[index][2] if spans[index][2] >= 0 else status.st_size
        if size > LARGEST:
            return f"{name} has {size:,} bytes, which is no photo"
        content = images.content(index)
        row = _of_content(content, name, images.max_pixels)
        after = facts_of(spans[index][0])
    except DataError as error:
        return error.problem.rstrip(".")
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    row["key"], row["content"] = key_of(spans[index], after), hash_of(content)
    unchanged = (status.st_mtime_ns, status.st_size) == (after.st_mtime_ns, after.st_size)
    return row, unchanged and max(after.st_mtime, after.st_ctime) < time.time() - YOUNG


def _of_content(content: bytes, name: str, max_pixels: int) -> Fact:
    from PIL import Image

    row = _fact(decode(content, where=name, max_pixels=max_pixels))
    with Image.open(BytesIO(content), formats=formats_up_to(max_pixels)) as stored:  # only its header is read
        row["flags"] = int(row["flags"]) | _flags(stored)
    return row


def _flags(stored: Image) -> int:
    mode = stored.mode
    flags = (GREY if mode in ("1", "L", "LA", *DEEP_MODES) else 0) | (CMYK if mode == "CMYK" else 0)
    flags |= (DEEP if mode in DEEP_MODES else 0) | (ROTATED if orientation_of(stored) != 1 else 0)
    flags |= ALPHA if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in stored.info else 0
    try:
        return flags | (ANIMATED if getattr(stored, "is_animated", False) and stored.format != "MPO" else 0)
    except Exception:  # frames beyond the first, which are not used, may be damaged
        return flags


@cache
def _phash() -> Callable[[Image], Any] | None:
    if not can_hash():
        return None
    from imagehash import phash

    return phash


def _fact(image: Image) -> Fact:
    """Return what an image in RGB is."""
    from PIL.Image import Resampling
    from PIL.ImageOps import mirror

    row = np.zeros((), FACT)
    row["width"], row["height"] = image.size
    row["pixels"] = hash_of(f"{image.size}".encode(), image.tobytes())
    small = image.resize((SMALL, SMALL), Resampling.BOX)
    row["thumb"] = np.asarray(small.resize((8, 8), Resampling.BOX)).reshape(-1)
    colours = np.asarray(small).astype(np.int16)
    flags = PLAIN if all(low == high for low, high in np.reshape(image.getextrema(), (-1, 2)).tolist()) else 0
    flags |= GREY if (colours == colours[..., :1]).all() else 0
    hashed = _phash()
    if hashed is not None and not flags & PLAIN:
        row["phash"], row["mirrored"] = (int(str(hashed(one)), 16) for one in (small, mirror(small)))
        flags |= HASHED
    row["flags"] = flags
    return row
