"""The signals that ask a process to end, and how they are put off while something must not be cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler or `kill`, a terminal that was closed
TIME_IS_UP = signal.SIGUSR2  # what Slurm's --signal=USR2 sends ahead of a time limit, as submitit asks it to


def handlers() -> dict[int, Any]:
    """Return the handlers that may be replaced here: in the main thread those of signals that are not ignored.

    What nohup, a shell's `trap ''` or a background job ignores stays ignored; so does what C code handles.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    # A program that handles the last by itself, as submitit does, keeps its handler.
    numbers = ENDING if signal.getsignal(TIME_IS_UP) is not signal.SIG_DFL else (*ENDING, TIME_IS_UP)
    now = {number: signal.getsignal(number) for number in numbers}
    return {number: handler for number, handler in now.items() if handler not in (signal.SIG_IGN, None)}


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait for the end of the block: importing a framework, for example, cannot be cut off and repeated.

    Threads that begin in the block never take such a signal, so that none runs a handler that a framework installs.
    """
    before, received = handlers(), list[int]()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, before)
    try:
        for number in before:
            signal.signal(number, lambda number, frame: received.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # what has waited is received here
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
