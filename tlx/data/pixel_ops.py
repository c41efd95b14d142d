"""Augmentations of pixels: functions of an RGB image and of integers that the core has drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tlx.data.op import Op, Words

if TYPE_CHECKING:
    from PIL.Image import Image


def _between(word: int, low: int, high: int) -> int:
    """A whole number in ``low .. high`` from 32 random bits."""
    return low + (int(word) * (high - low + 1) >> 32)


def rotate(image: Image, words: Words, degrees: int) -> Image:
    """Turn by up to `degrees` either way, in hundredths; bilinear, the corners black. One word."""
    from PIL.Image import Resampling

    angle = _between(words[0], -100 * degrees, 100 * degrees) / 100
    return image.rotate(angle, Resampling.BILINEAR)


def color(image: Image, words: Words, percent: int) -> Image:
    """Scale brightness, contrast and saturation by 1 +- `percent` / 100, in this order. Three words.

    Torchvision's ColorJitter takes them in a random order, and shifts the hue if asked.
    """
    from PIL import ImageEnhance

    for kind, word in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), words, strict=True):
        image = kind(image).enhance(_between(word, 1000 - 10 * percent, 1000 + 10 * percent) / 1000)
    return image


def randaugment(image: Image, words: Words, magnitude: int) -> Image:
    """Two of fourteen changes at a magnitude of 0 to 30: Cubuk et al. 2020, the strengths those of torchvision.

    Two words for each: which change, and its sign.
    """
    for which, sign in words.reshape(-1, 2):
        level = (magnitude if sign & 1 else -magnitude) / 30
        image = CHANGES[_between(which, 0, len(CHANGES) - 1)](image, level)
    return image


def _affine(image: Image, *coefficients: float) -> Image:
    from PIL.Image import Transform

    return image.transform(image.size, Transform.AFFINE, coefficients)


def _enhance(kind: str) -> Callable[[Image, float], Image]:
    def change(image: Image, level: float) -> Image:
        from PIL import ImageEnhance

        enhanced: Image = getattr(ImageEnhance, kind)(image).enhance(1 + 0.9 * level)
        return enhanced

    return change


def _rotated(image: Image, level: float) -> Image:
    return image.rotate(30 * level)


def _posterized(image: Image, level: float) -> Image:
    from PIL import ImageOps

    return ImageOps.posterize(image, 8 - round(4 * abs(level)))


def _solarized(image: Image, level: float) -> Image:
    from PIL import ImageOps

    return ImageOps.solarize(image, round(255 * (1 - abs(level))))


def _contrasted(image: Image, level: float) -> Image:
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def _equalized(image: Image, level: float) -> Image:
    from PIL import ImageOps

    return ImageOps.equalize(image)


CHANGES: tuple[Callable[[Image, float], Image], ...] = (
    lambda image, level: image,
    lambda image, level: _affine(image, 1, 0.3 * level, 0, 0, 1, 0),
    lambda image, level: _affine(image, 1, 0, 0, 0.3 * level, 1, 0),
    lambda image, level: _affine(image, 1, 0, round(150 / 331 * image.width * level), 0, 1, 0),
    lambda image, level: _affine(image, 1, 0, 0, 0, 1, round(150 / 331 * image.height * level)),
    _rotated,
    _enhance("Brightness"),
    _enhance("Color"),
    _enhance("Contrast"),
    _enhance("Sharpness"),
    _posterized,
    _solarized,
    _contrasted,
    _equalized,
)

PIXEL_OPS = (
    Op(name="rotate", help="turned by up to so many degrees", words=1, strength=15, strongest=180, paint=rotate),
    Op(
        name="color",
        help="brightness, contrast and saturation changed by up to so many percent",
        words=3,
        strength=40,
        strongest=100,
        paint=color,
    ),
    Op(
        name="randaugment",
        help="two of fourteen changes at a magnitude",
        words=4,
        strength=9,
        strongest=30,
        paint=randaugment,
    ),
)
