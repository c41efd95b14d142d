"""OneFlow 0.9.0 as one of several processes: between GPUs it adds up itself, and connects while it is imported.

On CPUs the processes add up over their channel. OneFlow's own sum is faster for many numbers (12 MB in 20 ms, where the
channel takes 150, between two processes on two busy cores; a BatchNorm's few take both 6 ms). But its import then waits
for the others for up to 13 s; it ends a process whose peer is gone by SIGABRT, with a page of C++ frames; and at a
process's end it waits for all others, for ever if they do not end as well.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
from types import TracebackType
from typing import Any

from tlx.processes import World
from tlx.streams import flushed
from tlx_oneflow.gpus import gpus


def connects(world: World) -> bool:
    """Whether OneFlow itself connects these processes."""
    return world.size > 1 and bool(gpus())


def variables(world: World) -> dict[str, str]:
    """Return the variables by which the import finds the other processes, beside whoever has the port itself."""
    return {
        "WORLD_SIZE": str(world.size),
        "RANK": str(world.rank),
        "LOCAL_RANK": str(world.local_rank),
        "MASTER_ADDR": world.host,
        "MASTER_PORT": str(world.port + 1),
    }


def let_go() -> None:
    """Call after the import: let this process end by itself if it fails, and outlive another one by a few seconds."""
    # The handler is the C library's sleep, which gets the signal's number, 6, as its seconds: meanwhile another thread
    # says which process was lost, or this one comes to its own end.
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    code = 0
    exit_as_before, excepthook = sys.exit, sys.excepthook

    def leave(status: Any = None) -> None:
        nonlocal code
        code = status if isinstance(status, int) else int(status is not None)
        exit_as_before(status)

    def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        nonlocal code
        code = 1
        excepthook(kind, error, trace)

    def end() -> None:
        if code:  # all others are to end too, and not when they come to their own end
            for stream in (sys.stdout, sys.stderr):
                flushed(stream)
            os._exit(code & 255)

    sys.exit, sys.excepthook = leave, fail  # type: ignore[assignment]
    atexit.register(end)
