"""Files that are written whole or not at all, and read only where they are files."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tlx.errors import TlxError
from tlx.files import check_regular


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. NaN and infinities are refused: they are no JSON."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return a value as indented JSON. NaN and infinities are refused: they are no JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # bytes of a path that are no UTF-8, as JSON has them


def write_atomic(path: str | Path, data: bytes) -> None:
    """Replace a file's content in one step: a reader, or a kill at any moment, sees the old content or the new.

    Raises:
        TlxError: the folder cannot be written or the disk is full; the old content is still there.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes the place of `path` once the block ends without an error."""
    path = Path(path)
    try:
        if path.exists():
            check_regular(path)  # a file in the place of /dev/null would be missed by all other programs
    except OSError as error:
        raise TlxError(f"Cannot write {path}: {error.strerror}.") from error
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")  # a name has 255 bytes at most
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except TlxError:  # of the block; some are OSErrors too
        raise
    except OSError as error:
        raise TlxError(f"Cannot write {path}: {error.strerror or error}. Its previous content is untouched.") from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, so that a power cut does not undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot
    finally:
        os.close(descriptor)
