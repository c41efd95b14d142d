"""A list of photos in a CSV file: one line per photo, with its path and its label."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from tlx.data.images import FileImages, Images
from tlx.data.sources.source import Kind, Source
from tlx.errors import DataError, DataNotFound, closest

COLUMNS = ("path", "label", "split")
PARTS = ("train", "val", "test")


def from_csv(file: Path, root: Path | None = None) -> Source:
    """A data set of photos listed in a file with the header ``path,label`` and, if wanted, ``split``.

    Paths are relative to `root`, or without it to the file's folder. Labels are class names, numbered in the order of
    their code points. `split` is train, val or test in every line; without it the test part is drawn.

    Raises:
        DataError: the file cannot be read or has a mistake; the text names the line.
        DataNotFound: a photo does not exist.
    """
    place = file.parent if root is None or not root.is_dir() else root
    rows = _rows(file)
    classes = sorted({label for _, label, _ in rows})
    number = {label: i for i, label in enumerate(classes)}
    first: dict[str, int] = {}
    for line, (path, _, _) in enumerate(rows, 2):
        same = os.path.normpath(path)
        if same in first:
            raise DataError(f"{file}, line {line}: {path} stands in line {first[same]} already", fix="remove one")
        first[same] = line
        if not os.path.isfile(place / path):
            raise DataNotFound(f"{file}, line {line}: no such file: {place / path}. Paths are relative to {place}.")
    parts: dict[str, Images] = {}
    for part in dict.fromkeys(split for _, _, split in rows):
        chosen = [(path, number[label]) for path, label, split in rows if split == part]
        labels = np.array([label for _, label in chosen], dtype=np.int64)
        parts[part] = FileImages(place, labels, [path for path, _ in chosen])
    if "all" not in parts and "train" not in parts:
        raise DataError(f"{file}: no line has split 'train'.")
    return Source(file.stem, tuple(classes), parts)


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """(path, label, split) of each line; split is "all" where the file has no such column."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for name in header:
                if name not in COLUMNS:
                    raise DataError(f"{file}: unknown column {name!r}.{closest(name, COLUMNS)} Expected path,label.")
            if len(set(header)) != len(header) or not {"path", "label"} <= set(header):
                raise DataError(
                    f"{file}: the first line is {','.join(header)!r}; expected path,label or path,label,split."
                )
            rows = []
            for cells in reader:
                if not cells:
                    continue
                where = f"{file}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise DataError(f"{where}: {len(cells)} cells; expected {len(header)}: {','.join(header)}.")
                values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
                if not values["path"] or not values["label"] or "\0" in values["path"]:
                    raise DataError(f"{where}: the {'label' if values['path'] else 'path'} is empty.")
                split = values.get("split", "all")
                if "split" in values and split not in PARTS:
                    raise DataError(f"{where}: split is {split!r}; expected train, val or test.")
                rows.append((values["path"], values["label"], split))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8: {error}.") from error
    if not rows:
        raise DataError(f"{file} lists no photo.")
    return rows


CSV = Kind(name="csv", help="a .csv of path,label", read=from_csv, suffix=".csv")
