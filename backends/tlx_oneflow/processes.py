"""OneFlow 0.9.0 as one of several processes: on GPUs it connects them while it is imported; this is how, and how it lets go.

On a CPU the processes add up over their channel instead. OneFlow's own sum, of however few numbers, takes 3 ms there on
an idle machine and half a second on a busy one, where the channel takes a millisecond (two processes on two cores).
Besides, it ends a process whose peer is gone by SIGABRT, at once; and at a process's end it waits for all others, for
ever if they do not end as well.
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


def connects(world: World) -> bool:
    """Whether OneFlow itself connects these processes."""
    return world.size > 1 and cuda_driver()


def cuda_driver() -> bool:
    """Say whether an NVIDIA driver with a GPU answers, without touching OneFlow."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


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
