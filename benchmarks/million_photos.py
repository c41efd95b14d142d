"""What the start of a run on a million photos takes: seconds and memory of each part of it, cold and warm.

    python benchmarks/million_photos.py --photos 1000000

The photos are links to a few hundred small ones, in a folder that is removed afterwards. Reading them all is what a run
does that has not seen them before ("cold"); later runs ("warm") know them by what the file system says of them.
`--folder` measures a folder of one's own instead, and how long an epoch takes that only decodes its photos.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

ORIGINALS = 400  # ext4 allows 65,000 links to a file
CLASSES = 1000
SIDE = 32  # pixels of a photo
T = TypeVar("T")


def make(folder: Path, photos: int) -> None:
    """Write a folder of links to small photos, `<class>/<number>.jpg`."""
    from PIL import Image

    originals = []
    for i in range(ORIGINALS):
        noise = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        originals.append(folder / "originals" / f"{i}.jpg")
        originals[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(originals[-1])
    for i in range(CLASSES):
        (folder / "photos" / f"{i:04}").mkdir(parents=True)
    for i in range(photos):
        os.link(originals[i % ORIGINALS], folder / "photos" / f"{i % CLASSES:04}" / f"photo-{i:07}.jpg")


def measured(what: str, work: Callable[[], T]) -> T:
    """Do something, and print the seconds that it took and the most memory that the process has had so far."""
    started = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"  {what:42} {time.perf_counter() - started:8.1f} s   peak {peak:6,.0f} MiB", flush=True)
    return result


def start(folder: Path, size: int, decode: bool) -> None:
    """Do, part by part, what the start of a run does."""
    from tlx.backend import Preprocess
    from tlx.data import Augment, Loader, load_data
    from tlx.data.sources.registry import open_source

    measured("listing the photos", lambda: open_source(folder))
    data = measured("listing, splitting, looking for copies", lambda: load_data(folder))
    measured("the fingerprint", lambda: data.fingerprint)
    loader = Loader(data.train, Preprocess(size, (0.5,) * 3, (0.5,) * 3), augment=Augment(), batch_size=64, workers=2)
    epoch = loader.epoch(0)
    measured("the first batch", lambda: next(epoch))
    if decode:
        measured(f"the rest of an epoch of decoding ({loader.steps} steps)", lambda: sum(1 for _ in epoch))
    epoch.close()


def runs(folder: Path, out: Path) -> None:
    """Train on a backend that computes next to nothing: on some of the photos, and on all until the first steps."""
    import tlx
    from tlx.errors import Interrupted
    from tlx.training.metrics import Stepped

    fields: dict[str, Any] = {"backend": "loopback", "model": "tiny-mlp", "weights": "none", "image_size": 8}
    fields |= {"data": str(folder), "epochs": 1, "quiet": True}
    some = {"limit_train": 20 * CLASSES, "limit_test": 2 * CLASSES}
    measured("a run on 20,000 of them", lambda: tlx.run(**fields, **some, out=str(out / "some")))

    def stop(event: object) -> None:
        if isinstance(event, Stepped):
            signal.raise_signal(signal.SIGINT)

    def until_stopped() -> None:
        with suppress(Interrupted):
            tlx.run(**fields, out=str(out / "all"), on_event=stop)

    measured("a run on all, stopped in its first step", until_stopped)


@contextmanager
def place(given: Path | None, photos: int) -> Iterator[Path]:
    """The folder to measure; the one that is made is removed."""
    if given is not None:
        yield given
        return
    work = Path(tempfile.mkdtemp(prefix="tlx-million-"))
    try:
        measured(f"making {photos:,} links", lambda: make(work, photos))
        yield work / "photos"
    finally:
        shutil.rmtree(work)


def main() -> None:
    """Measure each of the three in a process of its own, with a cache of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", type=int, default=224, help="pixels of the network's input")
    parser.add_argument("--part", choices=("start", "run"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "start":
        start(args.folder, args.size, decode=args.photos == 0)
    elif args.part == "run":
        runs(args.folder, Path(os.environ["TLX_CACHE"]) / "runs")
    if args.part:
        return
    with place(args.folder, args.photos) as folder, tempfile.TemporaryDirectory() as cache:
        time.sleep(3)  # what is known of files that are younger is not kept
        for title, part in (("cold", "start"), ("warm", "start"), ("warm", "run")):
            print(f"{title}:", flush=True)
            photos = args.photos if args.folder is None else 0
            command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--size", str(args.size)]
            command += ["--photos", str(photos)]
            subprocess.run(command, env={**os.environ, "TLX_CACHE": cache}, check=True)


if __name__ == "__main__":
    main()
