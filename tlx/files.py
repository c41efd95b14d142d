"""Files of strangers, opened only where they are files: a pipe would wait for ever, and a device has no end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

CHUNK = 2**20


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading, if it is one.

    Raises:
        OSError: there is none, or it is a folder, a pipe, a socket or a device. `strerror` says so, and `filename`.
    """
    check_regular(path)
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    try:
        _check(path, os.fstat(file.fileno()))  # it may have been put in the place of a file
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: str | Path, limit: int | None = None) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: as `open_regular`; or it has more than `limit` bytes, where there is a limit, even if the system says
            that it has none, as of files below /proc, which may be endless.
    """
    content = bytearray()
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        while size <= limit and (chunk := file.read(CHUNK)):
            content += chunk
            size = max(size, len(content))
    if size > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return bytes(content)


def check_regular(path: str | Path) -> None:
    """Raise the OSError of `open_regular` where a path does not lead to a file that can be read without waiting."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a null byte, or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    _check(path, status)


def _check(path: str | Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such pipes
