"""Photos that lie, encoded, within larger files: the members of tar shards, the rows of Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import FileImages, decode
from tlx.data.view import View
from tlx.errors import DataError
from tlx.files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PackedImages(FileImages):
    """Photos within files: number `places[i, 0]` of `files`, from byte `places[i, 1]` on, `places[i, 2]` bytes.

    `names` say which photo of which file it is. Each is read when needed, so memory holds none of them.
    """

    files: tuple[Path, ...]
    places: NDArray[np.int64]

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each photo as it is stored, int64 [N]."""
        return self.places[:, 2]

    def spans(self, indices: Iterable[int]) -> list[tuple[str, int, int]]:
        """Where photos are stored: the path of the file, the first byte in it and how many."""
        files = [os.path.abspath(file) for file in self.files]
        return [(files[number], first, size) for number, first, size in self.places[list(indices)].tolist()]

    def content(self, index: int, end: int | None = None) -> bytes:
        """A photo as it is stored, or its last `end` bytes. Raises OSError where it cannot be read."""
        number, offset, size = (int(value) for value in self.places[index])
        wanted = size if end is None else min(size, end)
        with open_regular(self.files[number]) as file:
            file.seek(offset + size - wanted)
            return file.read(wanted)

    def _read(self, index: int, view: View | None = None) -> Image:
        name = self.names[index]
        try:
            content = self.content(index)
        except OSError as error:
            raise DataError(f"{name} in {error.filename} cannot be read: {error.strerror}.") from error
        return decode(content, view, where=name, max_pixels=self.max_pixels)

    def select(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> PackedImages:
        """The photos at `indices`, in that order, under new labels."""
        return replace(self, places=self.places[indices], labels=labels, names=[self.names[i] for i in indices])
