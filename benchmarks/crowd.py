"""Many runs at once on one cache, some of them killed at random: every result must be that of a run without a cache.

    python benchmarks/crowd.py --backend torch --model squeezenet1_1 --processes 8 --rounds 5

Each round starts that many runs of one network on the same images, kills some, and goes on with the cache as it is.
It ends with 1 if a run failed, if a weight differs by a bit, if a lock is held or the cache is larger than it may be.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from filelock import FileLock

from tlx.models.weights import digest, read_weights
from tlx.training.feature_store import LIMIT

TLX = [sys.executable, "-c", "from tlx.cli import main; main()"]


def main() -> int:
    """Run the rounds, print a line for each, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="loopback")
    parser.add_argument("--model", default="tiny-mlp")
    parser.add_argument("--image-size", default="8")
    parser.add_argument("--epochs", default="3")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=3, help="runs of each round but the last that are killed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    fields = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("backend", "model", "image-size")]
    fields += [f"--epochs={options.epochs}", "--strategy=feature_extract", "--weights=none", "--data=digits"]
    chance, faults = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as work:
        folder, began = Path(work), time.monotonic()
        alone = start(folder / "alone", fields, folder / "cache", "off")
        if alone.wait():
            print((folder / "alone.log").read_text(), file=sys.stderr)
            return 1
        took, expected = time.monotonic() - began, weights(folder / "alone")
        for number in range(options.rounds):
            outs = [folder / f"{number}-{i}" for i in range(options.processes)]
            runs = [start(out, fields, folder / "cache", "auto") for out in outs]
            killed = set(chance.sample(range(len(runs)), options.kills if number < options.rounds - 1 else 0))
            for i in sorted(killed):
                time.sleep(chance.uniform(0, took))
                runs[i].kill()
            codes = [run.wait() for run in runs]
            failed = [i for i, code in enumerate(codes) if code and not (i in killed and code == -9)]
            other = [i for i, code in enumerate(codes) if code == 0 and weights(outs[i]) != expected]
            held = locks_held(folder / "cache")
            size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
            for i in failed:
                print((folder / f"{number}-{i}.log").read_text(), file=sys.stderr)
            faults += len(failed) + len(other) + len(held) + (size > 2 * LIMIT)
            print(
                f"round {number + 1}: {codes.count(0)} finished, {codes.count(-9)} killed, {len(failed)} failed, "
                f"{len(other)} differ, {len(held)} locks held, cache {size / 1e6:.2f} MB",
                flush=True,
            )
            for out in outs:
                shutil.rmtree(out, ignore_errors=True)
    return min(faults, 1)


def start(out: Path, fields: list[str], cache: Path, use: str) -> subprocess.Popen[bytes]:
    """Start a run, whose text goes to a file beside its folder."""
    command = [*TLX, "run", f"--out={out}", f"--feature-cache={use}", *fields]
    environment = {**os.environ, "TLX_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with Path(f"{out}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def weights(run: Path) -> str:
    """A hash of every bit of a finished run's weights."""
    return digest(read_weights(run / "model.safetensors"))


def locks_held(cache: Path) -> list[Path]:
    """The locks that nobody can take, though no process is left."""
    held = []
    for path in cache.rglob("*.lock"):
        try:
            FileLock(path, timeout=0).acquire().lock.release()
        except TimeoutError:
            held.append(path)
    return held


if __name__ == "__main__":
    sys.exit(main())
