"""Ctrl-C and SIGTERM as something to ask for between two steps, so that a run ends where it can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Turn the first Ctrl-C or SIGTERM into a number to ask for between two steps; the second acts at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield lambda: 0
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        for each in signals:
            signal.signal(each, before[each])

    for number in signals:
        signal.signal(number, note)
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number in signals:
            signal.signal(number, before[number])
