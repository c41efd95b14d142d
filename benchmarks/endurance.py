"""Whether a process that lasts stays as it was: 10,000 epochs in one run, and 1,000 runs in one process.

Each row is a tenth of the whole. Seconds are the processor's, of this process and in the median, so that other work on
the machine does not count; memory is the resident set's; written are all bytes that went to files since the start.

    python benchmarks/endurance.py epochs                      # four minutes
    python benchmarks/endurance.py epochs --save-seconds 0     # saves after each step
    python benchmarks/endurance.py epochs --fields '{"schedule": "plateau", "patience": 10000}'
    python benchmarks/endurance.py runs                        # two minutes
    python benchmarks/endurance.py runs --count 60 --backend torch --model squeezenet1_1    # or --backend oneflow
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

FIELDS: dict[str, Any] = {
    **{"weights": "none", "data": "digits", "limit_train": 200, "limit_test": 20, "batch_size": 90, "lr": 0.01},
}
ROW = "{:>15}  {:>10}  {:>9}  {:>10}  {:>5}  {:>7}  {:>9}"


class Rows:
    """Prints a row whenever another tenth of the laps is done."""

    def __init__(self, laps: int, unit: str) -> None:
        self.size, self.seconds, self.lap = max(laps // 10, 1), list[float](), 0
        self.last, self.written = time.process_time(), written()
        print(ROW.format(unit, "ms", "memory MB", "written MB", "files", "threads", "objects"))

    def add(self) -> None:
        """Count a lap that has ended."""
        self.seconds.append(time.process_time() - self.last)
        self.lap += 1
        if self.lap % self.size == 0:
            gc.collect()
            cells = f"{1000 * statistics.median(self.seconds):.2f}", f"{resident() / 1e6:.1f}"
            counts = len(os.listdir("/proc/self/fd")), threading.active_count(), f"{len(gc.get_objects()):,}"
            laps = f"{self.lap - self.size + 1}-{self.lap}"
            print(ROW.format(laps, *cells, f"{(written() - self.written) / 1e6:.1f}", *counts), flush=True)
            self.seconds = []
        self.last = time.process_time()


def written() -> int:
    """Return the bytes that this process has written to files."""
    return int(Path("/proc/self/io").read_text().partition("wchar: ")[2].split()[0])


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def epochs(count: int, fields: dict[str, Any]) -> None:
    """One run of many epochs."""
    import tlx
    from tlx.training.metrics import EpochEnded

    rows = Rows(count, "epochs")
    with tempfile.TemporaryDirectory() as scratch:
        tlx.run(
            {**FIELDS, **fields},
            epochs=count,
            out=f"{scratch}/run",
            quiet=True,
            on_event=lambda event: rows.add() if isinstance(event, EpochEnded) else None,
        )


def runs(count: int, fields: dict[str, Any]) -> None:
    """Many runs one after the other, all in one folder `runs/`."""
    import tlx

    with tempfile.TemporaryDirectory() as scratch:
        before = os.getcwd()
        os.chdir(scratch)
        rows = Rows(count, "runs")
        for _ in range(count):
            tlx.run({**FIELDS, "epochs": 1, **fields}, quiet=True)
            rows.add()
        os.chdir(before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["epochs", "runs"])
    parser.add_argument("--count", type=int, help="default: 10,000 epochs, or 1,000 runs")
    parser.add_argument("--backend", default="loopback")
    parser.add_argument("--model", default="tiny-mlp")
    parser.add_argument("--save-seconds", type=float, default=60)
    parser.add_argument("--fields", type=json.loads, default={}, help="other recipe fields, as JSON")
    asked = parser.parse_args()
    size = 8 if asked.backend == "loopback" else 32
    named = {"backend": asked.backend, "model": asked.model, "image_size": size, "save_seconds": asked.save_seconds}
    chosen = {**named, **asked.fields}
    if asked.what == "epochs":
        epochs(asked.count or 10_000, chosen)
    else:
        runs(asked.count or 1_000, chosen)
