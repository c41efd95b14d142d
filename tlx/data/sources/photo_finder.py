"""Photos that a list names, also by an id without a suffix, or without the folder that holds them."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from tlx.data.sources.folder import is_litter, is_photo
from tlx.errors import DataError

DEPTH = 2  # folders between the list and its photos, as in images/train/1.jpg
Found = dict[str, list[str]]


class PhotoFinder:
    """Finds the photos of a folder by what a list calls them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._folders: set[str] = set()
        self._suffixes: set[str] = set()

    def exists(self, cell: str) -> bool:
        """Whether a cell of the list names a photo, or several."""
        return self._is_file(cell) or bool(self._candidates(cell))

    def is_photo(self, cell: str) -> bool:
        """Whether a cell is the name of a photo with its suffix, which no heading is."""
        return is_photo(cell) and self.exists(cell)

    def find(self, cell: str, where: str) -> str | None:
        """Return the path of a photo relative to the folder, or None.

        Raises:
            DataError: several photos may be meant; `where` begins the text.
        """
        if self._is_file(cell):
            return cell
        if "\\" in cell and self._is_file(slashed := cell.replace("\\", "/")):
            return slashed
        candidates = self._candidates(cell)
        if len(candidates) > 1:
            raise DataError(
                f"{where}: {cell} may be {candidates[0]} or {candidates[1]}",
                fix="write the whole path, or pass the folder that is meant as data_root",
            )
        if not candidates:
            return None
        (path,) = candidates
        if folder := path[: -len(os.path.basename(path))]:
            self._folders.add(folder)
        self._suffixes.add(os.path.splitext(path)[1])
        return path

    def notes(self) -> list[str]:
        """Say where photos were found that are not where the list has them."""
        if not self._suffixes:
            return []
        place = f" in {', '.join(sorted(self._folders))}" if self._folders else ""
        return [f"photos were found by name{place} ({', '.join(sorted(self._suffixes))})"]

    def _is_file(self, cell: str) -> bool:
        try:
            return bool(cell) and os.path.isfile(self._place / cell)
        except ValueError:  # a null byte
            return False

    def _candidates(self, cell: str) -> list[str]:
        name = cell.replace("\\", "/").removeprefix("./").strip("/")
        return self._by_name.get(name, []) if name else []

    @cached_property
    def _by_name(self) -> Found:
        """Each photo's path, by all that may be meant by it: with or without folders, with or without a suffix."""
        found: Found = {}
        for folder, folders, files in os.walk(self._place, followlinks=True):
            inner = os.path.relpath(folder, self._place)
            steps = [] if inner == "." else inner.split(os.sep)
            folders[:] = sorted(name for name in folders if not is_litter(name)) if len(steps) < DEPTH else []
            for file in sorted(files):
                stem = os.path.splitext(file)[0]
                if is_photo(file) and not is_litter(file):
                    path = "/".join([*steps, file])
                    for start in range(len(steps) + 1):
                        for name in (file, stem):
                            found.setdefault("/".join([*steps[start:], name]), []).append(path)
        return found
