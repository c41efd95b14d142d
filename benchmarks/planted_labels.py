"""Plant wrong labels, and count how many of them `tlx check --labels` finds: recall and precision.

    python benchmarks/planted_labels.py [FOLDER of the test data]

5 % of the labels are swapped for another class, drawn by five seeds: of the ants and bees (397 photos), and of 3,000
and 8,000 images of CIFAR-10. The features are those of an ImageNet ResNet-18 of which a block was left out.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from tlx.audit.labels import suspects
from tlx.data import Images
from tlx.data.file_hashes import FileHashes
from tlx.data.fingerprint import hashes_of
from tlx.data.load import load_data, open_source
from tlx.runs.extractor import features_of, open_extractor
from tlx.training.out_of_fold import out_of_fold

SHARE, SEEDS = 0.05, (10, 11, 12, 13, 14)  # the cut was chosen on 0, 1 and 2
CIFAR, PIXELS = (3000, 8000), 128


def main() -> None:
    home = Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/tlx/test-data").expanduser()
    weights = str(home / "weights" / "resnet18-imagenet-backbone.safetensors")
    ants = open_source(str(home / "hymenoptera_data"))
    measure("ants and bees", list(ants.parts.values()), len(ants.classes), weights, None)
    for count in CIFAR:
        cifar = load_data("cifar10", root=home, limit_train=count, val_fraction=0)
        measure("CIFAR-10", [cifar.train], len(cifar.classes), weights, PIXELS)


def measure(name: str, parts: list[Images], classes: int, weights: str, size: int | None) -> None:
    started = time.perf_counter()
    extractor = open_extractor(weights=weights, image_size=size)
    files = FileHashes()
    rows = [features_of(extractor, images, [h.hex() for h in hashes_of(images, files).tolist()]) for images in parts]
    features, labels = np.concatenate(rows), np.concatenate([images.labels for images in parts])
    print(f"{name}: {len(labels):,} images, features in {time.perf_counter() - started:.0f} s")
    figures = []
    for seed in SEEDS:
        draw = np.random.default_rng(seed)
        planted = draw.choice(len(labels), round(SHARE * len(labels)), replace=False)
        wrong = labels.copy()
        wrong[planted] = (labels[planted] + draw.integers(1, classes, len(planted))) % classes
        started = time.perf_counter()
        found = suspects(wrong, out_of_fold(features, wrong))
        seconds = time.perf_counter() - started
        hits = [suspect for suspect in found if suspect.place in set(planted.tolist())]
        right = sum(suspect.suggested == labels[suspect.place] for suspect in hits)
        recall, precision = len(hits) / len(planted), len(hits) / max(1, len(found))
        figures.append((recall, precision))
        print(
            f"  seed {seed}: {len(planted)} planted, {len(found)} suspected, recall {recall:.1%}, precision"
            f" {precision:.1%}, suggestion right {right / max(1, len(hits)):.1%}, {seconds:.0f} s",
            flush=True,
        )
    recall, precision = np.mean(figures, axis=0)
    print(f"  mean: recall {recall:.1%}, precision {precision:.1%}", flush=True)


if __name__ == "__main__":
    main()
