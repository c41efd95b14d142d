"""Augmentation as integers, drawn in the core, so that every backend sees the same images and a run can be replayed.

`OPS` is the one table of ops: what a recipe may write, what is drawn, how variants are counted and the help follow it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx.data.geometry import GEOMETRIC_OPS
from tlx.data.op import Crop, Op, Words
from tlx.data.pixel_ops import PIXEL_OPS
from tlx.errors import RecipeError, closest

if TYPE_CHECKING:
    from PIL.Image import Image

OPS: dict[str, Op] = {op.name: op for op in (*GEOMETRIC_OPS, *PIXEL_OPS)}
PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "flips": ("hflip", "vflip"),  # the CIFAR-10 tutorial
    "photo": ("crop", "hflip"),  # the ants-and-bees tutorial
    "strong": ("crop", "hflip", "randaugment"),  # as recent ImageNet recipes begin
}


def register(op: Op) -> None:
    """Add an op to the table, after those that are there, so that recipes can name it.

    Raises:
        RecipeError: an op or a preset has that name already.
    """
    if op.name in OPS or op.name in PRESETS:
        raise RecipeError(f"augmentation {op.name!r} is registered already", fix="give the op another name")
    OPS[op.name] = op


def describe_ops() -> str:
    """Say in one line what `augment` may be, for the help of the recipe's field."""
    example = next(f"{op.name}:{op.strength}" for op in OPS.values() if op.strength is not None)
    return f"{', '.join(PRESETS)}, or {', '.join(OPS)} joined with +; {example} sets a strength"


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What augmentation drew for some samples: for each op its strength and its words, uint32 [samples, words]."""

    samples: int
    ops: tuple[tuple[Op, int, Words], ...] = ()

    def __getitem__(self, slots: NDArray[np.int64]) -> Draws:
        return Draws(len(slots), tuple((op, strength, words[slots]) for op, strength, words in self.ops))

    @property
    def paints(self) -> bool:
        """Whether an op paints, for which each image must be taken by itself."""
        return any(op.paint for op, _, _ in self.ops)

    def crop(self, slot: int, width: int, height: int) -> Crop | None:
        """The random crop of an image of that size: left, top, width, height; None where no op crops."""
        for op, strength, words in self.ops:
            if op.crop:
                return op.crop(words[slot], width, height, strength)
        return None

    def paint(self, image: Image, slot: int) -> Image:
        """Change the pixels of one RGB image of its final size."""
        for op, strength, words in self.ops:
            if op.paint:
                image = op.paint(image, words[slot], strength)
        return image

    def move(self, images: NDArray[np.uint8]) -> None:
        """Rearrange the pixels of the images [samples, 3, h, w] in place."""
        for op, strength, words in self.ops:
            if op.move:
                op.move(images, words, strength)

    def variants(self) -> NDArray[np.int64]:
        """Which of its variants each sample comes in, int64 [samples]; all ops must have a number of variants."""
        number, factor = np.zeros(self.samples, np.int64), 1
        for op, _, words in self.ops:
            assert op.variants is not None, f"{op.name} has no number of variants"
            number += factor * words[:, 0].astype(np.int64)
            factor *= op.variants
        return number


@dataclass(frozen=True, slots=True)
class Augment:
    """Random changes of the training images, as a set of ops from `OPS`; printed as ``"crop+rotate:30"`` or ``"none"``.

    `strengths` are those that differ from the default: degrees of rotate, percent of color, magnitude of randaugment.
    """

    ops: tuple[str, ...] = ()
    strengths: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def parse(text: str) -> Augment:
        """Read a preset of `PRESETS` or ops joined by ``+``; the order in which they are written does not matter.

        Raises:
            RecipeError: an op is unknown, is written twice or has a strength out of range, or two ops crop.
        """
        if text in PRESETS:
            return Augment(PRESETS[text])
        names: list[str] = []
        strengths: dict[str, int] = {}
        for term in text.split("+"):
            name, colon, value = term.partition(":")
            if name in PRESETS and name != "none" and not colon:
                names += PRESETS[name]
                continue
            if name not in OPS:
                raise RecipeError(f"augment={text!r}: unknown op {name!r}.{closest(name, [*OPS, *PRESETS])}")
            names.append(name)
            if colon:
                strengths[name] = _strength(text, OPS[name], value)
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"augment={text!r}: {name!r} is given twice", fix="write each op once")
        cropping = [name for name in names if OPS[name].crop]
        if len(cropping) > 1:
            raise RecipeError(f"augment={text!r}: {' and '.join(cropping)} each choose the crop", fix="leave one out")
        ops = tuple(name for name in OPS if name in names)
        return Augment(ops, tuple((name, strengths[name]) for name in ops if name in strengths))

    def __str__(self) -> str:
        strengths = dict(self.strengths)
        return "+".join(f"{name}:{strengths[name]}" if name in strengths else name for name in self.ops) or "none"

    @property
    def crops(self) -> bool:
        """Whether an op chooses a crop of the original image."""
        return any(OPS[name].crop for name in self.ops)

    @property
    def variants(self) -> int | None:
        """In how many ways one image can come out, or None if there is no useful bound."""
        counts = [OPS[name].variants for name in self.ops]
        return None if None in counts else prod(count for count in counts if count is not None)

    def draw(self, seed: int, epoch: int, samples: int) -> Draws:
        """Draw the changes of samples ``0 .. samples - 1`` in an epoch."""
        strengths = dict(self.strengths)
        ops = [OPS[name] for name in self.ops]
        return Draws(
            samples,
            tuple((op, strengths.get(op.name, op.strength or 0), op.draw(seed, epoch, samples)) for op in ops),
        )


def _strength(text: str, op: Op, value: str) -> int:
    if op.strength is None:
        raise RecipeError(f"augment={text!r}: {op.name} takes no strength", fix=f"write {op.name!r}")
    if not re.fullmatch("0*[0-9]{1,9}", value) or not 1 <= int(value[-9:]) <= op.strongest:
        raise RecipeError(f"augment={text!r}: the strength of {op.name} must be a whole number in 1 .. {op.strongest}.")
    return int(value[-9:])
