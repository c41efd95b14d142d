"""A list of photos in a .csv or .tsv file: one line per photo, with its path and its label, however they are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tlx.data.images import FileImages, Images
from tlx.data.multilabel import JOIN
from tlx.data.sources.folder import count, listed, part_of
from tlx.data.sources.parts import role
from tlx.data.sources.photo_finder import PhotoFinder
from tlx.data.sources.source import KEEP, Kind, Source
from tlx.data.sources.table import Table, read_table
from tlx.errors import DataError, DataNotFound, closest

SUFFIXES = (".csv", ".tsv")
# Usual names, the likeliest first, as `_plain` writes them.
# fmt: off
PATHS = (
    "path", "paths", "filepath", "filepaths", "imagepath", "imgpath", "file", "files", "filename", "filenames", "fname",
    "image", "images", "imagename", "imagefile", "imagefilename", "img", "imgname", "photo", "picture",
    "imageid", "imgid", "photoid", "id", "name",
)
LABELS = (
    "label", "labels", "class", "classname", "labelname", "category", "categoryname", "target", "breed", "species",
    "tag", "y", "diagnosis", "classid", "classindex", "labelid", "categoryid",
)
SPLITS = ("split", "set", "fold", "partition", "subset", "part", "dataset")
# fmt: on
FLAGS = {"istrain": "train", "isval": "val", "isvalid": "val", "isvalidation": "val", "istest": "test"}
TRUE, FALSE = ("1", "true", "yes", "t", "y"), ("0", "false", "no", "f", "n", "")
SAMPLED = 50  # rows whose files are looked for to tell which column holds paths
LISTED_FILES = 10  # missing files that a message names


def from_csv(
    file: Path,
    root: Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    on_bad_image: str = "error",
) -> Source:
    """A data set of photos listed in a file with a header, such as ``path,label`` or ``path,label,split``.

    Which columns hold the path, the label and the split is told by usual names, then by content; a note says what was
    guessed, and `path_column` and `label_column` decide. Paths are relative to `root`, or without it to the file's
    folder; a path without suffix or folder is looked for in the folders there. Labels are class names, numbered in the
    order of their code points. Without a split the test part is drawn.

    Several labels for each photo stand in one column, with `label_separator` between them; or each class is a column of
    0 and 1, and `label_column` names these with commas between. Where it is not given, and no column has a usual name
    of a label, those that hold nothing but 0 and 1 are taken.

    Raises:
        DataError: the file cannot be read or has a mistake; the text names the line.
        DataNotFound: photos do not exist, and `on_bad_image` is not "skip"; where it is `KEEP`, none does.
    """
    place = file.parent if root is None or not root.is_dir() else root
    finder = PhotoFinder(place)
    table = read_table(file, finder.is_photo)
    flags = _flags(table, finder, path_column, label_column, label_separator)
    if flags:
        label_column = table.header[flags[0]]
    path_at, label_at, notes = _columns(table, finder, path_column, label_column)
    if flags:
        shown = listed([table.header[at] for at in flags])
        notes = [f"columns of 0 and 1 are read as classes, of which several may apply to a photo: {shown}"]
    splits, split_notes = _splits(table, (path_at, *(flags or [label_at])))
    photos: dict[str, tuple[str, str, int]] = {}  # by path as written first: label, split, line
    written: dict[str, str] = {}  # by path without detours
    missing: list[tuple[int, str]] = []
    again = 0
    for (line, cells), split in zip(table.rows, splits, strict=True):
        where = f"{file}, line {line}"
        cell, label = cells[path_at], cells[label_at]
        if flags:
            label = _joined(table, line, cells, flags)
        if not cell or (not label and not flags and label_separator is None) or "\0" in cell:
            raise DataError(f"{where}: the {'label' if cell else 'path'} is empty.")
        path = finder.find(cell, where)
        if path is None:
            missing.append((line, cell))
            if on_bad_image != KEEP:
                continue
            path = cell
        path = written.setdefault(os.path.normpath(path), path)
        earlier = photos.setdefault(path, (label, split, line))
        if earlier[:2] != (label, split):
            raise DataError(f"{where}: {cell} stands in line {earlier[2]} already", fix="remove one")
        again += earlier[2] != line
    if missing and (on_bad_image != KEEP or len(missing) == len(table.rows)):
        shown = ", ".join(f"{cell} (line {line})" for line, cell in missing[:LISTED_FILES])
        more = f" and {len(missing) - LISTED_FILES} more" if len(missing) > LISTED_FILES else ""
        if on_bad_image != "skip" or not photos:
            line, cell = missing[0]
            raise DataNotFound(
                f"{file}, line {line}: no such file: {place / cell}. Paths are relative to {place}; {len(missing)} of"
                f" {len(table.rows)} rows name files that are not there: {shown}{more}",
                fix="pass their folder as data_root, or leave such rows out with on_bad_image='skip'",
            )
        notes.append(f"left out {len(missing)} of {len(table.rows)} rows whose files are missing: {shown}{more}")
    if again:
        notes.append(f"{count(again, 'row')} repeat an earlier row and are used once")
    separator = JOIN if flags else label_separator
    names = {path: _names(label, separator) for path, (label, _, _) in photos.items()}
    classes = [table.header[at] for at in flags] if flags else sorted({name for row in names.values() for name in row})
    number = {label: i for i, label in enumerate(classes)}
    parts: dict[str, Images] = {}
    for part in dict.fromkeys(split for _, split, _ in photos.values()):
        chosen = [path for path, (_, split, _) in photos.items() if split == part]
        if separator is None:
            labels = np.array([number[names[path][0]] for path in chosen], dtype=np.int64)
        else:
            labels = np.zeros((len(chosen), len(classes)), dtype=np.int64)
            for row, path in zip(labels, chosen, strict=True):
                row[[number[name] for name in names[path]]] = 1
        parts[part] = FileImages(place, labels, chosen)
    if "all" not in parts and "train" not in parts:
        raise DataError(f"{file}: no line has split 'train'.")
    return Source(file.stem, tuple(classes), parts, [*table.notes, *notes, *split_notes, *finder.notes()])


def _names(label: str, separator: str | None) -> list[str]:
    """The labels that a cell holds, without blanks around them; all of it where nothing separates them."""
    if separator is None:
        return [label]
    return [name.strip() for name in label.split(separator) if name.strip()]


def _flags(
    table: Table, finder: PhotoFinder, path_column: str | None, label_column: str | None, separator: str | None
) -> list[int]:
    """Places of the columns of 0 and 1 that are classes, of which several may apply; none where labels are names."""
    header = table.header
    if separator is not None:
        if not separator.strip() and separator != " ":
            raise DataError(f"label_separator is {separator!r}; expected a character such as '|', ';' or a blank")
        return []
    if label_column is not None and label_column not in header and "," in label_column:
        chosen = [_given(table, "label_column", name.strip()) for name in label_column.split(",") if name.strip()]
        if len(set(chosen)) != len(chosen):
            raise DataError(f"label_column names a column twice: {label_column}")
        return chosen
    if label_column is not None or _named(header, LABELS):
        return []
    aside = ("", "unnamed0", "index", *SPLITS, *FLAGS, *PATHS)
    chosen = [i for i, name in enumerate(header) if _plain(name) not in aside and name != path_column]
    chosen = [i for i in chosen if all(cells[i] in ("0", "1") for _, cells in table.rows)]
    return chosen if len(chosen) > 1 else []


def _joined(table: Table, line: int, cells: Sequence[str], flags: Sequence[int]) -> str:
    """The names of the classes whose column holds 1."""
    for at in flags:
        if cells[at].lower().removesuffix(".0") not in (*TRUE, *FALSE):
            problem = f"{table.file}, line {line}: {table.header[at]} is {cells[at]!r}; expected 0 or 1"
            raise DataError(problem, fix="name the columns that are classes with label_column")
    applies = [at for at in flags if cells[at].lower().removesuffix(".0") in TRUE]
    if bad := next((table.header[at] for at in applies if JOIN in table.header[at]), None):
        raise DataError(
            f"{table.file}: {JOIN!r} stands between several labels, but is part of {bad!r}", fix="rename it"
        )
    return JOIN.join(table.header[at] for at in applies)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _named(header: Sequence[str], names: Sequence[str]) -> list[int]:
    """Places of the columns that have one of these names, the likeliest first."""
    plain = [_plain(name) for name in header]
    return [plain.index(name) for name in names if name in plain]


def _given(table: Table, field: str, name: str) -> int:
    if name not in table.header:
        raise DataError(f"{table.file}: {field} is {name!r}, but there is no such column.{closest(name, table.header)}")
    return table.header.index(name)


def _columns(
    table: Table, finder: PhotoFinder, path_column: str | None, label_column: str | None
) -> tuple[int, int, list[str]]:
    """Tell which columns hold the path and the label, with a note where that is not plain."""
    header = table.header
    # An index that a program wrote has no name; a column of the split or of a flag is no label.
    aside = {i for i, name in enumerate(header) if _plain(name) in ("", "unnamed0", "index", *SPLITS, *FLAGS)}
    label_at = None if label_column is None else _given(table, "label_column", label_column)
    if path_column is not None:
        path_at = _given(table, "path_column", path_column)
    else:
        likely = [i for i in _named(header, PATHS) if i != label_at]
        others = [i for i in range(len(header)) if i not in (*likely, *aside, label_at)]
        sample = [cells for _, cells in table.rows[:SAMPLED]]
        files = {i: sum(finder.exists(cells[i]) for cells in sample) for i in (*likely, *others)}
        # A label such as 1 may happen to name the photo 1.jpg.
        holds_files = (i for i, hits in files.items() if hits > (0 if i in likely else len(sample) // 2))
        found = next(holds_files, likely[0] if likely else None)
        if found is None:
            raise DataError(f"{table.where()}: no column holds paths of files", fix="name it with path_column")
        path_at = found
    if label_at is None:
        named = [i for i in _named(header, LABELS) if i != path_at]
        rest = [i for i in range(len(header)) if i != path_at and i not in aside]
        if not named and len(rest) != 1:
            near = closest("label", (header[i] for i in rest))
            raise DataError(f"{table.where()}: which one is the label?{near}", fix="name it with label_column")
        label_at = named[0] if named else rest[0]
    if path_at == label_at:
        raise DataError(f"{table.file}: path_column and label_column are both {header[path_at]!r}.")
    guessed = (path_column or "path", label_column or "label") != (header[path_at], header[label_at])
    note = f"column {header[path_at]!r} is read as the path and {header[label_at]!r} as the label"
    return path_at, label_at, [f"{note}; path_column and label_column can say otherwise"] if guessed else []


def _splits(table: Table, taken: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Return the part of each row, and notes; "all" where no column says it."""
    notes: list[str] = []
    for at in (i for i in _named(table.header, SPLITS) if i not in taken):
        values = [role(cells[at]) or "" for _, cells in table.rows]
        if all(values):
            return values, notes
        line, cells = table.rows[values.index("")]
        if any(values) or _plain(table.header[at]) == "split":
            raise DataError(
                f"{table.file}, line {line}: {table.header[at]} is {cells[at]!r}; expected train, val or test."
            )
        notes.append(f"column {table.header[at]!r} names no parts ({cells[at]!r}) and is passed over")
    flags = {i: FLAGS[_plain(name)] for i, name in enumerate(table.header) if _plain(name) in FLAGS and i not in taken}
    parts = ["test" if list(flags.values()) == ["train"] else "train" if flags else "all"] * len(table.rows)
    for at, part in flags.items():
        for row, (line, cells) in enumerate(table.rows):
            value = cells[at].lower().removesuffix(".0")
            if value not in (*TRUE, *FALSE):
                raise DataError(
                    f"{table.file}, line {line}: {table.header[at]} is {cells[at]!r}; expected true or false."
                )
            if value in TRUE:
                parts[row] = part
    return parts, notes


def listed_in(folder: Path) -> list[Path]:
    """The lists of photos in a folder: files with a header whose columns can be told and whose photos are there."""
    lists = []
    for file in sorted(folder.iterdir()):
        if not file.name.lower().endswith(SUFFIXES) or not file.is_file():
            continue
        finder = PhotoFinder(folder)
        try:
            table = read_table(file, finder.is_photo)
            flags = _flags(table, finder, None, None, None)
            path_at, _, _ = _columns(table, finder, None, table.header[flags[0]] if flags else None)
            if any(finder.exists(cells[path_at]) for _, cells in table.rows[:SAMPLED]):
                lists.append(file)
        except DataError:
            continue  # such as a description, or a sample of what a contest wants back
    return lists


def from_listed(
    folder: Path,
    root: Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    on_bad_image: str = "error",
) -> Source:
    """A folder with a list of its photos, such as ``labels.csv`` beside ``train/``; see `from_csv`."""
    lists = listed_in(folder)
    if len(lists) != 1:
        names = ", ".join(file.name for file in lists)
        raise DataError(f"{folder} holds several lists of photos: {names}", fix="pass one of these files as data")
    source = from_csv(lists[0], None, path_column, label_column, label_separator, on_bad_image)
    beside = [name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and name != lists[0].name]
    notes = [f"not used: {listed(beside)}"] if beside else []
    return replace(source, name=folder.resolve().name, notes=[f"the list is {lists[0].name}", *notes, *source.notes])


def _is_listed(candidate: object) -> bool:
    """Whether it is a folder that has no folders of classes, and a list of photos."""
    if not isinstance(candidate, Path) or not candidate.is_dir():
        return False
    names = os.listdir(candidate)
    if not any(name.lower().endswith(SUFFIXES) for name in names):
        return False
    folders = [candidate / name for name in names if not name.startswith(".") and (candidate / name).is_dir()]
    parts = [folder for folder in folders if part_of(folder.name)]
    if any(entry.is_dir() for part in parts for entry in os.scandir(part)) or (not parts and len(folders) > 1):
        return False
    return bool(listed_in(candidate))


OPTIONS = ("path_column", "label_column", "label_separator", "on_bad_image")
CSV = Kind(name="csv", help="a .csv of paths and labels", read=from_csv, suffix=SUFFIXES, options=OPTIONS)
LISTED = Kind(name="listed", help="", read=from_listed, recognises=_is_listed, options=OPTIONS)
