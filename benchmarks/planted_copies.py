"""Plant altered copies of images, and count how many of them `tlx check --labels` lists: recall and precision.

    python benchmarks/planted_copies.py [FOLDER of the test data]

A fifth of the images get a copy each: mirrored, cropped to 90 and to 80 % of each side, recoloured, turned by 5
degrees, or cropped and mirrored; of the test part of the ants and bees (153 photos), and of images 8,000 to 10,000 of
CIFAR-10's test part. A planted pair counts as found where one group holds both; of the groups, those are right that
hold one. What else is listed may be copies that were there before, so that the precision is a lower bound.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

import tlx
from tlx.audit.near import feature_pairs
from tlx.data import Images
from tlx.data.sources.registry import open_source

SHARE, SEED, MANY = 0.2, 0, 20_000
Alter = Callable[[Image.Image], Image.Image]


def crop(image: Image.Image, share: float) -> Image.Image:
    """A part of an image, off its centre, at the size of the whole where that is tiny."""
    width, height = image.size
    across, down = round(width * (1 - share)), round(height * (1 - share))
    left, top = round(0.3 * across), round(0.7 * down)
    part = image.crop((left, top, left + width - across, top + height - down))
    return part.resize((width, height)) if max(width, height) <= 64 else part


def recolour(image: Image.Image) -> Image.Image:
    """Another hue, paler and brighter."""
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.merge("HSV", (hue.point(lambda x: (x + 12) % 256), saturation, value)).convert("RGB")
    return ImageEnhance.Brightness(ImageEnhance.Color(turned).enhance(0.6)).enhance(1.2)


HOW: dict[str, Alter] = {
    "mirrored": ImageOps.mirror,
    "cropped to 90 %": lambda image: crop(image, 0.9),
    "cropped to 80 %": lambda image: crop(image, 0.8),
    "recoloured": recolour,
    "turned by 5 degrees": lambda image: image.rotate(5, Image.Resampling.BILINEAR),
    "cropped to 80 %, mirrored": lambda image: ImageOps.mirror(crop(image, 0.8)),
}


def main() -> None:
    home = Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/tlx/test-data").expanduser()
    weights = str(home / "weights" / "resnet18-imagenet-backbone.safetensors")
    measure("ants and bees", open_source(str(home / "hymenoptera_data")).parts["test"], weights)
    test = open_source("cifar10", home).parts["test"]
    which = np.arange(8000, 10000)
    measure("CIFAR-10", test.select(which, test.labels[which]), weights)
    features = np.random.default_rng(SEED).random((MANY, 512), np.float32)
    started = time.process_time()
    feature_pairs(features)
    print(f"{MANY:,} images compared by 512 features each: {time.process_time() - started:.1f} s of processor time")


def measure(name: str, images: Images, weights: str) -> None:
    count, draw = len(images), np.random.default_rng(SEED)
    items: list[tuple[Any, int]] = [(images.open(i), int(images.labels[i])) for i in range(count)]
    copies: list[tuple[str, int, int]] = []  # how, the original, the copy
    for how, alter in HOW.items():
        for original in draw.choice(count, round(SHARE * count), replace=False).tolist():
            copies.append((how, original, len(items)))
            items.append((alter(items[original][0]), items[original][1]))
    started = time.perf_counter()
    result = tlx.check({"train": items}, labels=True, weights=weights, quiet=True)
    problems = [result.problem(kind) for kind in ("near_leak", "near_two_labels", "near_duplicate", "duplicate")]
    groups = [(group, {row.index for row in group}) for problem in problems if problem for group in problem.groups]
    print(f"{name}: {count:,} images, {len(copies):,} copies, checked in {time.perf_counter() - started:.0f} s")
    for how in HOW:
        pairs = [{original, copy} for kind, original, copy in copies if kind == how]
        hits = [next((group[0].detail for group, places in groups if pair <= places), None) for pair in pairs]
        ways = ", ".join(f"{way} {n}" for way, n in Counter(hit for hit in hits if hit).items())
        print(f"  {how}: recall {sum(hit is not None for hit in hits) / len(pairs):.0%} ({ways})")
    # Copies of one image are copies of each other.
    source = {copy: original for _, original, copy in copies}
    right = sum(len({source.get(i, i) for i in places}) < len(places) for _, places in groups)
    print(f"  precision: {right} of {len(groups)} groups hold a planted pair, {right / len(groups):.0%}", flush=True)


if __name__ == "__main__":
    main()
