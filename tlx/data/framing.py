"""What evaluation keeps of an image, and how that becomes the network's input: the part of it that the host does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tlx.data.geometry import Box, centre_box, from_planes, planes, resize
from tlx.data.images import ArrayImages, Images, View

if TYPE_CHECKING:
    from PIL.Image import Image

Resize = Literal["centre", "whole", "shrink"]
RESIZES: tuple[Resize, ...] = get_args(Resize)


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image is cropped and resized for evaluation. Resampling is bilinear, antialiased where it shrinks.

    Attributes:
        size: height and width of the network's input.
        crop_fraction: fraction of the shorter side that is kept.
        resize: "centre": the central square, resized to `size` x `size`, as photos are; "whole": the whole image,
            resized to `size` x `size`; "shrink": the same, but only of an image that is larger, because the device
            enlarges smaller ones, as images of one size in memory are.
    """

    size: int
    crop_fraction: float
    resize: Resize

    @classmethod
    def of(cls, images: Images, size: int, crop_fraction: float | None = None) -> Framing:
        """What a part of a data set takes. Default of `crop_fraction`: 0.875 for photos, 1 for images of one size."""
        if crop_fraction is None:
            crop_fraction = 0.875 if images.size is None else 1.0
        if isinstance(images, ArrayImages):
            return cls(size, crop_fraction, "shrink")
        return cls(size, crop_fraction, "centre" if images.size is None or crop_fraction < 1 else "whole")

    def box(self, width: int, height: int) -> Box:
        """What is kept of an image that is resized to `size` x `size`."""
        if self.resize == "centre":
            return centre_box(width, height, self.size, self.crop_fraction)
        return (0, 0, width, height)

    def pixels(self, open_view: Callable[[View | None], Image]) -> NDArray[np.uint8]:
        """One image as the device takes it, uint8 [3, h, w]; `open_view` opens it, or a view of it."""
        if self.resize == "shrink":
            return np.asarray(self.shrink(planes(open_view(None))[None])[0])
        return planes(open_view(View(self.box, self.size)))

    def shrink(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images of one size, uint8 [N, 3, h, w]: centre-cropped, shrunk if larger than `size`, never enlarged."""
        height, width = array.shape[2:]
        if self.crop_fraction < 1:
            side = max(1, round(self.crop_fraction * min(height, width)))
            top, left = (height - side) // 2, (width - side) // 2
            array, height, width = array[:, :, top : top + side, left : left + side], side, side
        if max(height, width) <= self.size:
            return array
        small = np.empty((len(array), 3, self.size, self.size), dtype=np.uint8)
        for image, pixels in zip(small, array, strict=True):
            image[...] = planes(resize(from_planes(pixels), (0, 0, width, height), self.size))
        return small

    def facts(self) -> dict[str, Any]:
        """Everything that is done to the pixels beside `size` and `crop_fraction`, as plain values."""
        enlarged_on = "device" if self.resize == "shrink" else "host"
        return {
            "mode": "RGB",
            "resize": self.resize,
            "interpolation": "bilinear",
            "antialias": True,
            "enlarged_on": enlarged_on,
        }
