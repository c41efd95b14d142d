"""The processor, which a run shares with others: how many threads it takes, and what others took meanwhile."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

SHORTEST = 2.0  # seconds; the kernel counts in hundredths, and below this the count says little
WORKING = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq and steal of a line of /proc/stat (proc_stat(5))


def settle_threads() -> None:
    """Set how a framework's threads behave, before it is imported; what the environment says already stands."""
    # Threads that spin while they wait starve whatever else runs on the machine, a second run above all.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from joblib import cpu_count  # type: ignore[import-untyped]

    # Frameworks count the cores of the machine, also in a container that may use only some of their time.
    if (granted := cpu_count()) < len(cores()):
        os.environ.setdefault("OMP_NUM_THREADS", str(granted))


def cores() -> set[int]:
    """The cores on which this process may run."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processor() -> str:
    """What tells this processor and its threads from others, which may round otherwise."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    facts = {line for line in lines if line.startswith(("model name", "flags", "Features"))} or set(lines[:1])
    return "\n".join([*sorted(facts), str(len(cores())), os.environ.get("OMP_NUM_THREADS", "")])


class Others:
    """Watches what other processes take of the cores that this one may use."""

    def __init__(self) -> None:
        self._mark = _now()

    def share(self) -> float | None:
        """The part of the cores' time, 0 to 1, that others took since the last answer; None where it cannot be told."""
        now = _now()
        if now is None or self._mark is None or now[0] - self._mark[0] < SHORTEST:
            return None
        seconds, all_work, own_work = (new - old for new, old in zip(now, self._mark, strict=True))
        self._mark = now
        return min(1.0, max(0.0, (all_work - own_work) / (seconds * len(cores()))))


def _now() -> tuple[float, float, float] | None:
    """Wall seconds, and the seconds that the cores and this process have worked; None but on Linux."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    wanted, work = {f"cpu{core}" for core in cores()}, 0
    for name, *counts in map(str.split, lines):
        if name in wanted:
            work += sum(int(counts[place]) for place in WORKING)
    return time.perf_counter(), work / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])
