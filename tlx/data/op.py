"""An augmentation op as a value: what it draws, in how many ways an image can come out, and what it does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx import rng

if TYPE_CHECKING:
    from PIL.Image import Image

Words = NDArray[np.uint32]
Crop = tuple[int, int, int, int]  # left, top, width, height in whole pixels of the source


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """A random change of one image.

    It draws from a stream of its own, "augment/<name>", so that adding an op changes nothing that the others draw.
    Exactly one of `crop`, `paint` and `move` says what it does, and with that when: first the crop is chosen from the
    original image, which is resampled to its final size; then each image is painted; last a batch is moved. Within a
    stage the ops follow the order of the table.

    Attributes:
        name: as it is written in a recipe; letters, digits and underscores.
        help: what it does, in a few words.
        words: random 32-bit words that it draws for each image.
        variants: in how many ways one image can come out, or None where there is no useful bound. The features of a
            frozen backbone are cached once per variant, so where this is given, the words of an image are replaced by
            one number in ``0 .. variants - 1``, on which alone the outcome may depend.
        strength: how strong it is unless a recipe says otherwise, as in ``rotate:30``; None: it takes no strength.
        strongest: the largest strength that a recipe may ask for.
        crop: takes an image's words, its width and height and the strength; returns left, top, width and height of the
            part to keep, in whole pixels.
        paint: takes an RGB image of its final size, its words and the strength; returns an image of the same size.
        move: takes uint8 images [n, 3, h, w], their words [n, words] and the strength (0 where the op takes none);
            changes the images in place.

    Raises:
        ValueError: the op contradicts itself.
    """

    name: str
    help: str
    words: int = 1
    variants: int | None = None
    strength: int | None = None
    strongest: int = 0
    crop: Callable[[Words, int, int, int], Crop] | None = None
    paint: Callable[[Image, Words, int], Image] | None = None
    move: Callable[[NDArray[np.uint8], Words, int], None] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"op {self.name!r}: a name has lower-case letters, digits and underscores only")
        if [self.crop, self.paint, self.move].count(None) != 2:
            raise ValueError(f"op {self.name!r}: give exactly one of crop, paint and move")
        if self.words < 1 or (self.variants is not None and (self.variants < 1 or self.words > 1)):
            raise ValueError(f"op {self.name!r}: expected at least one word, and one alone where variants are counted")
        if self.strength is not None and not 1 <= self.strength <= self.strongest:
            raise ValueError(f"op {self.name!r}: the strength must lie in 1 .. strongest, {self.strongest}")

    def draw(self, seed: int, epoch: int, count: int) -> Words:
        """Draw for samples ``0 .. count - 1`` of an epoch: uint32 [count, words], or [count, 1], see `variants`."""
        words = rng.words(seed, f"augment/{self.name}", epoch, count, self.words)
        if self.variants is None:
            return words
        return (words.astype(np.uint64) * np.uint64(self.variants) >> np.uint64(32)).astype(np.uint32)
