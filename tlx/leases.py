"""The right to work on something, which one of several processes has, on any machines that share the file system."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


class Lease:
    """The right to work on something, which the system takes back from a process that has ended.

    Processes that inherit `file` share it, so what a killed process worked on is not given to another one while a
    process that it had started still works on it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    @staticmethod
    def take(path: Path) -> Lease | None:
        """Return the lease that a file stands for; None where another process has it.

        Raises:
            OSError: the file cannot be written, or its file system has no locks.
        """
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            file.close()
            raise
        return Lease(file)

    def release(self) -> None:
        """Give it back."""
        self.file.close()
