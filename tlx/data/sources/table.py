"""Tables of text, as spreadsheets, programs and people write them."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tlx.errors import DataError
from tlx.files import read_regular

DELIMITERS = ",;\t|"
LIMIT = 2**30  # bytes; the paths of ImageNet-21k's 14 million photos take 700 MB
SNIFFED = 20  # lines that tell the delimiter
# By which a file says its encoding. UTF-32 comes first: its mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of a file, stripped of blanks."""

    file: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]  # number of the line, and as many cells as the header has
    notes: list[str]

    def where(self) -> str:
        """Name the file and its columns."""
        return f"{self.file}, with the columns {', '.join(repr(name) for name in self.header)}"


def read_table(file: Path, is_photo: Callable[[str], bool]) -> Table:
    """Read a table with a header; without one where a cell of the first line is a photo.

    Raises:
        DataError: the file is no table; the text names the line.
    """
    notes: list[str] = []
    text = _text(file, notes)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(f"{file} cannot be read as CSV: {error}.") from error
    header = lines[0][1] if lines else []
    if len(header) < 2:
        raise DataError(f"{file}: the first line is {text.partition(chr(10))[0][:80].strip()!r}; expected path,label.")
    if any(is_photo(cell) for cell in header):
        header = [f"column {i}" for i in range(1, len(header) + 1)]
        notes.append("the file has no header: its first line names a photo")
    else:
        lines = lines[1:]
    if twice := next((name for i, name in enumerate(header) if name and name in header[:i]), None):
        raise DataError(f"{file}: two columns are called {twice!r}; expected path,label or path,label,split.")
    for line, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{file}, line {line}: {len(cells)} cells; expected {len(header)}: {','.join(header)}.")
    if not lines:
        raise DataError(f"{file} lists no photo.")
    return Table(file, header, lines, notes)


def _text(file: Path, notes: list[str]) -> str:
    """Decode a file by its mark, or as UTF-8, or as what Windows writes in Western Europe, which a note says."""
    try:
        content = read_regular(file, LIMIT)
    except OSError as error:
        raise DataError(f"{file} cannot be read as CSV: {error.strerror}.") from error
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "")
    if not encoding and b"\0" in content[:200]:
        # ASCII has its zero bytes at odd places in UTF-16-LE, at even ones in UTF-16-BE.
        odd, even = content[1:200:2].count(0), content[0:200:2].count(0)
        encoding = "utf-16-le" if odd > even else "utf-16-be"
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding:
            raise DataError(
                f"{file} cannot be read as CSV in {encoding.upper()}: {error.reason}", fix="save it as UTF-8"
            ) from error
    notes.append("the list is not UTF-8 and is read as Latin-1; if names look wrong, save it as UTF-8")
    return content.decode("cp1252", errors="replace") if _is_cp1252(content) else content.decode("latin-1")


def _is_cp1252(content: bytes) -> bool:
    """Whether no byte is one of the five that Windows-1252 leaves undefined."""
    return not any(byte in content for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D))


def _delimiter(text: str) -> str:
    """Tell the delimiter: the one that cuts the most of the first lines into as many cells, several, as the header."""

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            rows = csv.reader(islice(io.StringIO(text, newline=""), SNIFFED), delimiter=delimiter)
            widths = [len(cells) for cells in rows if cells]
        except csv.Error:
            return 0, 0
        if not widths or widths[0] < 2:
            return 0, 0
        return sum(width == widths[0] for width in widths), widths[0]

    return max(DELIMITERS, key=fit)
