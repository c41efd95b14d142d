"""The command line, called in this process with hostile input: it ends in time, in one line, and executes nothing."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import io
import os
import signal
import stat
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings

from tlx import cli
from tlx.errors import UNPRINTABLE, TlxError

INPUTS = int(os.environ.get("TLX_FUZZ", "8"))  # of each target; `make fuzz` asks for more
SECONDS = 20  # more is a hang; most calls take milliseconds
EXECUTES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")

outcomes: Counter[tuple[str, int]] = Counter()  # (target, exit code) -> calls, for the table of `make fuzz`
hostile_inputs = settings(
    max_examples=INPUTS,
    derandomize="TLX_FUZZ" not in os.environ,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
_executed: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in EXECUTES:
        _executed.append(f"{event} {arguments!r}")


sys.addaudithook(_audit)  # a hook stays for the life of the process


class Hang(BaseException):
    """A call took longer than SECONDS."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raise Hang where the block takes too long, and note what it executes."""
    global _watching

    def too_long(signum: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # for a hang that no signal ends
    _executed.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mistake_or_none(target: str, action: Callable[[], object]) -> None:
    """Call what uses tlx in Python, and assert that it ends in time, well or with a TlxError of one printable line."""
    with bounded():
        try:
            action()
            code = 0
        except TlxError as error:
            code, line = 2, str(error)
            assert line and not UNPRINTABLE.search(line), ascii(line)
    outcomes[target, code] += 1
    assert not _executed, f"executed: {_executed}"


def call(*argv: str, folder: Path) -> Outcome:
    """Call `tlx` with these arguments in `folder`; an exception that leaves it is shown in `err`, with exit code 1."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code: Any = 1
    here = os.getcwd()
    try:
        os.chdir(folder)
        with (
            bounded(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("sys.argv", ["tlx", *argv]),
        ):
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code
            except Exception:
                traceback.print_exc()
    finally:
        os.chdir(here)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="backslashreplace"))
    return Outcome(int(code or 0), *texts)


def check(target: str, *argv: str, folder: Path, writes: tuple[str, ...] = ("runs",), verdict: bool = False) -> Outcome:
    """Call `tlx`, and assert all that is promised of any input.

    It ends in time, with exit code 0, or with 2 and one line on stderr, which no name can forge or colour; it executes
    nothing; and with exit code 2 nothing in `folder` has changed, unless a run was saved that can go on once its data
    are mended. Otherwise only what lies below `writes` may have. With `verdict`, as of `tlx parity`, a report on stdout
    counts as 0, whatever its exit code of 0 to 3 says.
    """
    before = snapshot(folder)
    outcome = call(*argv, folder=folder)
    if verdict and outcome.code in range(4) and outcome.out and "Traceback" not in outcome.err:
        outcome = Outcome(0, outcome.out, outcome.err)
    outcomes[target, outcome.code] += 1
    shown = f"tlx {argv!r} exited with {outcome.code}:\n{outcome.out}{outcome.err}"
    assert outcome.code in (0, 2), shown
    assert not _executed, f"{shown}\nexecuted: {_executed}"
    for line in (outcome.out + outcome.err).split("\n"):
        assert not UNPRINTABLE.search(line), f"{line!a} would steer a terminal"
    if outcome.code == 2:
        last = outcome.err.splitlines()[-1:]
        assert last and last[0].startswith("tlx: ") and "Traceback" not in outcome.err, shown
        assert outcome.err.count("tlx: ") == 1, shown
    after = snapshot(folder)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if outcome.code == 0 or any(name.endswith("/manifest.json") for name in changed):
        changed = [name for name in changed if name.split("/")[0] not in writes]
    assert not changed, f"{shown}\nchanged on disk: {sorted(changed)}"
    return outcome


def snapshot(folder: Path) -> dict[str, str]:
    """What lies below a folder: for each path its kind and, of a regular file, a hash of its content."""
    return dict(_entries(folder, ""))


def _entries(folder: Path, above: str) -> Iterator[tuple[str, str]]:
    for entry in os.scandir(folder):
        name, mode = f"{above}{entry.name}", entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield name, "folder"
            yield from _entries(Path(entry.path), f"{name}/")
        elif stat.S_ISREG(mode) and os.access(entry.path, os.R_OK):
            yield name, hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
        else:
            yield name, oct(mode)
