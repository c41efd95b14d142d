"""Plant wrong labels, and count how many of them `tlx check --labels` finds: recall and precision.

    python benchmarks/planted_labels.py [FOLDER of the test data]

5 % of the labels are swapped for another class, in 20 draws: of the ants and bees, of their test part alone (153
photos), and of 3,000 and 8,000 images of CIFAR-10: those from 30,000 on. The method and its cut were chosen on the
training part of the ants and bees and on images 10,000 to 18,000 of CIFAR-10. The features are those of an ImageNet
ResNet-18 of which a block was left out.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from tlx.audit.labels import STRENGTH, suspects
from tlx.data import Images
from tlx.data.file_hashes import FileHashes
from tlx.data.fingerprint import hashes_of
from tlx.data.sources.registry import open_source
from tlx.runs.extractor import features_of, open_extractor
from tlx.training.out_of_fold import out_of_fold

SHARE, DRAWS = 0.05, 20
CIFAR, FIRST, PIXELS = (3000, 8000), 30_000, 128


def main() -> None:
    home = Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/tlx/test-data").expanduser()
    weights = str(home / "weights" / "resnet18-imagenet-backbone.safetensors")
    ants = open_source(str(home / "hymenoptera_data"))
    measure("ants and bees", list(ants.parts.values()), len(ants.classes), weights, None)
    measure("ants and bees, test part", [ants.parts["test"]], len(ants.classes), weights, None)
    cifar = open_source("cifar10", home).parts["train"]
    for count in CIFAR:
        which = np.arange(FIRST, FIRST + count)
        measure("CIFAR-10", [cifar.select(which, cifar.labels[which])], 10, weights, PIXELS)


def measure(name: str, parts: list[Images], classes: int, weights: str, size: int | None) -> None:
    started = time.perf_counter()
    extractor = open_extractor(weights=weights, image_size=size)
    files = FileHashes()
    rows = [features_of(extractor, images, [h.hex() for h in hashes_of(images, files).tolist()]) for images in parts]
    features, labels = np.concatenate(rows), np.concatenate([images.labels for images in parts])
    print(f"{name}: {len(labels):,} images, features in {time.perf_counter() - started:.0f} s")
    figures = []
    for seed in range(DRAWS):
        draw = np.random.default_rng(seed)
        planted = draw.choice(len(labels), round(SHARE * len(labels)), replace=False)
        wrong = labels.copy()
        wrong[planted] = (labels[planted] + draw.integers(1, classes, len(planted))) % classes
        started = time.perf_counter()
        found = suspects(wrong, out_of_fold(features, wrong, strength=STRENGTH))
        seconds = time.perf_counter() - started
        hits = [suspect for suspect in found if suspect.place in set(planted.tolist())]
        right = sum(suspect.suggested == labels[suspect.place] for suspect in hits)
        figures.append((len(hits) / len(planted), len(hits) / max(1, len(found)), right / max(1, len(hits))))
    print(f"  each draw: {len(planted)} planted, {seconds:.1f} s")
    for name, values in zip(("recall", "precision", "suggestion right"), np.transpose(figures), strict=True):
        print(f"  {name}: mean {values.mean():.1%}, from {values.min():.1%} to {values.max():.1%}", flush=True)


if __name__ == "__main__":
    main()
