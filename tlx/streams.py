"""Standard streams that fail: a reader that has gone, a terminal that was closed, a disk that is full."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, Any, cast


class Stderr:
    """`sys.stderr`, whatever that is when something is written; once it fails, what is shown goes nowhere."""

    def __init__(self) -> None:
        self._lost: object = None  # the stream that failed

    def write(self, text: str) -> int:
        """Write, or do not."""
        stream = self._stream()
        if stream is not None and stream is not self._lost:
            try:
                return stream.write(text)
            except (OSError, ValueError):  # the latter of a stream that was closed
                self._lost = stream
        return len(text)

    def flush(self) -> None:
        """Flush, where that is possible."""
        stream = self._stream()
        if stream is not None and stream is not self._lost:
            try:
                stream.flush()
            except (OSError, ValueError):
                self._lost = stream

    def isatty(self) -> bool:
        """Whether a person watches."""
        try:
            stream = self._stream()
            return stream is not None and stream.isatty()
        except ValueError:
            return False

    def _stream(self) -> IO[str] | None:
        stream: Any = sys.stderr
        return cast("IO[str] | None", getattr(stream, "rich_proxied_file", stream))  # below what rich puts before it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


def stderr() -> IO[str]:
    """Return stderr as a file to which progress can be written: whoever writes to it never fails."""
    return cast("IO[str]", Stderr())


def tell(line: str) -> None:
    """Write a line to stderr, where that is possible."""
    stream = stderr()
    stream.write(f"{line}\n")
    stream.flush()


def flushed(stream: IO[str] | None) -> OSError | ValueError | None:
    """Flush a stream of this process; if that fails, return why, and let everything else written to it go nowhere."""
    if stream is None:
        return None
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()  # else Python does, as it ends, and fails
        return error
    return None


def open_closed() -> None:
    """Open what a shell has closed (`2>&-`) to nowhere: the next file would get its number, and what C code prints."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
