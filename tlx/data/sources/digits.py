"""Scikit-learn's scanned digits, which need no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tlx.data.images import ArrayImages
from tlx.data.sources.source import Kind, Source
from tlx.data.split import check_labels


def digits(source: Any = None, root: Path | None = None) -> Source:
    """Scikit-learn's 1,797 scans of digits, 8 x 8 grey; of each class every fifth, in file order, is a test image."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    grey = (scans.images.astype(np.int64) * 255 // 16).astype(np.uint8)
    labels = check_labels(scans.target, 10, "digits")
    rank = np.empty_like(labels)
    for digit in range(10):
        rank[labels == digit] = np.arange(np.count_nonzero(labels == digit))
    whole = ArrayImages(np.repeat(grey[:, None], 3, axis=1), labels, [f"digits/{i}" for i in range(len(labels))])
    test = rank % 5 == 4
    parts = {
        part: whole.select(np.flatnonzero(chosen), labels[chosen])
        for part, chosen in (("train", ~test), ("test", test))
    }
    return Source("digits", tuple(str(i) for i in range(10)), parts)


DIGITS = Kind(name="digits", help="digits", read=digits)
