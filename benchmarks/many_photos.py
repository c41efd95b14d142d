"""How long `tlx check` takes over many photos, how long again when it knows them, and what a kill costs.

    python benchmarks/many_photos.py 20000

The photos are JPEGs of 128 x 96 pixels with few and different colours, of ten classes, in a folder of their own.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CHECK = [sys.executable, "-m", "tlx", "check"]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "photos"
        started = time.perf_counter()
        write(root, count)
        print(f"{count:,} photos written in {time.perf_counter() - started:.0f} s", flush=True)
        os.environ["TLX_CACHE"] = f"{scratch}/cache"
        time.sleep(3)  # a file that is a moment old may change without another time
        process = subprocess.Popen([*CHECK, str(root)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(30)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print("killed after 30 s", flush=True)
        for what in ("goes on", "again"):
            started = time.perf_counter()
            done = subprocess.run([*CHECK, str(root)], capture_output=True, text=True)
            memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            seconds = time.perf_counter() - started
            print(f"{what}: {seconds:.0f} s, at most {memory:.2f} GB; {done.stdout.splitlines()[-1]}", flush=True)


def write(root: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    for number in range(10):
        (root / f"class{number}").mkdir(parents=True)
    for i in range(count):
        image = Image.fromarray(draw.integers(0, 256, (5, 6, 3)).astype(np.uint8)).resize((128, 96))
        image.save(root / f"class{i % 10}" / f"{i:06}.jpg", quality=85)


if __name__ == "__main__":
    main()
