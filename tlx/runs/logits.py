"""The logits of a run's validation and test part, kept from the evaluations that it makes anyway.

They wait in memory, or in a file without a name once they are large, and are written as .npy: [N, classes], in the
order of the part's images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Protocol

import numpy as np

from tlx.backend import Array
from tlx.errors import RunDamaged
from tlx.manifest import LOGITS, PART_LOGITS
from tlx.runs.folder import LAST, RESULT, RunFolder, writing
from tlx.training.metrics import EpochEnded, Evaluated, Event

IN_MEMORY = 1 << 25  # bytes of logits; more go to a file
BLOCK = 1 << 20  # numbers that are read back at once


class Sink(Protocol):
    """A file that is written to from its start to its end."""

    def write(self, data: bytes, /) -> int:
        """Write bytes."""


class Spool:
    """Logits that are added batch by batch, and read back in blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: IO[bytes] = SpooledTemporaryFile(IN_MEMORY, dir=str(folder))  # noqa: SIM115 (lives as long as this)
        self.rows, self.classes, self.dtype = 0, 0, np.dtype(np.float32)

    def add(self, logits: Array) -> None:
        """Take the logits [n, classes] of the images that come next."""
        self.classes, self.dtype = logits.shape[1], logits.dtype
        with writing(self.folder):
            self.file.write(np.ascontiguousarray(logits).tobytes())
        self.rows += len(logits)

    def close(self) -> None:
        """Free what they took."""
        self.file.close()

    def blocks(self) -> Iterator[Array]:
        """Yield all logits in order, some rows at a time."""
        rows = max(1, BLOCK // self.classes)
        self.file.seek(0)
        for at in range(0, self.rows, rows):
            count = min(rows, self.rows - at)
            content = self.file.read(count * self.classes * self.dtype.itemsize)
            yield np.frombuffer(content, self.dtype).reshape(count, self.classes)

    def write(self, out: Sink) -> None:
        """Write all as .npy."""
        little = self.dtype.newbyteorder("<")
        header = {"descr": little.str, "fortran_order": False, "shape": (self.rows, self.classes)}
        np.lib.format.write_array_header_1_0(out, header)  # type: ignore[no-untyped-call]
        for block in self.blocks():
            out.write(block.astype(little, copy=False).tobytes())


class Recorder:
    """Listens to a run, and keeps the logits of the validation part at its best epoch, and of the test part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: dict[str, Spool] = {}  # what counts so far; the test part's are whole once it was read
        self._present: dict[str, Spool] = {}  # the validation part at the present epoch

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Evaluated):
            part = self._present if event.part == "val" else self.parts
            if event.first == 0:
                self.drop(event.part, part)
                part[event.part] = Spool(self.folder)
            part[event.part].add(event.logits)
        elif isinstance(event, EpochEnded) and event.best and "val" in self._present:
            self.drop("val")
            self.parts["val"] = self._present.pop("val")

    def drop(self, part: str, spools: dict[str, Spool] | None = None) -> None:
        """Forget the logits of a part."""
        if (spool := (self.parts if spools is None else spools).pop(part, None)) is not None:
            spool.close()

    def close(self) -> None:
        """Forget all."""
        for spool in (*self.parts.values(), *self._present.values()):
            spool.close()

    def resume(self, folder: RunFolder, best_epoch: int) -> None:
        """Read back what was saved of the best epoch; nothing where an earlier tlx saved it."""
        name = saved_file(best_epoch)
        if not folder.has(name) and folder.has(RESULT):
            name = PART_LOGITS["val"]  # of a finished run
        if best_epoch >= 0 and not folder.old and folder.has(name):
            self.parts["val"] = spool = Spool(self.folder)
            spool.add(parse_logits(folder.read(name), folder.path / name))


def saved_file(epoch: int) -> str:
    """Return where the validation logits of an epoch, counted from 0, lie until the run has finished."""
    name = f"{LAST}/logits-{epoch + 1}.npy"
    assert LOGITS.fullmatch(name)
    return name


def parse_logits(content: bytes, path: Path) -> Array:
    """Read logits [N, classes] from what an .npy file holds; raises RunDamaged where it is something else."""
    try:
        array: Any = np.lib.format.read_array(  # type: ignore[no-untyped-call]
            io.BytesIO(content), allow_pickle=False
        )
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise RunDamaged(f"{path} is damaged: {' '.join(str(error).split())}", fix="train again") from error
    if array.ndim != 2 or array.dtype not in (np.float32, np.float64) or 0 in array.shape:
        found = f"{array.dtype} {list(array.shape)}"
        raise RunDamaged(f"{path} is damaged: it holds {found}; expected float [N, classes]", fix="train again")
    if not np.isfinite(array).all():
        raise RunDamaged(f"{path} is damaged: its numbers are not finite", fix="train again")
    return np.asarray(array)
