"""Real images to which several classes apply: properties of scanned digits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = ("even", "above four", "prime", "has a loop")


def properties(digits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of `CLASSES` apply to each digit, int64 [N, 4]; none to 1."""
    columns = (digits % 2 == 0, digits > 4, np.isin(digits, (2, 3, 5, 7)), np.isin(digits, (0, 6, 8, 9)))
    return np.asarray(np.stack(columns, axis=1).astype(np.int64))


def digits(count: int = 1797) -> dict[str, Any]:
    """The first scans of digits with their properties, as `data=`."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = (scans.images[:count] * 255 / 16).astype(np.uint8)
    return {"all": (images, properties(scans.target[:count])), "classes": list(CLASSES)}
