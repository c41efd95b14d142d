"""Pictures of heat maps: the image as the network sees it, and beside it the same in grey under the heat."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

# Eleven steps of viridis (Nuñez, Anderton & Renslow 2018 compare it with others): even steps of heat look even, also
# without colours and to those who are blind to some.
# fmt: off
VIRIDIS = (
    0x440154, 0x482475, 0x414487, 0x355F8D, 0x2A788E, 0x21918C, 0x22A884, 0x44BF70, 0x7AD151, 0xBBDF27, 0xFDE725,
)
# fmt: on
SHARE = 0.75  # of the colour where the heat is highest; where there is none, the image is to be seen as it is
LEAST = 224  # pixels of a side of the picture's halves
MARGIN, LINE, TEXT = 8, 18, 14  # pixels: around the halves, from line to line, of letters


def colours(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return heat of 0 to 1 in colours, uint8 [..., 3]."""
    steps = np.array([[code >> 16, code >> 8 & 255, code & 255] for code in VIRIDIS], float)
    at = np.linspace(0, 1, len(steps))
    parts = [np.rint(np.interp(heat, at, steps[:, part])) for part in range(3)]
    return np.asarray(np.stack(parts, axis=-1), np.uint8)


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay heat [h, w] of 0 to 1 over an image uint8 [h, w, 3], which is shown in grey; where there is none, dimmed."""
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]  # luma of ITU-R BT.601, as Pillow's mode L
    share = (0.25 + (SHARE - 0.25) * heat)[..., None]
    return np.asarray(np.rint(grey * (1 - share) + colours(heat) * share), np.uint8)


def picture(image: NDArray[np.uint8], heat: NDArray[np.float32], lines: tuple[str, ...]) -> Image:
    """Draw an image uint8 [size, size, 3], the same under heat [size, size], and lines of text below them.

    Small images are enlarged by a whole factor, with pixels to be seen. Letters beyond Latin-1 are escaped, as the font
    that Pillow brings has no others.
    """
    from PIL import Image as module
    from PIL import ImageDraw

    factor = -(-LEAST // len(image))
    side = len(image) * factor
    halves = [np.repeat(np.repeat(half, factor, 0), factor, 1) for half in (image, overlay(image, heat))]
    whole = module.new("RGB", (2 * side + 3 * MARGIN, side + 2 * MARGIN + LINE * len(lines)), "white")
    for place, half in enumerate(halves):
        whole.paste(module.fromarray(half), (MARGIN + place * (side + MARGIN), MARGIN))
    draw = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        corner = (MARGIN, side + MARGIN + 2 + LINE * number)
        draw.text(corner, _fitting(line, whole.width - 2 * MARGIN), fill="black", font=_font())
    return whole


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(TEXT)


def _fitting(line: str, width: int) -> str:
    """Return a line of letters that the font has, cut off where it is wider than the picture."""
    line = line[:500].encode("latin-1", "backslashreplace").decode("latin-1")
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."
