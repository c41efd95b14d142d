"""The kinds of data sources: which of them reads what `data` names, and the reading."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from tlx.data.sources.address import ADDRESS, ARCHIVE
from tlx.data.sources.arrays import ARRAYS
from tlx.data.sources.cifar10 import CIFAR10
from tlx.data.sources.csv_file import CSV, LISTED
from tlx.data.sources.digits import DIGITS
from tlx.data.sources.folder import FOLDER
from tlx.data.sources.npz import NPZ
from tlx.data.sources.parquet import PARQUET
from tlx.data.sources.source import Contents, DataLike, Kind, Source
from tlx.data.sources.webdataset import WEBDATASET
from tlx.errors import CONTROL, DataError, DataNotFound, closest

# The last that recognises a source reads it, so that a folder of shards is not taken for one of photos.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (CIFAR10, DIGITS, FOLDER, CSV, LISTED, NPZ, ARCHIVE, PARQUET, WEBDATASET, ADDRESS, ARRAYS)
}
BESIDE = 10_000  # names beside a path that does not exist, among which similar ones are looked for


def register(kind: Kind) -> None:
    """Add a kind of data source to the table. It is asked before those that are there, so it may take their files.

    Raises:
        DataError: a kind has that name already.
    """
    if kind.name in KINDS:
        raise DataError(f"data source {kind.name!r} is registered already", fix="give the kind another name")
    KINDS[kind.name] = kind


def describe_sources() -> str:
    """Say in one line what `data` may be, for the help of the recipe's field."""
    *helps, last = [kind.help for kind in KINDS.values() if kind.help]
    return f"{', '.join(helps)}, or {last}"


def open_source(
    source: DataLike,
    root: str | Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    on_bad_image: str = "error",
) -> Source:
    """Read a data set as it is published, before any selection; the arguments are those of `load_data`.

    Raises:
        DataNotFound: there is no such data set, file or folder.
        DataError: the data is damaged or has another layout.
    """
    try:
        return _open(source, None if root is None else Path(root).expanduser(), columns or {}, on_bad_image)
    except DataError:
        raise
    except RuntimeError as error:  # of a home folder that there is not, as in "~nobody/photos"
        if not str(source).startswith("~") and not str(root).startswith("~"):
            raise
        raise DataError(f"data={str(source)!r}: {str(error).rstrip('.')}", fix="write the path in full") from error
    except OSError as error:  # such as a folder that may not be read
        raise DataError(f"{error.filename or source} cannot be read: {error.strerror}.") from error


def check_name(what: str, name: str) -> None:
    """Refuse a name that a recipe and a model card cannot hold, or that would forge lines of what is printed."""
    if CONTROL.search(name):
        raise DataError(f"{what} {name!a} has control characters, or bytes that are not UTF-8", fix="rename it")


def _open(source: Any, root: Path | None, columns: Mapping[str, str | None], on_bad_image: str) -> Source:
    """Find out which kind of source it is, and read it, or what lies within it."""
    kind, candidate = _kind_of(source, root)
    given = {name: value for name, value in columns.items() if value is not None}
    options: dict[str, Any] = {**given, "on_bad_image": on_bad_image}
    opened = kind.read(candidate, root, **{name: options[name] for name in kind.options if name in options})
    if isinstance(opened, Contents):
        inner = _open(opened.path, root if opened.path.is_file() else None, columns, on_bad_image)
        return replace(inner, name=opened.name, notes=[*opened.notes, *inner.notes])
    for name in given:
        if name not in kind.options:
            raise DataError(f"{opened.name} is {kind.help or kind.name}, which has no {name}", fix=f"leave {name} out")
    return opened


def _kind_of(source: Any, root: Path | None) -> tuple[Kind, Any]:
    """Return the kind of a source, and what its `read` takes."""
    published = [kind.name for kind in KINDS.values() if kind.named]
    if isinstance(source, str) and source in published:
        return KINDS[source], source
    is_path = isinstance(source, (str, os.PathLike))
    if is_path:
        check_name("data: the path", os.fspath(source))
    candidates = [source]
    if is_path and "://" not in str(source):
        path = Path(source).expanduser()
        candidates = [path] if root is None else [path, root / path]
    for candidate in candidates:
        for kind in reversed(KINDS.values()):  # what was registered later comes first
            if kind.matches(candidate):
                return kind, candidate
    if not is_path:
        raise DataError(
            f"data must be one of {describe_sources()}; got {type(source).__name__}."
            " Arrays are passed as {'train': (images, labels), 'test': (images, labels)}."
        )
    suffixes = [
        kind.suffix if isinstance(kind.suffix, str) else kind.suffix[0] for kind in KINDS.values() if kind.suffix
    ]
    if path.exists():
        raise DataError(
            f"data={str(source)!r} is a file, but neither {' nor '.join(suffixes)}; it may be {describe_sources()}."
        )
    nearest = closest(str(source), [*published, *_beside(path)])
    raise DataNotFound(f"data={str(source)!r} is neither a known data set nor an existing folder or file.{nearest}")


def _beside(path: Path) -> list[str]:
    """Return the paths of similar names that exist where one was looked for."""
    with suppress(OSError), os.scandir(path.parent) as entries:
        names = [entry.name for entry in islice(entries, BESIDE)]
        return [str(path.with_name(name)) for name in get_close_matches(path.name, names, cutoff=0.7)]
    return []
