"""Both captures at the same time: the candidate's in a process of its own, which follows what the reference writes.

Each takes half of the threads. Much of the work of a side is not made quicker by a second one, so both together take
little more than half of the time.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, cast

from tlx.backend import Backend, registry
from tlx.backend.threads import cores, settle_threads
from tlx.models.zoo import architecture
from tlx.proof.artifact import END, TRACE, Capture, Record, Records
from tlx.proof.capture import QUICK, capture
from tlx.recipe import Recipe

MEMORY = 200  # bytes for a parameter of both models, in float64: gradients, the optimizer's slots and copies of all
POLL = 0.02  # seconds between two looks at what the reference has written
Job = tuple[Recipe, Backend | str, Path, Path, bool]  # the candidate, its folder, the reference's, copy_weights
CODE = "from tlx.proof.beside import follow; follow()"


class Unfinished(Capture):
    """A capture that another process writes: what is asked of it is answered once it is there.

    What is not there, or not whole, is waited for until its stage has passed: until a record of a later one is there,
    or the manifest, which comes last.
    """

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        """Follow the capture in a folder, of these stages in this order."""
        self.folder, self.stages = folder, list(stages)
        self.records = Awaited(self)
        self.records.folder = folder
        self._size, self._reached = 0, -1  # bytes of the trace that were read, and the last stage there

    @property
    def manifest(self) -> dict[str, Any]:  # type: ignore[override]
        """Wait for the end of the capture, and read its manifest."""
        while not (self.folder / END).is_file():
            time.sleep(POLL)
        return self._manifest()

    def stage(self, prefix: str) -> list[Record]:
        """Return the records whose key begins with ``prefix/``, once no more will come."""
        self.wait(prefix, whole=True)
        return super().stage(prefix)

    def wait(self, key: str, whole: bool = False) -> None:
        """Wait until the stage of a key has passed, or unless it is to be `whole`, until the record itself is there."""
        wanted = self.stages.index(_stage_of(key))
        while True:
            passed = (self.folder / END).is_file()  # before the look, which then sees all that was written
            self._read()
            if passed or self._reached > wanted or (not whole and dict.__contains__(self.records, key)):
                return
            time.sleep(POLL)

    def _read(self) -> None:
        """Take up the lines that have been written since."""
        with suppress(FileNotFoundError), (self.folder / TRACE).open("rb") as trace:
            trace.seek(self._size)
            *lines, _ = trace.read().split(b"\n")  # what comes after the last is not whole yet
            for line in lines:
                record = self._record(line.decode(), engine=False)
                dict.__setitem__(self.records, record.key, record)
                self._reached = max(self._reached, self.stages.index(_stage_of(record.key)))
                self._size += len(line) + 1


class Awaited(Records):
    """The records of an unfinished capture."""

    def __init__(self, capture: Unfinished) -> None:
        """Begin with none."""
        super().__init__()
        self.capture = capture

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key):
            self.capture.wait(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Record:
        return super().__getitem__(key) if key in self else self.__missing__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a record once it is there; `default` where its stage has passed without it."""
        return super().get(key, default) if key in self else default


def _stage_of(key: str) -> str:
    match = re.match(r"P\d+", key)
    assert match is not None, key
    return match[0]


def capture_both(
    recipe: Recipe,
    reference: Backend | str,
    candidate: Backend | str,
    home: Path,
    *,
    copy_weights: bool = False,
    serves: bool = True,
) -> tuple[Path, Path]:
    """Do a quick capture of two backends, and return the folders ``home/reference`` and ``home/candidate``.

    Raises:
        TlxError: as of `capture`.
    """
    first, second = home / "reference", home / "candidate"
    job = (recipe, candidate, second, first, copy_weights)
    with _following(job) as process:
        if isinstance(reference, str):
            reference = registry.load(reference)  # with its threads, which can be limited then
        with _half() if process is not None else nullcontext():
            capture(recipe, reference, first, quick=True, serves=serves)
        done = process is not None and process.wait() == 0
    if not done:  # here it succeeds, or says what is wrong
        if process is not None:
            shutil.rmtree(second, ignore_errors=True)
        capture(recipe, candidate, second, first, quick=True, copy_weights=copy_weights)
    return first, second


@contextmanager
def _following(job: Job) -> Iterator[subprocess.Popen[bytes] | None]:
    """Start the process, which ends with the block; None where it would not help or could not have the job."""
    recipe, backend, second, *_ = job
    portable = isinstance(backend, str) and isinstance(recipe.model, str) and isinstance(recipe.data, (str, Path))
    if _threads() < 2 or not portable or second.exists() or _is_large(str(recipe.model)):
        yield None
        return
    threads = {"OMP_NUM_THREADS": str(_threads() // 2)}
    command = [sys.executable, "-c", CODE]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, **threads}, **quiet)
    try:
        pipe = cast(IO[bytes], process.stdin)
        with suppress(BrokenPipeError):
            pipe.write(pickle.dumps(job))
            pipe.flush()
        yield process
    finally:
        process.kill()
        process.communicate()


def _is_large(model: str) -> bool:
    """Whether the memory that is free might not do for both sides at once."""
    from tlx.proof.matrix import free_memory

    return MEMORY * (architecture(model).parameters or 0) > free_memory()


def _half() -> AbstractContextManager[Any]:
    """Let this process compute with half of its threads."""
    from threadpoolctl import threadpool_limits

    limited: AbstractContextManager[Any] = threadpool_limits(_threads() // 2)
    return limited


def _threads() -> int:
    """How many threads this process may have."""
    settle_threads()
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(given), len(cores())) if given.isdecimal() else len(cores())


def follow() -> None:
    """Do the job that comes through the standard input, and end when that ends, as whoever wrote it has ended."""
    recipe, backend, out, reference, copy_weights = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_input, daemon=True).start()
    capture(recipe, backend, out, Unfinished(reference, QUICK), quick=True, copy_weights=copy_weights)


def _end_with_input() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock a daemon thread would still hold at the end
        pass
    os._exit(1)
