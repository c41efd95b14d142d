"""Files of embeddings: Parquet with a row for each image, and what made them as metadata."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlx.errors import DataError, DataNotFound, TlxError, shown
from tlx.files import check_regular
from tlx.runs.facts import Facts, parse_object

FORMAT = 1
KEY = b"tlx"
SUFFIX = ".parquet"
ROWS = 4096  # that are in memory at once
RATIO, SUSPECT = 100, 2**26  # vectors never shrink to a hundredth; from SUSPECT bytes on, that is taken for a bomb
WIDEST = 2**24  # numbers in a vector
_FIX = "write it again with tlx embed"
_ESCAPED = re.compile(r"\\udc([89a-f][0-9a-f])")

Dtype = Literal["float32", "float16"]
Vectors = NDArray[np.float32]
Files = str | Path | Sequence[str | Path]


class Embeddings(NamedTuple):
    """What `tlx.load_embeddings` returns: three arrays of N images, in the order of the data."""

    paths: NDArray[np.object_]  # text [N]: the path of each, or what the data call it
    labels: NDArray[np.object_]  # text [N]; None where an image has none
    vectors: Vectors  # float32 [N, width]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some rows of a file."""

    indices: NDArray[np.int64]
    paths: list[str]
    labels: list[str | None]
    parts: list[str]
    vectors: Vectors

    def at(self, places: NDArray[np.int64]) -> Block:
        """Return the rows at some places."""
        rows = places.tolist()
        labels = [self.labels[i] for i in rows]
        paths, parts = [self.paths[i] for i in rows], [self.parts[i] for i in rows]
        return Block(self.indices[places], paths, labels, parts, self.vectors[places])


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    path: Path
    facts: dict[str, Any]  # see `tlx.runs.embeddings.embed`
    rows: int
    width: int

    def identity(self) -> dict[str, Any]:
        """Return what two vectors must have in common to be compared."""
        return {name: self.facts.get(name) for name in ("model", "sha256", "preprocessing")}


def check_out(out: Any, suffixes: tuple[str, ...]) -> Path:
    """Return where to write, links followed; TlxError where the name ends in none of the suffixes, or has no place."""
    text = os.fspath(out) if isinstance(out, (str, os.PathLike)) else ""
    name = os.path.basename(text).lower()
    if not name.endswith(suffixes) or name in suffixes or "\0" in text:
        raise TlxError(f"the output is {shown(text or out)}; expected a name that ends in {' or '.join(suffixes)}")
    target = Path(os.path.realpath(text))
    if target.is_dir():
        raise TlxError(f"{target} is a folder; choose another name for the file")
    if not target.parent.is_dir():
        raise TlxError(f"{target.parent} is no folder", fix="make it, or choose another one")
    return target


def import_pyarrow() -> Any:
    """Return pyarrow with its Parquet; TlxError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        problem = "embeddings are Parquet files, and pyarrow, which reads and writes them, is not installed"
        raise TlxError(problem, fix='pip install "tlx[parquet]"') from error
    return pyarrow


def schema_of(width: int, dtype: Dtype, facts: dict[str, Any]) -> Any:
    """Return the columns, with the facts as their metadata."""
    pa = import_pyarrow()
    number = pa.float16() if dtype == "float16" else pa.float32()
    columns = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("part", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.field("element", number, nullable=False), width), nullable=False),
    ]
    return pa.schema(columns, {KEY: json.dumps(facts, allow_nan=False, sort_keys=True).encode()})


def as_text(name: str) -> str:
    """Return a name as UTF-8 can hold it: bytes of a path that are none are escaped, and `as_path` finds them again."""
    return name.encode("utf-8", "backslashreplace").decode()


def as_path(text: str) -> str:
    """Return the path that `as_text` wrote."""
    if os.path.lexists(text) or not _ESCAPED.search(text):
        return text
    return _ESCAPED.sub(lambda match: chr(0xDC00 + int(match[1], 16)), text)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file; what goes wrong with it is one line."""
    pa = import_pyarrow()
    try:
        check_regular(path)
        with pa.parquet.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise DataNotFound(f"{path} does not exist", fix="write it with tlx embed") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, TlxError):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{path} cannot be read as Parquet: {reason}", fix=_FIX) from error


def read_header(path: str | Path) -> Header:
    """Return what a file says of itself.

    Raises:
        DataNotFound: there is none.
        DataError: it holds no embeddings of tlx, or is damaged.
    """
    path = Path(path)
    with opened(path) as file:
        return _header(file, path)


def _header(file: Any, path: Path) -> Header:
    from pyarrow import types

    schema = file.schema_arrow
    metadata = schema.metadata or {}
    kinds = {name: schema.field(name).type for name in schema.names}
    vector: Any = kinds.get("vector")
    texts = all(types.is_string(kinds[name]) for name in ("path", "label", "part") if name in kinds)
    fits = {"index", "path", "label", "part"} <= kinds.keys() and types.is_int64(kinds["index"]) and texts
    if KEY not in metadata or not fits or len(kinds) != len(schema.names):
        raise DataError(f"{path} holds no embeddings of tlx: they have the columns index, path, label, part and vector")
    numbers = types.is_fixed_size_list(vector) and vector.value_type
    if not numbers or not (types.is_float32(numbers) or types.is_float16(numbers)):
        raise DataError(f"{path}: the column vector is {vector}; expected lists of one length of float32 or float16")
    if not 1 <= vector.list_size <= WIDEST:
        raise DataError(f"{path}: its vectors have {vector.list_size} numbers; expected 1 to {WIDEST}")
    facts = Facts(str(path), parse_object(metadata[KEY], str(path), _FIX), _FIX)
    if facts.whole("format", 1) > FORMAT:
        raise DataError(f"{path} was written by a newer tlx; upgrade tlx to read it")
    for name in ("model", "sha256"):
        facts.text(name)
    facts.inner("preprocessing")
    rows = int(file.metadata.num_rows)
    size = rows * vector.list_size * numbers.bit_width // 8
    if size > max(SUSPECT, RATIO * os.path.getsize(path)):
        raise DataError(f"{path} unpacks to {size} bytes, suspiciously many", fix=_FIX)
    return Header(path, dict(facts.values), rows, vector.list_size)


def read_headers(files: Files) -> list[Header]:
    """Return the headers of one file or of several that belong together: shards, or vectors of the same model.

    Raises:
        DataError: there is none, or they are of different models.
    """
    from tlx.runs.embeddings.embedder import differs

    paths = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    if not paths or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise DataError(f"embeddings are {shown(files)}; expected a file that tlx embed wrote, or a list of them")
    headers = [read_header(path) for path in paths]
    first = headers[0]
    for header in headers[1:]:
        if what := differs(first.identity(), header.identity()):
            raise DataError(f"{header.path} and {first.path} do not belong together: the former is of {what}")
        if header.width != first.width:
            problem = f"{header.width} numbers in a vector, and {first.path} {first.width}"
            raise DataError(f"{header.path} has {problem}", fix=_FIX)
    return headers


def blocks(header: Header) -> Iterator[Block]:
    """Yield the rows of a file, some thousand at a time.

    Raises:
        DataError: it is damaged, or a vector holds NaN or an infinity; the text names the image.
    """
    with opened(header.path) as file:
        for batch in file.iter_batches(ROWS, columns=["index", "path", "label", "part", "vector"]):
            yield _block(batch, header)


def _block(batch: Any, header: Header) -> Block:
    vectors, count = batch.column("vector"), len(batch)
    nulls = [name for name in ("index", "path", "part", "vector") if batch.column(name).null_count]
    flat = vectors.flatten()
    if nulls or flat.null_count or len(flat) != count * header.width:
        raise DataError(f"{header.path} is damaged: {(nulls or ['vector'])[0]} is missing in some rows", fix=_FIX)
    array = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(count, header.width)
    paths = batch.column("path").to_pylist()
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        name = paths[int(finite.argmin())]
        raise DataError(f"{header.path}: the vector of {name} holds NaN or an infinity", fix=_FIX)
    return Block(
        batch.column("index").to_numpy(),
        paths,
        batch.column("label").to_pylist(),
        batch.column("part").to_pylist(),
        array,
    )


def load_embeddings(files: Files, part: str | None = None) -> Embeddings:
    """Return the embeddings that `tlx embed` wrote, of one file or of several shards, as arrays.

    Args:
        files: a file, or a list of files of one model.
        part: only this part of the data, such as "train" or "test"; default: all.

    Returns:
        `paths`, `labels` and `vectors`, in the order of the data: N images each.

    Raises:
        DataNotFound: there is no such file.
        DataError: a file is damaged or holds something else, the files are of different models or hold an image twice,
            there is no such part, or a vector is not finite.
    """
    _, block = read_all(files, part)
    return Embeddings(np.array(block.paths, object), np.array(block.labels, object), block.vectors)


def read_all(files: Files, part: str | None = None) -> tuple[list[Header], Block]:
    """Return the headers of files, and all their rows in the order of the data."""
    headers = read_headers(files)
    found: list[Block] = []
    known: set[str] = set()
    for header in headers:
        for block in blocks(header):
            known.update(block.parts)
            mine = np.flatnonzero(np.array([name == part for name in block.parts], np.bool_))
            found.append(block if part is None else block.at(mine))
    whole = joined(found, headers[0].width)
    if part is not None and not len(whole.indices):
        raise DataError(f"{headers[0].path} has no part {shown(part)}; it has {', '.join(sorted(known)) or 'no rows'}")
    return headers, whole


def joined(found: Sequence[Block], width: int) -> Block:
    """Return blocks as one, in the order of the data; DataError where an image is in them twice."""
    whole = Block(
        np.concatenate([np.empty(0, np.int64), *(block.indices for block in found)]),
        [path for block in found for path in block.paths],
        [label for block in found for label in block.labels],
        [part for block in found for part in block.parts],
        np.concatenate([np.empty((0, width), np.float32), *(block.vectors for block in found)]),
    )
    order = in_order(whole.indices)
    return whole if np.array_equal(order, np.arange(len(order))) else whole.at(order)


def in_order(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of rows in the order of the data; DataError where an image is in them twice."""
    order = np.argsort(indices, kind="stable")
    if (twice := np.flatnonzero(np.diff(indices[order]) == 0)).size:
        raise DataError(f"image {indices[order[twice[0]]]} is in the files twice", fix="pass each shard once")
    return order
