"""Work in a process of its own that kills itself while it changes a folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# All that changes a folder comes with one of these events, before it is done; "open" counts where it is to write.
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")


Moment = int | Callable[[str, tuple[Any, ...]], bool]  # a number of events before, or what the event is


def in_a_process(work: Callable[[], object], folder: Path, killed_at: Moment) -> int:
    """Do the work in a process of its own, which kills itself at an event in the folder; return how that ended."""
    if (child := os.fork()) == 0:
        events = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal events
            if event not in EVENTS or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            if not isinstance(arguments[0], int) and str(folder) in os.fsdecode(arguments[0]):
                if events == killed_at if isinstance(killed_at, int) else killed_at(event, arguments):
                    os.kill(os.getpid(), signal.SIGKILL)
                events += 1

        sys.addaudithook(count)
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
