"""What is seen of an image: a box of it, resampled to the size of the network's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx.backend.preprocess import Interpolation, taps
from tlx.data.geometry import Box, from_planes, planes

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 2.0  # as Pillow's own `Image.thumbnail` has it


@dataclass(frozen=True, slots=True)
class Resampling:
    """How fewer or more pixels are made of some.

    Attributes:
        interpolation: between pixels. Bicubic is the cubic convolution of Keys 1981, with a = -0.5 as Pillow has it,
            and without antialias with a = -0.75 as PyTorch has it.
        antialias: where an image shrinks, average all pixels; otherwise only those next to each point are seen, as
            torchvision does with `antialias=False`.
    """

    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def resize(self, image: Image, box: Box, width: int, height: int) -> Image:
        """Resample a box of an RGB image to width x height."""
        from PIL.Image import Resampling as Filter

        if self.antialias:
            return image.resize((width, height), Filter[self.interpolation.upper()], box=box)
        return from_planes(self._points(planes(image), box, width, height))

    def _points(self, pixels: NDArray[np.uint8], box: Box, width: int, height: int) -> NDArray[np.uint8]:
        left, top, right, bottom = box
        (rows, down), (columns, across) = (
            taps(old, new, self.interpolation, start, length)
            for old, new, start, length in (
                (pixels.shape[1], height, top, bottom - top),
                (pixels.shape[2], width, left, right - left),
            )
        )
        total = np.zeros((3, height, width))
        # Products are added one by one: a matrix product would round otherwise on another processor.
        for row, share in zip(rows.T, down.T, strict=True):
            line = np.zeros((3, height, width))
            for column, weight in zip(columns.T, across.T, strict=True):
                line += pixels[:, row[:, None], column] * weight
            total += line * share[:, None]
        return np.clip(np.rint(total), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class View:
    """A box of an image, which may depend on its size, resampled to size x size.

    With `fill` it keeps the ratio of its sides, and margins of that colour, RGB, make it square.
    """

    box: Callable[[int, int], Box]  # of (width, height)
    size: int
    resampling: Resampling = Resampling()
    fill: tuple[int, int, int] | None = None

    def of(self, image: Image, box: Box | None = None) -> Image:
        """Take the view of an RGB image; of the box given, or of its own."""
        left, top, right, bottom = box = box or self.box(image.width, image.height)
        if self.fill is None:
            return self.resampling.resize(image, box, self.size, self.size)
        from PIL import Image as module

        across, down = right - left, bottom - top
        width, height = (max(1, round(self.size * side / max(across, down))) for side in (across, down))
        whole = module.new("RGB", (self.size, self.size), self.fill)
        whole.paste(
            self.resampling.resize(image, box, width, height), ((self.size - width) // 2, (self.size - height) // 2)
        )
        return whole

    def times(self, box: Box) -> int:
        """How many times smaller a box may be decoded: what is left is `GAP` times as large as what is made of it."""
        sides = box[2] - box[0], box[3] - box[1]
        smallest = min(sides) if self.fill is None else max(sides)
        return int(smallest / (GAP * self.size)) if self.resampling.antialias else 1
