"""What evaluation keeps of an image, and how that becomes the network's input: the part of it that the host does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.backend import Preprocess
from tlx.backend.preprocess import Aspect
from tlx.data.geometry import Box, centre_box, from_planes, inner_box, planes
from tlx.data.images import ArrayImages, Images
from tlx.data.view import Resampling, View

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image is cropped and resized for evaluation.

    Attributes:
        size: height and width of the network's input.
        crop_fraction: fraction of the image's sides that is kept: of the shorter one where `aspect` is "crop".
        aspect: "crop" keeps the central square; "squash" changes the ratio of the sides; "letterbox" keeps it, and adds
            margins of the colour `fill`.
        resampling: how the host resizes.
        fill: red, green and blue: the model's mean, in whole numbers, so that margins are nearly 0 to the network.
        enlarges: whether the host enlarges what is smaller than `size`, as it does photos; otherwise the device does,
            as with images of one size in memory.
    """

    size: int
    crop_fraction: float
    aspect: Aspect
    resampling: Resampling
    fill: tuple[int, int, int]
    enlarges: bool

    @classmethod
    def of(
        cls,
        images: Images,
        preprocess: Preprocess,
        crop_fraction: float | None = None,
        aspect: Aspect | None = None,
        antialias: bool = True,
    ) -> Framing:
        """What a part of a data set takes.

        Default of `crop_fraction`: 0.875 for photos that are cropped, otherwise 1. Default of `aspect`: crop, but for
        images of one size that are taken whole squash.
        """
        photos = images.size is None
        if crop_fraction is None:
            crop_fraction = 0.875 if photos and aspect in (None, "crop") else 1.0
        return cls.from_preprocess(
            preprocess,
            crop_fraction,
            aspect or ("crop" if photos or crop_fraction < 1 else "squash"),
            antialias,
            not isinstance(images, ArrayImages),
        )

    @classmethod
    def from_preprocess(
        cls, preprocess: Preprocess, crop_fraction: float, aspect: Aspect, antialias: bool, enlarges: bool
    ) -> Framing:
        """Take from the preprocessing what it says of the host's part too."""
        red, green, blue = (min(max(round(255 * mean), 0), 255) for mean in preprocess.mean)
        resampling = Resampling(preprocess.interpolation, antialias)
        return cls(preprocess.size, crop_fraction, aspect, resampling, (red, green, blue), enlarges)

    def box(self, width: int, height: int) -> Box:
        """What is kept of an image that the host resizes."""
        return (centre_box if self.aspect == "crop" else inner_box)(width, height, self.size, self.crop_fraction)

    def view(self, box: Callable[[int, int], Box] | None = None) -> View:
        """The view of an image that becomes the network's input; `box` takes the place of what evaluation keeps."""
        fill = self.fill if self.aspect == "letterbox" and box is None else None
        return View(box or self.box, self.size, self.resampling, fill)

    def pixels(self, open_view: Callable[[View | None], Image]) -> NDArray[np.uint8]:
        """One image as the device takes it, uint8 [3, h, w]; `open_view` opens it, or a view of it."""
        if not self.enlarges:
            return np.asarray(self.shrink(planes(open_view(None))[None])[0])
        return planes(open_view(self.view()))

    def shrink(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images of one size, uint8 [N, 3, h, w]: centre-cropped, shrunk if larger than `size`, never enlarged."""
        height, width = self._kept(*array.shape[2:])
        top, left = (array.shape[2] - height) // 2, (array.shape[3] - width) // 2
        array = array[:, :, top : top + height, left : left + width]
        if max(height, width) <= self.size:
            return self._padded(array) if self.aspect == "letterbox" else array
        small = np.empty((len(array), 3, self.size, self.size), dtype=np.uint8)
        view = self.view()
        for image, pixels in zip(small, array, strict=True):
            image[...] = planes(view.of(from_planes(pixels), (0, 0, width, height)))
        return small

    def _kept(self, height: int, width: int) -> tuple[int, int]:
        sides = (min(height, width),) * 2 if self.aspect == "crop" else (height, width)
        return max(1, round(self.crop_fraction * sides[0])), max(1, round(self.crop_fraction * sides[1]))

    def _padded(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images that are square by margins; those that are square already as they are."""
        height, width = array.shape[2:]
        if height == width:
            return array
        side = max(height, width)
        square = np.empty((len(array), 3, side, side), dtype=np.uint8)
        square[...] = np.array(self.fill, np.uint8).reshape(3, 1, 1)
        top, left = (side - height) // 2, (side - width) // 2
        square[:, :, top : top + height, left : left + width] = array
        return square

    def facts(self) -> dict[str, Any]:
        """Everything that is done to the pixels beside `size` and `crop_fraction`, as plain values."""
        return {
            "mode": "RGB",
            "aspect": self.aspect,
            "interpolation": self.resampling.interpolation,
            "antialias": self.resampling.antialias,
            "fill": list(self.fill) if self.aspect == "letterbox" else None,
            "enlarged_on": "host" if self.enlarges else "device",
        }
