"""The folder of a run: held against other runs while one goes on, and changed so that a kill loses nothing."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from tlx.atomic import replacing, sync_folder, write_atomic
from tlx.errors import RecipeError, RunNotFound, TlxError
from tlx.files import read_regular
from tlx.manifest import HISTORY, MANIFEST, RECIPE, Entry, Manifest, damaged, read_file, read_manifest
from tlx.recipe import Recipe

LOCK, LAST, RESULT = ".lock", "last", "result.json"
OLD_STATE = "last/state.safetensors"  # of tlx 0.1.0, which had no manifest
# What killed writers leave: files under temporary names, and states and best values that no manifest names.
_TOP = (
    r"(?:manifest|card|result)\.json|recipe\.toml|fixes\.csv|history\.jsonl|(?:model|adapters|neighbors)\.safetensors|"
    r"report\.html|predictions-(?:val|test)\.csv|logits-(?:val|test)\.npy"
)
_SAVED, _TMP = r"(?:(?:state|best)(?:-\d+)?\.safetensors|logits-\d+\.npy)", r"\.[0-9a-f]{8}\.tmp"
TEMPORARY = re.compile(rf"\.{{1,2}}(?:{_TOP})(?:{_TMP}){{1,2}}|{LAST}/\.{_SAVED}{_TMP}")
SAVED = re.compile(rf"{LAST}/{_SAVED}")


class Hashed:
    """A file that is written from its start to its end, and what a manifest says of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes, /) -> int:
        """Write bytes."""
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


class RunFolder:
    """A run's folder while this process holds its lock: what its manifest names, and how that changes.

    Files are `put` one by one and count once they are committed, all in one step. `begin` comes before that.
    """

    def __init__(self, path: Path) -> None:
        """Raise RunDamaged where the folder has a manifest that cannot be relied on."""
        self.path = path
        manifest = read_manifest(path)
        self.old = manifest is None  # of tlx 0.1.0, or new
        self.manifest = manifest or Manifest({})
        self._staged: dict[str, Entry] = {}
        self._earlier: set[str] = set()  # what an earlier tlx wrote
        self._history, self._size = hashlib.sha256(), 0
        self._synced = True

    def has(self, name: str) -> bool:
        """Whether the file belongs to the run."""
        return (self.path / name).is_file() if self.old else name in self.manifest.files

    @property
    def files(self) -> Mapping[str, Entry]:
        """What the manifest names; nothing in a folder of tlx 0.1.0."""
        return self.manifest.files

    @property
    def state(self) -> str | None:
        """The name of the saved state."""
        if self.old:
            return OLD_STATE if self.has(OLD_STATE) else None
        return next(iter(self.manifest.states()), None)

    def read(self, name: str) -> bytes:
        """Return what the run wrote into a file; raises RunDamaged where it holds something else."""
        if self.old:
            try:
                return read_regular(self.path / name)
            except OSError as error:
                raise TlxError(f"{self.path / name} cannot be read: {error.strerror}") from error
        if name not in self.files:
            raise TlxError(f"{self.path} holds no {name}")
        try:
            return read_file(self.path, name, self.files[name])
        except ValueError as error:
            raise damaged(self.path, self.manifest, name, str(error)) from None

    def settle(self) -> None:
        """Give the files that a commit named the names that they were to have, where a kill came between."""
        for name, entry in self.files.items():
            if entry.at and (self.path / entry.at).exists():
                self.read(name)  # whole, or it does not take the place of what is there
                with writing(self.path):
                    os.replace(self.path / entry.at, self.path / name)

    def begin(self, history: bytes) -> None:
        """Make the folder ready to be written to: clear what a killed run left, and cut what it did not save.

        `history` is what the history holds as far as the run was saved. Files that are not tlx's stay.
        """
        with writing(self.path):
            self._clear()
            file = self.path / HISTORY
            if not history:
                file.unlink(missing_ok=True)
            elif self.old:
                write_atomic(file, history)
            elif file.stat().st_size != len(history):
                os.truncate(file, len(history))
        self._history, self._size = hashlib.sha256(history), len(history)

    def append(self, line: bytes) -> None:
        """Add a line to the history; it counts once it is committed."""
        with writing(self.path / HISTORY), (self.path / HISTORY).open("ab") as file:
            file.write(line)
        self._history.update(line)
        self._size += len(line)
        self._synced = False

    def put(self, name: str, content: bytes) -> None:
        """Write a file that belongs to the run from the next commit on; until then, what it replaces stays."""
        with self.putting(name) as file:
            file.write(content)
        if name == RECIPE:
            self.manifest = Manifest(self.manifest.files, content.decode(errors="surrogateescape"))

    @contextmanager
    def putting(self, name: str) -> Iterator[Hashed]:
        """Give a file to write to that is then put: for what is too large to be held in memory."""
        if self.old and (self.path / name).exists():
            self._earlier.add(name)
        at = f".{name}.{secrets.token_hex(4)}.tmp" if name in self.manifest.files else ""
        try:
            with replacing(self.path / (at or name)) as file:
                hashed = Hashed(file)
                yield hashed
        except TlxError:
            self._forget()
            raise
        self._staged[name] = Entry(hashed.size, hashed.digest.hexdigest(), at)

    def adopt(self, names: Collection[str]) -> None:
        """Let files that an earlier tlx wrote belong to the run from the next commit on."""
        for name in filter(self.has, names):
            content = self.read(name)
            self._staged[name] = Entry(len(content), hashlib.sha256(content).hexdigest())
            self._earlier.add(name)
            if name == RECIPE:
                self.manifest = Manifest(self.manifest.files, content.decode(errors="surrogateescape"))

    def commit(self, drop: Collection[str] = ()) -> None:
        """Let what was put belong to the run, and what is dropped no more: the manifest says both in one step."""
        kept = {name: entry for name, entry in self.manifest.files.items() if name not in drop}
        files = kept | self._staged
        if self._size:
            if not self._synced:
                self._sync_history()
            files[HISTORY] = Entry(self._size, self._history.hexdigest())
        manifest = Manifest(files, self.manifest.recipe)
        try:
            manifest.write(self.path)
        except TlxError:
            self._forget()
            raise
        moved, self._staged, self.manifest = self._staged, {}, manifest
        with writing(self.path):
            for name, entry in moved.items():
                if entry.at:
                    os.replace(self.path / entry.at, self.path / name)
            if any(entry.at for entry in moved.values()):
                sync_folder(self.path)
            for name in drop:
                with suppress(IsADirectoryError):  # another put it in the place of what the run wrote
                    (self.path / name).unlink(missing_ok=True)
            if self.old:
                self.old = False
                self._clear()

    def discard(self) -> None:
        """Delete what a new run wrote, where that is no more than its recipe."""
        if not self.old and self.manifest.files.keys() == {RECIPE} and not self._size:
            with suppress(OSError):
                (self.path / LAST).rmdir()
            for name in (RECIPE, MANIFEST):
                (self.path / name).unlink(missing_ok=True)

    def _forget(self) -> None:
        """Delete what was put and is not committed: the disk may be full, so it is left as it was."""
        with writing(self.path):
            for name, entry in self._staged.items():
                if name not in self._earlier:
                    (self.path / (entry.at or name)).unlink(missing_ok=True)

    def _sync_history(self) -> None:
        with writing(self.path / HISTORY), (self.path / HISTORY).open("rb") as file:
            os.fsync(file.fileno())
        self._synced = True

    def _clear(self) -> None:
        """Delete what killed writers left, under names that only tlx gives."""
        known = self.manifest.files.keys() | {entry.at for entry in self.manifest.files.values()}
        for path in (*self.path.glob(".*.tmp"), *self.path.glob(f"{LAST}/*"), *self.path.glob(f"{LAST}/.*.tmp")):
            name = path.relative_to(self.path).as_posix()
            left = TEMPORARY.fullmatch(name) or (SAVED.fullmatch(name) and not self.old)
            if left and name not in known and path.is_file():
                path.unlink()


@contextmanager
def new_folder(recipe: Recipe) -> Iterator[RunFolder]:
    """Make and hold the folder of a new run: `out`, which must be empty, or the next free one below runs/.

    A run that fails before it has saved anything leaves no folder behind.
    """
    if recipe.out is None:
        made = [] if Path("runs").exists() else [Path("runs")]
        try:
            path = _free_folder(recipe)
        except TlxError:  # such as of a name that is too long
            _remove(made)
            raise
        made.insert(0, path)
    else:
        path = Path(recipe.out)
        made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]  # the deepest first
    try:
        with writing(path, fix="choose another folder with out"):
            path.mkdir(parents=True, exist_ok=True)
            _must_be_empty(path)
        with _locked(path):
            _must_be_empty(path)  # another run may have come and gone
            folder = RunFolder(path)
            try:
                yield folder
            except TlxError:
                folder.discard()
                raise
    finally:
        _remove(made)


@contextmanager
def resumed_folder(path: Path) -> Iterator[RunFolder]:
    """Hold the folder of a run that goes on; whoever looks at it before holding it may see what is about to change.

    Raises RunNotFound where there is no run.
    """
    if not any(os.path.exists(path / name) for name in (RECIPE, MANIFEST)):  # False too of a name that is too long
        raise RunNotFound(f"{path} holds no run: recipe.toml is missing. Pass a folder that `tlx run` wrote.")
    with _locked(path):
        folder = RunFolder(path)
        folder.settle()
        yield folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a folder against other runs. The lock is the operating system's, so it ends with the process."""
    # Not 0: a lock on a file that its last holder has just deleted counts for nothing, and is tried again.
    lock = FileLock(path / LOCK, timeout=0.2)
    try:
        with writing(path, fix="choose another folder with out"):
            lock.acquire(poll_interval=0.02)
    except Timeout:
        raise TlxError(f"{path} is in use by another run; choose another folder, or wait for its end") from None
    try:
        yield
    finally:
        with suppress(OSError):
            (path / LOCK).unlink()  # before the release, so that nobody holds a file that the next one does not see
        lock.release()


def _remove(folders: Sequence[Path]) -> None:
    """Remove those of some folders, the deepest first, that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def writing(path: Path, fix: str = "") -> Iterator[None]:
    """Turn what the system says of a write into one line."""
    try:
        yield
    except (TlxError, Timeout):  # some are OSErrors too
        raise
    except OSError as error:
        raise TlxError(f"Cannot write to {path}: {error.strerror or error}", fix=fix) from error


def _must_be_empty(path: Path) -> None:
    if any(entry.name != LOCK and not TEMPORARY.fullmatch(entry.name) for entry in path.iterdir()):
        raise RecipeError(f"out: {path} is not empty, and tlx overwrites nothing; choose another folder")


def _free_folder(recipe: Recipe) -> Path:
    data = recipe.data if isinstance(recipe.data, str) else "arrays"
    if "://" in data:
        data = re.split(r"[?#]", data)[0]  # a query or a hash belongs into no name
    data = Path(data).name
    stem = f"{data}-{recipe.model_name}-{recipe.strategy_name}-{recipe.backend}"
    for number in count(1):
        path = Path("runs") / f"{stem}-{number}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError as error:
            if not path.parent.is_dir():  # "runs" is a link to nothing
                raise TlxError(f"Cannot create {path}. Choose another folder with out.") from error
        except OSError as error:
            raise TlxError(f"Cannot create {path}: {error.strerror}. Choose another folder with out.") from error
    raise AssertionError("unreachable")
