"""Errors that teach. Every mistake a user can make is a `TlxError`: one line, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class TlxError(Exception):
    """A mistake in the input. Its text says what, where, what was expected and how to mend it."""


class RecipeError(TlxError):
    """A recipe field is unknown, has the wrong type or contradicts another."""


class DataError(TlxError):
    """A data set is missing, damaged, or does not have the expected layout."""


class WeightsError(TlxError):
    """A weights file is missing, damaged, hostile, or made for another model."""


class BackendError(TlxError):
    """A backend is unknown, not installed, broken, or cannot do what was asked."""


class Interrupted(KeyboardInterrupt):
    """A run was told to stop by a signal, and has saved where it stands; its text says how to go on."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class FrozenMovedError(TlxError):
    """A frozen parameter or statistic changed during training: a defect of the backend, never of the input."""


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
