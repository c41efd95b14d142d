"""Augmentation and evaluation geometry as integers, drawn in the core, so that it can be stored and replayed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.data.pixel_ops import PIXEL_OPS
from tlx.errors import RecipeError, closest

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in source pixels

# op -> (number of outcomes, random words per sample). Each op draws from its own stream, "augment/<op>", so adding one
# never changes what the others draw.
CROP_ATTEMPTS = 8
OPS: dict[str, tuple[int | None, int]] = {
    "crop": (None, 2 * CROP_ATTEMPTS),
    "hflip": (2, 1),
    "vflip": (2, 1),
    **{op: (None, words) for op, (_, words, _, _) in PIXEL_OPS.items()},
}
PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "flips": ("hflip", "vflip"),  # the CIFAR-10 tutorial
    "photo": ("crop", "hflip"),  # the ants-and-bees tutorial
    "strong": ("crop", "hflip", "randaugment"),  # as recent ImageNet recipes begin
}


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """What augmentation does to each sample; a field is None where its op is absent."""

    hflip: NDArray[np.bool_] | None = None  # [N]
    vflip: NDArray[np.bool_] | None = None  # [N]
    crop: NDArray[np.uint32] | None = None  # [N, 16]: see `crop_box`
    pixels: tuple[
        tuple[str, int, NDArray[np.uint32]], ...
    ] = ()  # (op, strength, words [N, ...]): see `tlx.data.pixel_ops`

    def __getitem__(self, rows: NDArray[np.int64]) -> Geometry:
        return Geometry(
            None if self.hflip is None else self.hflip[rows],
            None if self.vflip is None else self.vflip[rows],
            None if self.crop is None else self.crop[rows],
            tuple((op, strength, words[rows]) for op, strength, words in self.pixels),
        )

    def paint(self, image: Image, row: int) -> Image:
        """Change the pixels of one RGB image of its final size."""
        for op, strength, words in self.pixels:
            image = PIXEL_OPS[op][0](image, words[row], strength)
        return image

    def flip(self, images: NDArray[np.uint8]) -> None:
        """Mirror a batch [N, 3, h, w] in place."""
        if self.hflip is not None:
            images[self.hflip] = images[self.hflip][..., ::-1]
        if self.vflip is not None:
            images[self.vflip] = images[self.vflip][..., ::-1, :]


@dataclass(frozen=True, slots=True)
class Augment:
    """Random changes of the training images, as a set of ops from `OPS`; printed as ``"crop+rotate:30"`` or ``"none"``.

    `strengths` are those that differ from the default: degrees of rotate, percent of color, magnitude of randaugment.
    """

    ops: tuple[str, ...] = ()
    strengths: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def parse(text: str) -> Augment:
        """Read a preset of `PRESETS` or ops joined by ``+``; the order in which they are written does not matter."""
        if text in PRESETS:
            return Augment(PRESETS[text])
        wanted: list[str] = []
        strengths: dict[str, int] = {}
        for written in text.split("+"):
            op, colon, value = written.partition(":")
            if op in PRESETS and op != "none" and not colon:
                wanted += PRESETS[op]
                continue
            if op not in OPS:
                raise RecipeError(f"augment={text!r}: unknown op {op!r}.{closest(op, [*OPS, *PRESETS])}")
            wanted.append(op)
            if colon:
                strengths[op] = _strength(text, op, value)
        for op in wanted:
            if wanted.count(op) > 1:
                raise RecipeError(f"augment={text!r}: {op!r} is given twice.")
        ops = tuple(op for op in OPS if op in wanted)
        return Augment(ops, tuple((op, strengths[op]) for op in ops if op in strengths))

    def __str__(self) -> str:
        strengths = dict(self.strengths)
        return "+".join(f"{op}:{strengths[op]}" if op in strengths else op for op in self.ops) or "none"

    @property
    def finite(self) -> int | None:
        """In how many ways one image can come out, or None if there is no useful bound."""
        outcomes = [OPS[op][0] for op in self.ops]
        return None if None in outcomes else prod(n for n in outcomes if n is not None)

    def draw(self, seed: int, epoch: int, n: int) -> Geometry:
        """The geometry of samples ``0 .. n - 1`` in an epoch. A flip is the top bit of its word."""
        words = {op: rng.words(seed, f"augment/{op}", epoch, n, OPS[op][1]) for op in self.ops}
        flips = {op: words[op][:, 0] >= np.uint32(2**31) for op in ("hflip", "vflip") if op in words}
        strengths = {**{op: PIXEL_OPS[op][2] for op in words if op in PIXEL_OPS}, **dict(self.strengths)}
        pixels = tuple((op, strength, words[op]) for op, strength in strengths.items())
        return Geometry(flips.get("hflip"), flips.get("vflip"), words.get("crop"), pixels)


def _strength(text: str, op: str, value: str) -> int:
    if op not in PIXEL_OPS:
        raise RecipeError(f"augment={text!r}: {op} takes no strength; write {op!r}.")
    highest = PIXEL_OPS[op][3]
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= highest:
        raise RecipeError(f"augment={text!r}: the strength of {op} must be a whole number in 1 .. {highest}.")
    return int(value)


def crop_box(words: NDArray[np.uint32], width: int, height: int) -> tuple[int, int, int, int]:
    """A random crop: (left, top, width, height) in integer pixels, inside the image.

    Inception's crop as torchvision's RandomResizedCrop has it: 8 % to 100 % of the area, aspect 3/4 to 4/3, the first
    attempt that fits, else the central crop nearest to the allowed aspect. Per attempt two words: area (16 bits), which
    side is longer (1 bit), aspect (15 bits); left, top (16 bits each). The shorter side over the longer is uniform in
    3/4..1 where torchvision's is log-uniform: that needs no logarithm, and no square root but the integer one.
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


def resize(image: Image, box: Box, size: int) -> Image:
    """Resample a box of an image to size x size: bilinear, antialiased where it shrinks."""
    from PIL.Image import Resampling

    return image.resize((size, size), Resampling.BILINEAR, box=box)


def planes(image: Image) -> NDArray[np.uint8]:
    """An RGB image as uint8 [3, h, w]."""
    return np.asarray(image).transpose(2, 0, 1)
