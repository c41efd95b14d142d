"""Ctrl-C, SIGTERM and a closed terminal: a run ends where it can be resumed, and what it says then is true."""

from __future__ import annotations

import math
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.errors import Interrupted
from tlx.processes import Channel, highest
from tlx.signals import handlers

if TYPE_CHECKING:
    from tlx.recipe import Recipe

# How many signals are only noted before one ends the block at once.
AT_ONCE, AFTER_STEP, NEVER = 0, 1, math.inf
SAME = 1.0  # seconds in which more signals mean the same: a key that is held down, a terminal that sends two kinds
TEXTS = (str, Path, type(None))  # what a recipe file can hold of data, model and head


class Stop:
    """The signals that have arrived, and what is true if the process ends for one now."""

    def __init__(self) -> None:
        self.signum = 0  # of the first that arrived; 0: none did
        self.text = "interrupted"
        self.patience: float = AT_ONCE
        self.command = "the same call of tlx.run"  # starts again what was asked for
        self.raised = False  # in the midst of whatever ran
        self._count, self._last = 0, -math.inf
        self._heard: int | None = None  # the signal of which all processes know; None: there is only this one

    def at(self, text: str, patience: float = AT_ONCE) -> None:
        """Enter a part in which `text` is true of whoever ends; `patience` signals are noted before one ends it."""
        self.text, self.patience = text, patience
        if self._count > patience:
            raise self.interrupted()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only note signals in the block, which may change `text`; they act at its end."""
        before, self.patience = self.patience, NEVER
        yield  # an error goes its way without a signal in between
        self.at(self.text, before)

    def check(self, text: str) -> None:
        """End here if a signal has arrived."""
        if self.signum if self._heard is None else self._heard:
            raise self.interrupted(text)

    def hear(self, channel: Channel, due: bool = False) -> bool:
        """Take note of a signal that another process of the run got; return whether the first one says `due`.

        All processes call this at the same place of the run.
        """
        heard = highest(channel, 2 * self.signum + int(due and channel.world.rank == 0))
        self.signum = self.signum or heard // 2
        if channel.world.size > 1:
            self._heard = heard // 2  # a signal that came since then ends this process with the others, a step later
        return bool(heard)

    def interrupted(self, text: str | None = None) -> Interrupted:
        """Return what to raise; more signals of the same moment do not disturb it on its way."""
        self.text = text or self.text
        self._last = time.monotonic()
        if self.patience == AFTER_STEP:
            self.patience = NEVER  # the folder is still to be given back
        return Interrupted(self.text, self.signum)

    def note(self, number: int, frame: Any) -> None:
        """Handle a signal."""
        self.signum = self.signum or number
        if time.monotonic() - self._last < SAME:
            return
        if self._count + 1 > self.patience and _importing(frame):
            again = threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, number))
            again.daemon = True
            again.start()
            return
        self._last = time.monotonic()
        self._count += 1
        if self._count > self.patience:
            self.raised = True
            raise self.interrupted()


def _importing(frame: Any) -> bool:
    """Whether Python's own import code runs: what is raised in its callbacks is lost, and printed as a traceback."""
    return frame is not None and frame.f_code.co_filename.startswith("<frozen importlib")


_outer: Stop | None = None


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Handle the signals that end a process, unless they are ignored; a block within the block shares what arrived.

    In other threads than the main one, in which Python handles no signals, nothing arrives.
    """
    global _outer
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
        return
    stop, nested = _outer or Stop(), _outer is not None
    text, patience = stop.text, stop.patience
    before: dict[int, Any] = {} if nested else handlers()
    try:
        _outer = stop
        for number in before:
            signal.signal(number, stop.note)
        yield stop
    except Exception:
        if stop.raised and stop.patience == AT_ONCE:  # an import in C made something else of it
            raise stop.interrupted() from None
        raise
    finally:
        if nested:
            stop.text, stop.patience = text, patience
        else:
            stop.patience = NEVER
            for number, handler in before.items():
                signal.signal(number, handler)
            _outer = None


def standing(recipe: Recipe, run_dir: Path, saved: str | None) -> str:
    """Say what is saved of a run, and the command that goes on with it.

    `saved` says as of when, such as " as it stood after step 3"; None: it has not been saved since its start.
    """
    objects = [name for name in ("data", "model", "head") if not isinstance(getattr(recipe, name), TEXTS)]
    folder = f"./{run_dir}" if str(run_dir).startswith("-") else str(run_dir)
    command = f"tlx run --resume {shlex.quote(folder)}"
    if objects:  # which no command line can hand over
        command = f"tlx.run({', '.join([f'resume={str(run_dir)!r}', *(f'{name}=...' for name in objects)])})"
    if saved is None:
        return f"nothing was saved yet. Start again with: {command}"
    return f"the run is saved{saved}. Go on with: {command}"
