"""A small data set as Python programs have them, and what is asked of loading it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlx.data import Data, load_data
from tlx.errors import DataError

COUNT = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3
WHOLE: dict[str, Any] = {"val_fraction": 0, "test_fraction": 0}


class Listed:
    """A data set as Python programs have them: length, items, and whatever attributes are given."""

    def __init__(self, labels: Any = LABELS, images: Any = PIXELS, **attributes: Any) -> None:
        self.of, self.images, self.reads, self.decode = labels, images, 0, True
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        self.reads += 1
        image = self.images[i]
        if isinstance(image, Exception):
            raise image
        pillow = self.decode and isinstance(image, np.ndarray) and image.dtype == np.uint8
        return (Image.fromarray(image) if pillow else image), self.of[i]


def refused(source: Any, *parts: str, **options: Any) -> None:
    """It is refused in one line that says all this."""
    with pytest.raises(DataError) as error:
        load_data(source, **{**WHOLE, **options})
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value), str(error.value)


def noted(data: Data, part: str) -> bool:
    return any(part in note for note in data.notes)
