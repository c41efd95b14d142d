"""Ctrl-C and SIGTERM, noted and acted on between two steps, so that a run ends where it can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of the signal that arrived, or 0; a second signal acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield lambda: 0
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for caught in signals:
            signal.signal(caught, before[caught])

    for number in signals:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number in signals:
            signal.signal(number, before[number])
