"""Errors that teach. Every mistake that a user can make is a `TlxError`: one line, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from html import escape
from typing import Any

# Control characters, line separators, and lone surrogates, which stand in Python for bytes that are not UTF-8.
_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
# Characters that show nothing, but reorder the text around them or make two names look alike.
_INVISIBLE = "\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
CONTROL = re.compile(f"[{_CONTROL}]")  # no name of a class or a data set has any
UNPRINTABLE = re.compile(f"[{_CONTROL}{_INVISIBLE}]")  # what is never printed as it is
SHOWN = 200  # characters of a value that an error shows


class TlxError(Exception):
    """A mistake in the input. `str(error)` is one line: what, where, what was expected, and how to mend it.

    `problem` is that line without the fix, and `fix` the command or the change that mends it, or "" where `problem`
    says it already. The subclasses are also what Python users catch: ValueError, ImportError, FileNotFoundError.
    """

    told = False  # another process of the run shows it to the user

    def __init__(self, problem: str, *, fix: str = "") -> None:
        problem = printable(problem)
        super().__init__(problem)
        self.problem, self.fix = problem, printable(fix)

    def __str__(self) -> str:
        return f"{self.problem}. Fix: {self.fix}" if self.fix else self.problem

    def _render_traceback_(self) -> list[str]:
        """Show one line in a notebook: IPython calls this instead of printing the frames."""
        return [f"{type(self).__name__}: {self}"]


class RecipeError(TlxError, ValueError):
    """A recipe field is unknown, has the wrong type or contradicts another."""


class DataError(TlxError, ValueError):
    """A data set is missing, damaged, or does not have the expected layout."""


class DataNotFound(DataError, FileNotFoundError):
    """There is no data set of that name, or no such file or folder."""


class WeightsError(TlxError, ValueError):
    """A weights file is missing, damaged, hostile, or made for another model."""


class WeightsNotFound(WeightsError, FileNotFoundError):
    """There is no weights file at that path."""


class RunNotFound(TlxError, FileNotFoundError):
    """The folder holds no run, or none that has finished."""


class RunDamaged(TlxError, ValueError):
    """A file of a run's folder is missing, or does not hold what the run wrote; the text says what is whole."""


class BackendError(TlxError):
    """A backend is unknown, broken, or cannot do what was asked."""


class BackendUnavailable(BackendError, ImportError):
    """A backend, or the framework that it needs, is not installed or does not import."""


class ProcessesError(TlxError):
    """The processes over which a run spreads cannot find each other, or do not belong together."""


class ProcessLostError(ProcessesError):
    """Another process of the run has failed, or has ended without a word; the text names it, and what it said."""


class FrozenMovedError(TlxError):
    """A frozen parameter or statistic changed during training: a defect of the backend, never of the input."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped a run, which was saved where it stood; the text says how to resume it."""

    told = False  # another process of the run shows it to the user

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum

    def _render_traceback_(self) -> list[str]:
        return [f"Interrupted: {self}"]


def printable(text: str) -> str:
    """Escape what would break a line, steer a terminal or show nothing, and bytes of names that are not UTF-8."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def as_html(value: Any) -> str:
    """Write a value into a page: no tag, and no character that is not `printable`."""
    return escape(printable(str(value)))


def shown(value: Any) -> str:
    """Write any value as Python for an error: shortened, and by its kind alone where it refuses to be written.

    Whole numbers of thousands of digits do, lists nested too deeply, and objects whose `__repr__` is broken.
    """
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"``, or the list of what is known where nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return " Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return f" Known: {', '.join(names)}." if names else ""


def one_line(text: str, width: int = 300) -> str:
    """Reduce an error's text to its last telling line: no ANSI codes, no traceback, no C++ frames."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    if "\nError Type: " in text:
        text = text.lstrip().partition("\n")[0]  # then C++ frames lie below
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Check failed)\b", line)]
    line = (telling or lines or ["no message"])[-1].rstrip(".")
    return line if len(line) <= width else line[: width - 1] + "…"
