"""How cost grows with the size of an image, of a batch, of the data set, and with the number of classes.

Each point runs in a process of its own. Above each column of the plot stands the exponent p of seconds ~ quantity^p,
from the two largest points: up to 1 there is no super-linear term.

    python benchmarks/growth.py -o docs/growth.png        # ten minutes on 2 cores; needs tlx[bench]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIDES, BATCHES = (32, 64, 128, 256, 512), (4, 16, 64, 256)
COUNTS, CLASSES = (1_000, 10_000, 100_000, 1_000_000), (10, 100, 1_000, 10_000)
DECODED = 1_000  # photos that each size of the data set decodes
AXES = {"pixels of an image": SIDES, "images of a batch": BATCHES, "images of the data": COUNTS, "classes": CLASSES}


def trained(images: int, **fields: int) -> dict[str, float]:
    """ResNet-18 trains on random images, everything free, in float32."""
    import tlx

    rng = np.random.default_rng(0)
    classes = fields.pop("classes", 10)
    data = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8), np.arange(images) % classes
    with tempfile.TemporaryDirectory() as scratch:
        result = tlx.run(
            model="resnet18",
            weights="none",
            strategy="full",
            precision="float32",
            data={"train": data, "test": (data[0][:64], data[1][:64])},
            val_fraction=0,
            epochs=2,
            out=f"{scratch}/run",
            quiet=True,
            **{"batch_size": 16, "image_size": 64, **fields},
        )
    # The first epoch pays for what a framework prepares once.
    return {"images_per_second": images / result.history[-1]["seconds"]}


def opened(count: int) -> dict[str, float]:
    """A folder of links to a few photos is opened, an epoch of it drawn, and the first of its photos decoded."""
    from PIL import Image

    from tlx.backend import Preprocess
    from tlx.data import Augment, Loader, load_data

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for number in range(10):
            grain = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
            grain.resize((400, 300)).save(root / f"{number}.jpg")
        for label in range(100):
            (root / "data" / "train" / f"{label:02}").mkdir(parents=True)
        for number in range(count):
            os.symlink(root / f"{number % 10}.jpg", root / "data" / "train" / f"{number % 100:02}" / f"{number}.jpg")
        started = time.perf_counter()
        data = load_data(root / "data", val_fraction=0.1, test_fraction=0.1)
        loader = Loader(data.train, Preprocess(64), batch_size=50, augment=Augment.parse("photo"), shuffle=True)
        batches = loader.epoch(0)
        next(batches)
        ready = time.perf_counter() - started
        steps = min(DECODED // 50, loader.steps) - 1
        started = time.perf_counter()
        for _ in range(steps):
            next(batches)
        decoding = time.perf_counter() - started
        batches.close()
    return {"images_per_second": count / ready, "decoded_per_second": steps * 50 / decoding}


POINTS: dict[str, Callable[[int], dict[str, float]]] = {
    "pixels of an image": lambda side: trained(64 if side > 128 else 512, image_size=side),
    "images of a batch": lambda batch: trained(1024, batch_size=batch),
    "images of the data": opened,
    "classes": lambda classes: trained(max(1024, classes), classes=classes, image_size=32, batch_size=64),
}


def measure(axis: str, value: int) -> dict[str, float]:
    process = subprocess.Popen([sys.executable, __file__, "--point", axis, str(value)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{axis} {value} failed")
    return {**json.loads(line), "memory_gb": usage.ru_maxrss / 1e6}


def quantity(axis: str, value: int) -> int:
    return value**2 if axis.startswith("pixels") else value


def seconds(axis: str, value: int, point: dict[str, float]) -> float:
    """What is to grow no faster than its quantity: of an image, a step, opening the data, or an epoch."""
    return {"images of a batch": value, "images of the data": value}.get(axis, 1) / point["images_per_second"]


def exponent(axis: str, points: dict[int, dict[str, float]]) -> float:
    (a, first), (b, second) = list(points.items())[-2:]
    grown = seconds(axis, b, second) / seconds(axis, a, first)
    return math.log(grown) / math.log(quantity(axis, b) / quantity(axis, a))


def draw(results: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(results), figsize=(13, 5.5), sharex="col", layout="constrained")
    for (upper, lower), (axis, points) in zip(axes.T, results.items(), strict=True):
        x = [quantity(axis, value) for value in points]
        upper.loglog(x, [point["images_per_second"] for point in points.values()], "o-", label="images/s")
        if axis == "images of the data":
            upper.loglog(x, [point["decoded_per_second"] for point in points.values()], "s--", label="photos decoded/s")
            upper.lines[0].set_label("images opened/s")
            upper.legend(frameon=False)
        lower.semilogx(x, [point["memory_gb"] for point in points.values()], "o-", color="tab:red")
        upper.set_title(f"{axis}: p = {exponent(axis, points):.2f}", fontsize=11)
        upper.set_ylim(min(1, upper.get_ylim()[0]), 2 * upper.get_ylim()[1])
        lower.set_ylim(0, 1.1 * lower.get_ylim()[1])
        lower.set_xlabel(axis)
        for plot in (upper, lower):
            plot.spines[["top", "right"]].set_visible(False)
            plot.grid(alpha=0.3)
    axes[0, 0].set_ylabel("images/s")
    axes[1, 0].set_ylabel("peak memory, GB")
    figure.savefig(path, dpi=90)


def table(results: dict[str, dict[int, dict[str, float]]]) -> str:
    rows = ["| | value | images/s | photos decoded/s | peak memory, GB | p |", "|---|---|---|---|---|---|"]
    for axis, points in results.items():
        for value, point in points.items():
            shown = f"{value} x {value}" if axis.startswith("pixels") else f"{value:,}"
            decoded = f"{point['decoded_per_second']:.0f}" if "decoded_per_second" in point else ""
            p = f"{exponent(axis, points):.2f}" if value == list(points)[-1] else ""
            rows.append(
                f"| {axis} | {shown} | {point['images_per_second']:,.1f} | {decoded} | {point['memory_gb']:.2f} | {p} |"
            )
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"default: all of {', '.join(AXES)}")
    parser.add_argument("-o", "--output", type=Path, help="draw the plot into this file")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.point:
        print(json.dumps(POINTS[a.point[0]](int(a.point[1]))))
        return 0
    if unknown := [axis for axis in a.axes if axis not in AXES]:
        parser.error(f"unknown axis {unknown[0]!r}; known: {', '.join(AXES)}")
    results: dict[str, dict[int, dict[str, float]]] = {}
    for axis in a.axes or AXES:
        results[axis] = {}
        for value in AXES[axis]:
            results[axis][value] = measure(axis, value)
            print(f"{axis} {value}: {results[axis][value]}", file=sys.stderr, flush=True)
    print(table(results))
    if a.output:
        draw(results, a.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
