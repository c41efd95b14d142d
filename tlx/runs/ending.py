"""How a command ends: with an exit code and, where something went wrong, one line on stderr; never with a traceback."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from cyclopts import CycloptsError

from tlx.errors import Interrupted, TlxError, printable
from tlx.runs.interrupt import NEVER, interruptible
from tlx.streams import flushed, tell

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def exit_code(command: Callable[[], object], again: str) -> int:
    """Run a command, which `again` repeats: 0 done, 1 a check failed, 2 a mistake in the input, 128 + n: signal n."""
    with interruptible() as stop:
        stop.command, stop.text = again, f"interrupted. Start again with: {again}"
        try:
            code = _without_signals(command)
        except KeyboardInterrupt as error:
            stop.at(stop.text, NEVER)
            if not (isinstance(error, Interrupted) and error.told):
                tell(f"tlx: {printable(str(error)) or 'interrupted'}")
            code = 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)
        for stream in (sys.stdout, sys.stderr):
            flushed(stream)
    return code


def _without_signals(command: Callable[[], object]) -> int:
    try:
        code = command()
        print(end="", flush=True)
        return code if isinstance(code, int) else 0
    except TlxError as error:
        if not error.told:
            tell(f"tlx: {printable(str(error))}")
    except CycloptsError as error:
        tell(f"tlx: {printable(' '.join(str(error).split()))} See `tlx --help`.")
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        return 0
    except OSError as error:
        if error.filename is not None and error.errno not in FULL:  # then it was not a stream
            raise
        tell(f"tlx: Cannot write to {printable(str(error.filename or 'stdout'))}: {error.strerror}")
    return 2


def print_outcome(text: str, run_dir: Path) -> None:
    """Print a run's outcome to stdout. Where that fails, the run has still succeeded, and stderr says where it is."""
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:
        flushed(sys.stdout)
        tell(f"note: stdout cannot be written to ({error}); the result is in {printable(str(run_dir))}")
