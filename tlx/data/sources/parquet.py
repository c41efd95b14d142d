"""Parquet files with a column of photos, as on the Hugging Face Hub; read without holding the photos in memory."""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlx.data.images import FileImages, Images
from tlx.data.sources.kept import RECORD, Record, facts_of, filled, home_of
from tlx.data.sources.packed import PackedImages
from tlx.data.sources.parts import files_in, files_of_parts, with_test
from tlx.data.sources.source import Kind, Source
from tlx.errors import DataError, DataNotFound, closest
from tlx.files import check_regular

IMAGES = ("image", "img", "images", "photo", "picture", "jpg", "jpeg", "png", "webp", "path", "file_name", "filename")
LABELS = ("label", "labels", "class", "fine_label", "category", "target", "cls", "y")
# Photos never shrink to a hundredth; from SUSPECT bytes on, that is taken for a bomb. One value of a file may stand in
# a whole batch of rows.
RATIO, SUSPECT = 100, 2**26
BATCH = 16  # rows in memory at once while the photos are copied; with 100 KB each, 2 MB
LONGEST = 10_000  # letters of a label; a file may hold one text once, and name it in a million rows


@dataclass(frozen=True, slots=True)
class _Columns:
    image: str
    label: str
    names: tuple[str, ...] | None  # of the classes, where the file gives them


@dataclass(frozen=True, slots=True)
class _Rows:
    """One file: its labels, and its photos as a file of them all with their sizes, or as paths."""

    labels: Sequence[int | str | None]
    photos: Path
    sizes: Sequence[int]
    paths: Sequence[str]


def from_parquet(
    source: Path,
    root: Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    on_bad_image: str = "error",
) -> Source:
    """A data set of Parquet files: one, or a folder of them whose names begin with train, validation or test.

    The photos' column holds ``{bytes, path}``, as the Hugging Face Hub has it, or bytes, or paths relative to `root` or
    to the file's folder. Labels are numbers, with names where the file gives them, or text. Parquet packs the photos
    of many rows together, so they are copied once into a file in the cache, from which each is read when needed.

    Raises:
        DataError: a file is damaged, or its columns cannot be told; the text names it.
        DataNotFound: a path leads to no file.
    """
    files = files_in(source, ".parquet") if source.is_dir() else [source]
    columns = _columns(files[0], path_column, label_column)
    notes: list[str] = []
    parts = {}
    for part, chosen in files_of_parts(files).items():
        rows = {file: _rows(file, columns) for file in chosen}
        if part in ("val", "test") and all(label is None for one in rows.values() for label in one.labels):
            notes.append(f"left out the part {part}: its rows have no labels")  # as contests publish it
        else:
            parts[part] = rows
    classes, number = _classes(
        {label for rows in parts.values() for one in rows.values() for label in one.labels}, columns
    )
    if not classes:
        raise DataError(f"{files[0]}: no row has a label in the column {columns.label!r}.")
    images: dict[str, Images] = {}
    for part, rows in parts.items():
        images[part] = _images(rows, number, root, on_bad_image == "error", columns.image)
        if unlabelled := sum(len(one.labels) for one in rows.values()) - len(images[part]):
            notes.append(f"left out {unlabelled:,} rows of {part} without a label")
    name = source.resolve().name if source.is_dir() else source.stem
    return Source(name, classes, with_test(images), notes, stand_in={*images} == {"train", "val"})


def _images(
    rows: dict[Path, _Rows], number: dict[int | str, int], root: Path | None, strict: bool, column: str
) -> Images:
    """Return the photos of a part that have labels, in the order of the files and of their rows."""
    labels, names, places, paths = [], [], [], []
    for i, (file, one) in enumerate(rows.items()):
        ends = np.cumsum(one.sizes, dtype=np.int64)
        for row, label in enumerate(one.labels):
            if label is None:
                continue
            labels.append(number[label])
            if strict and not one.sizes[row] and not (one.paths and one.paths[row]):
                problem = f"{file}, row {row}: column {column!r} holds no photo and no path"
                raise DataError(problem, fix="leave such rows out with on_bad_image='skip'")
            if one.paths:
                path = (file.parent if root is None else root) / (one.paths[row] or f"{file.stem}/{row}")
                if strict and not path.is_file():
                    raise DataNotFound(f"{file}, row {row}: no such file: {path}", fix="pass its folder as data_root")
                paths.append(str(path))
            else:
                names.append(f"{file.stem}/{row}")
                places.append((i, ends[row] - one.sizes[row], one.sizes[row]))
    numbers = np.array(labels, dtype=np.int64)
    folder = next(iter(rows)).parent
    if not paths:
        files = tuple(one.photos for one in rows.values())
        return PackedImages(folder, numbers, names, files=files, places=np.array(places, np.int64).reshape(-1, 3))
    if places:
        raise DataError(f"{folder}: some files hold photos and others their paths", fix="make them alike")
    place = folder if root is None else root
    return FileImages(place, numbers, [os.path.relpath(path, place) for path in paths])


def _classes(labels: Collection[int | str | None], columns: _Columns) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Return the class names, and the number of each label. Numbers keep their order, names that of code points."""
    texts = sorted({label for label in labels if isinstance(label, str)})
    numbers = sorted({label for label in labels if isinstance(label, int)})
    if columns.names is not None and not texts:
        if numbers and numbers[-1] >= len(columns.names):
            raise DataError(f"column {columns.label!r} has a label {numbers[-1]}, of {len(columns.names)} class names.")
        return columns.names, {label: label for label in numbers}
    values: list[int | str] = [*numbers, *texts]
    return tuple(str(value) for value in values), {value: i for i, value in enumerate(values)}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a Parquet file; what goes wrong with it is one line."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{file} is a Parquet file, and pyarrow, which reads them, is not installed",
            fix='pip install "tlx[parquet]"',
        ) from error
    try:
        check_regular(file)
        with parquet.ParquetFile(file, memory_map=True) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # of the system, such as a full disk; damage has no number
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{file} cannot be read as Parquet: {reason}", fix="download or write it again") from error


def _columns(file: Path, path_column: str | None, label_column: str | None) -> _Columns:
    """Tell which columns hold the photos and the labels: by the Hub's description, by name, or by type."""
    with _opened(file) as opened:
        schema = opened.schema_arrow
    from pyarrow import types

    features = _features(schema.metadata or {})

    twice = next((name for name, times in Counter(schema.names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{file}: two columns are called {twice!r}", fix="give one of them another name")

    def is_image(name: str) -> bool:
        kind = schema.field(name).type
        struct = types.is_struct(kind) and {"bytes", "path"} & {kind.field(i).name for i in range(kind.num_fields)}
        return bool(struct) or types.is_binary(kind) or types.is_large_binary(kind)

    def is_label(name: str) -> bool:
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return any(test(kind) for test in (types.is_integer, types.is_string, types.is_large_string, types.is_floating))

    def choose(field: str, given: str | None, *likely: list[str]) -> str:
        if given is not None:
            if given not in schema.names:
                raise DataError(
                    f"{file}: {field} is {given!r}, but there is no such column.{closest(given, schema.names)}"
                )
            return given
        found = next((names[0] for names in likely if names), None)
        if found is None:
            listed = ", ".join(f"{one.name} ({one.type})" for one in schema)
            raise DataError(f"{file}: which column is it? It has {listed}", fix=f"name it with {field}")
        return found

    image = choose(
        "path_column",
        path_column,
        [name for name, feature in features.items() if feature.get("_type") == "Image" and name in schema.names],
        [name for name in IMAGES if name in schema.names and is_image(name)],
        [name for name in schema.names if is_image(name)][:1],
        [name for name in IMAGES if name in schema.names],
    )
    others = [name for name in schema.names if name != image and is_label(name)]
    label = choose(
        "label_column",
        label_column,
        [name for name, feature in features.items() if feature.get("_type") == "ClassLabel" and name in schema.names],
        [name for name in LABELS if name in others],
        others if len(others) == 1 else [],
    )
    names = features.get(label, {}).get("names")
    return _Columns(image, label, tuple(str(name) for name in names) if isinstance(names, list) else None)


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Return what the Hugging Face library wrote about the columns; nothing where it wrote nothing."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _rows(file: Path, columns: _Columns) -> _Rows:
    """Return the rows of a file, its photos copied into the cache unless they are there."""
    version = [*facts_of(file), columns.image, columns.label]
    home = home_of(file.stem, str(file.resolve()))

    def fill() -> Record:
        for old in (*home.glob("photos-*"), *home.glob(".photos-*.tmp")):
            old.unlink()
        (home / RECORD).unlink(missing_ok=True)
        # Another name each time, so that a run which goes on never reads the photos of a changed file.
        content = f"photos-{secrets.token_hex(4)}"
        work = home / f".{content}.tmp"
        try:
            labels, sizes, paths = _copy(file, columns, work)
            os.replace(work, home / content)
        finally:
            work.unlink(missing_ok=True)
        return {"version": version, "content": content, "labels": labels, "sizes": sizes, "paths": paths}

    record = filled(home, lambda record: record.get("version") == version, fill)
    sizes = record["sizes"] or [0] * len(record["labels"])  # an earlier tlx kept none of rows that hold paths
    return _Rows(record["labels"], home / record["content"], sizes, record["paths"])


def _copy(file: Path, columns: _Columns, target: Path) -> tuple[list[int | str | None], list[int], list[str]]:
    """Write the photos one after another; return the labels, and the photos' sizes or paths."""
    labels: list[int | str | None] = []
    sizes: list[int] = []
    paths: list[str] = []
    limit = max(SUSPECT, RATIO * file.stat().st_size)
    known: dict[Any, Any] = {}  # one long text may be the label of a million rows
    with _opened(file) as opened, target.open("wb") as photos:
        missing = [name for name in (columns.image, columns.label) if name not in opened.schema_arrow.names]
        if missing:
            raise DataError(f"{file} has no column {missing[0]!r}, which the files beside it have.")
        groups = (opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > limit:
            raise DataError(f"{file} unpacks to more than {limit} bytes, suspiciously many.")
        for batch in opened.iter_batches(BATCH, columns=[columns.image, columns.label]):
            for value in batch.column(columns.label):
                label = _label(value.as_py(), file, columns.label)
                labels.append(known.setdefault(label, label))
            for value in batch.column(columns.image):
                photo = value.as_py()
                content, path = (photo.get("bytes"), photo.get("path")) if isinstance(photo, dict) else (photo, photo)
                content = content if isinstance(content, bytes) else b""
                photos.write(content)
                sizes.append(len(content))  # 0 of a row without a photo
                if photos.tell() > limit:
                    raise DataError(f"{file} unpacks to more than {limit} bytes, suspiciously many.")
                paths.append(path if not content and isinstance(path, str) and "\0" not in path else "")
    if any(sizes) and any(paths):
        raise DataError(f"{file}: column {columns.image!r} holds photos in some rows and paths in others.")
    return labels, sizes, paths if any(paths) else []


def _label(value: Any, file: Path, column: str) -> int | str | None:
    """Return a label as a number or a text; None where the row has none, which Hugging Face writes as -1."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer():  # numbers with gaps, as pandas holds them
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DataError(f"{file}: column {column!r} holds {value!r}; expected a number or a name.")
    if isinstance(value, int):
        return value if value >= 0 else None
    if len(value) > LONGEST:
        raise DataError(
            f"{file}: column {column!r} holds a text of {len(value)} letters; expected the name of a class."
        )
    return value.strip()


def _is_parquet(candidate: object) -> bool:
    if not isinstance(candidate, Path):
        return False
    if candidate.suffix.lower() == ".parquet":
        return candidate.is_file()
    return candidate.is_dir() and bool(files_in(candidate, ".parquet"))


PARQUET = Kind(
    name="parquet",
    help="a .parquet of photos and labels or a folder of them",
    read=from_parquet,
    recognises=_is_parquet,
    options=("path_column", "label_column", "on_bad_image"),
)
