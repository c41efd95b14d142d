"""Embed a stream of tiny images and search it: seconds, and the most memory that was taken, at growing numbers.

    python benchmarks/million_embeddings.py --images 10000 100000 1000000

Images are drawn as they are asked for, and the network is the small one of the loopback backend, so that what is
measured is all around a network: the stream, the parts, the join, and then the search for the nearest of 10 images.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tlx

RUN: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp", "weights": "none", "data": "digits", "image_size": 8, "epochs": 1},
    **{"limit_train": 100, "limit_test": 20, "val_fraction": 0, "batch_size": 256, "quiet": True, "workers": 0},
}


def images(count: int) -> Iterator[Any]:
    """Random images of 8 x 8 pixels, a thousand drawn at a time."""
    rng = np.random.default_rng(0)
    for at in range(0, count, 1000):
        yield from rng.integers(0, 256, (min(1000, count - at), 8, 8, 3), np.uint8)


def measure(count: int, folder: Path) -> dict[str, Any]:
    """Embed and search in this process."""
    began = time.perf_counter()
    done = tlx.embed(folder / "run", images(count), folder / f"{count}.parquet", quiet=True)
    embedded, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    tlx.similar(folder / "run", list(images(10)), done.out, quiet=True)
    return {
        "images": done.images,
        "seconds": round(embedded, 1),
        "peak_mib": round(peak),
        "search_seconds": round(time.perf_counter() - began, 1),
        "search_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "file_mib": round(done.out.stat().st_size / 2**20, 1),
    }


def main() -> None:
    """Measure each number in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the run: then it is one of the processes
    asked = parser.parse_args()
    if asked.folder is not None:
        print(json.dumps(measure(asked.images[0], asked.folder)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        tlx.run(**RUN, out=f"{folder}/run")
        for count in asked.images:
            subprocess.run([sys.executable, __file__, "--images", str(count), "--folder", folder], check=True)


if __name__ == "__main__":
    main()
