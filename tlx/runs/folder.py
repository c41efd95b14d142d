"""The folder of a run: held against other runs while one goes on, and read again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tlx.errors import RecipeError, TlxError
from tlx.recipe import Recipe
from tlx.runs.facts import parse_object

LOCK = ".lock"


@contextmanager
def run_folder(recipe: Recipe, resumed: Path | None) -> Iterator[Path]:
    """Hold the run's folder against other runs: `out`, which must be empty, the next free one below runs/, or the old.

    The lock is the operating system's, so it ends with the process, however that ends.
    """
    path = resumed or (Path(recipe.out) if recipe.out is not None else _free_folder(recipe))
    try:
        path.mkdir(parents=True, exist_ok=True)
        _must_be_empty(path, resumed)
        lock = FileLock(path / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise TlxError(f"{path} is in use by another run; choose another folder, or wait for its end") from None
    except OSError as error:
        raise TlxError(f"Cannot write to {path}: {error.strerror}. Choose another folder with out.") from error
    try:
        _must_be_empty(path, resumed)  # another run may have come and gone
        yield path
    finally:
        with suppress(OSError):
            (path / LOCK).unlink()
        lock.release()


def _must_be_empty(path: Path, resumed: Path | None) -> None:
    if resumed is None and any(entry.name != LOCK for entry in path.iterdir()):
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
        except FileExistsError:
            continue
        except OSError as error:
            raise TlxError(f"Cannot create {path}: {error.strerror}. Choose another folder with out.") from error
    raise AssertionError("unreachable")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run folder."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TlxError(f"{path} cannot be read: {error}") from error
    return parse_object(text, str(path))
