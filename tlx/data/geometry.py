"""Where the pixels of an image come from: random crops and flips, the centre that evaluation keeps, and resampling."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx.data.op import Crop, Op, Words

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in source pixels
CROP_ATTEMPTS = 8


def crop_box(words: Words, width: int, height: int) -> Crop:
    """A random crop: (left, top, width, height) in integer pixels, inside the image.

    Inception's crop as torchvision's RandomResizedCrop has it: 8 % to 100 % of the area, aspect 3/4 to 4/3, the first
    attempt that fits, or otherwise the central crop nearest to the allowed aspect. Per attempt two words: area (16
    bits), which side is longer (1 bit), aspect (15 bits); left, top (16 bits each). The shorter side over the longer is
    uniform in 3/4..1 where torchvision's is log-uniform: that needs no logarithm, and only the integer square root.
    """
    for k in range(0, len(words), 2):
        first, second = int(words[k]), int(words[k + 1])
        area = width * height * (8 * 65536 + 92 * (first >> 16)) // (100 * 65536)
        short, long = 3 * 32768 + (first & 32767), 4 * 32768
        across, down = (long, short) if first & 32768 else (short, long)
        w, h = max(1, isqrt(area * across // down)), max(1, isqrt(area * down // across))
        if w <= width and h <= height:
            return ((width - w + 1) * (second >> 16) >> 16, (height - h + 1) * (second & 65535) >> 16, w, h)
    w, h = min(width, max(1, height * 4 // 3)), min(height, max(1, width * 4 // 3))
    return ((width - w) // 2, (height - h) // 2, w, h)


def crop(words: Words, width: int, height: int, strength: int) -> Crop:
    """The op of `crop_box`, which takes no strength."""
    return crop_box(words, width, height)


def hflip(images: NDArray[np.uint8], words: Words, strength: int) -> None:
    """Mirror those images of a batch [n, 3, h, w] left to right, in place, whose number is 1."""
    flipped = words[:, 0] == 1
    images[flipped] = images[flipped][..., ::-1]


def vflip(images: NDArray[np.uint8], words: Words, strength: int) -> None:
    """Mirror those images of a batch [n, 3, h, w] top to bottom, in place, whose number is 1."""
    flipped = words[:, 0] == 1
    images[flipped] = images[flipped][..., ::-1, :]


GEOMETRIC_OPS = (
    Op(name="crop", help="random crop of 8 % to 100 % of the area", words=2 * CROP_ATTEMPTS, crop=crop),
    Op(name="hflip", help="half of the images mirrored left to right", variants=2, move=hflip),
    Op(name="vflip", help="half of the images mirrored top to bottom", variants=2, move=vflip),
)


def centre_box(width: int, height: int, size: int, crop_fraction: float) -> Box:
    """What evaluation keeps of a photo, whatever its size: the source of the central `size` x `size` pixels.

    They are central once the shorter side is resized to ``round(size / crop_fraction)``; the rounding is that of
    torchvision's Resize and CenterCrop.
    """
    target = round(size / crop_fraction)
    if width <= height:
        w, h = target, target * height // width
    else:
        w, h = target * width // height, target
    left, top = round((w - size) / 2), round((h - size) / 2)
    return (left * width / w, top * height / h, (left + size) * width / w, (top + size) * height / h)


def inner_box(width: int, height: int, size: int, crop_fraction: float) -> Box:
    """What evaluation keeps of a photo in the ratio of its sides: all of it, with a `crop_fraction` of 1.

    It is the source of the central `size` x `size` pixels, once both sides are ``round(size / crop_fraction)`` long.
    """
    target = round(size / crop_fraction)
    first = round((target - size) / 2)
    last = first + size
    return (first * width / target, first * height / target, last * width / target, last * height / target)


def planes(image: Image) -> NDArray[np.uint8]:
    """An RGB image as uint8 [3, h, w]."""
    return np.asarray(image).transpose(2, 0, 1)


def from_planes(pixels: NDArray[np.uint8]) -> Image:
    """uint8 [3, h, w] as an RGB image."""
    from PIL import Image as module

    return module.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
