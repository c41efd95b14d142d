"""How fast two processes with a thread each train beside one process with two threads: the same work, in pairs.

    python benchmarks/processes.py --backend torch --model resnet18 --image-size 224 --pairs 5

Each pair is two runs, one after the other, in the order A B, then B A, so that a slow drift of the machine falls on
both. What counts is the ratio of each pair; the last line is their median, least and greatest. The machine must be
idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run the pairs and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2, help="the first one is not counted")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each, beside one of as many threads")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    for pair in range(options.pairs):
        order = [1, options.processes] if pair % 2 == 0 else [options.processes, 1]
        speed = {processes: images_per_second(processes, options) for processes in order}
        ratios.append(speed[options.processes] / speed[1])
        print(
            f"pair {pair + 1}: {speed[1]:.1f} images/s in one process of {options.processes} threads, "
            f"{speed[options.processes]:.1f} in {options.processes} of one thread; ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"ratio: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    return 0


def images_per_second(processes: int, options: argparse.Namespace) -> float:
    """Train in so many processes; returns the speed of the epochs after the first, which holds what happens once."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "tlx", "run", "--json", "--processes", str(processes), "--out", f"{folder}/run"),
            *("--backend", options.backend, "--model", options.model, "--weights", "none", "--data", "digits"),
            *("--strategy", "scratch", "--image-size", str(options.image_size), "--precision", options.precision),
            *("--batch-size", str(options.batch_size), "--epochs", str(options.epochs), "--val-fraction", "0"),
            *("--limit-train", str(options.images), "--limit-test", "10", "--workers", "0"),
        ]
        threads = str(options.processes // processes)
        environ = {**os.environ, "OMP_NUM_THREADS": threads, "TLX_CACHE": f"{folder}/cache"}
        ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(f"{' '.join(command)}\n{ended.stderr}")
        lines = (Path(folder) / "run" / "history.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines][1:]
    return float(options.images * len(epochs) / sum(epoch["seconds"] for epoch in epochs))


if __name__ == "__main__":
    sys.exit(main())
