"""The command line as a process of its own (`tlx`, `python -m tlx`), which a signal ends without a traceback."""

from __future__ import annotations

import os
import signal
from typing import Any


def main() -> None:
    """Run the command line and exit."""
    begun = False

    def leave(number: int, frame: Any) -> None:
        # An exception would surface in the midst of an import, or as Python ends: nothing is open that needs it.
        try:
            if not begun:
                os.write(2, b"tlx: interrupted before anything was begun\n")
        finally:
            os._exit(128 + number)

    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in ending:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)

    import sys

    from tlx.streams import open_closed

    open_closed()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    import numpy  # noqa: F401  (its threads leave signals to this one: see `tlx.signals.deferred`)

    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    from tlx import cli

    report = sys.unraisablehook

    def unraisable(caught: Any) -> None:
        if not isinstance(caught.exc_value, KeyboardInterrupt):  # which `tlx.runs.interrupt` remembers
            report(caught)

    sys.unraisablehook = unraisable
    begun = True
    try:
        cli.main()
    except SystemExit as end:
        # Without waiting for what other threads still decode, or for a framework to take leave of a lost process.
        if end.code in [128 + number for number in ending] or (end.code == 2 and _one_of_several()):
            os._exit(end.code)
        raise


def _one_of_several() -> bool:
    return "WORLD_SIZE" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ


if __name__ == "__main__":
    main()
