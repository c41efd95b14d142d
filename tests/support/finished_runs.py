"""Small runs on digits, as photos and as arrays, for the tests of what is done with a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tlx
from tlx.data.images import ArrayImages

FIELDS: dict[str, Any] = {
    "backend": "loopback",
    "model": "tiny-mlp",
    "weights": "none",
    "image_size": 8,
    "epochs": 4,
    "batch_size": 16,
    "lr": 0.05,
    "val_fraction": 0,
    "quiet": True,
}
# A run on digits of a tenth of a second: 72 images to train on, 5 steps in an epoch.
ON_DIGITS: dict[str, Any] = {
    "backend": "loopback",
    "model": "tiny-mlp-dropout",
    "weights": "none",
    "data": "digits",
    "image_size": 8,
    "limit_train": 90,
    "limit_test": 40,
    "val_fraction": 0.2,
    "batch_size": 16,
    "epochs": 3,
    "lr": 0.05,
}
CLASSES = [str(digit) for digit in range(10)]


def load_digits() -> dict[str, ArrayImages]:
    """300 training images and 100 for the test."""
    data = tlx.load_data("digits", limit_train=300, limit_test=100, val_fraction=0)
    assert isinstance(data.train, ArrayImages) and isinstance(data.test, ArrayImages)
    return {"train": data.train, "test": data.test}


def save_as_photos(digits: dict[str, ArrayImages], folder: Path) -> Path:
    """The digits as photos of many sizes and shapes."""
    for part, images in digits.items():
        for i, label in enumerate(images.labels):
            path = folder / part / str(label) / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.open(i).resize((20 + i % 7, 20 + i % 5)).save(path)
    return folder


def accuracy(predictions: Sequence[Any], labels: Any) -> float:
    """The fraction that was predicted as its label."""
    correct = [bool(p["class"] == str(label)) for p, label in zip(predictions, labels, strict=True)]
    return sum(correct) / len(correct)
