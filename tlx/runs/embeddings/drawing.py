"""What the pictures of this folder share: a font, texts that fit, colours that everybody can tell apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.atomic import replacing
from tlx.errors import printable

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

PAPER, INK, QUIET, FAINT = "#ffffff", "#1b1f24", "#6b7280", "#e5e7eb"
# Okabe and Ito, "Color Universal Design", 2008; yellow is darker here, which white paper needs, and black is left out.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a800", "#5b5b5b")


@cache
def font(size: int) -> Any:
    """Return the font that comes with Pillow, at a size in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def fitting(text: str, size: int, width: float, *, end: bool = False) -> str:
    """Return a text as it may be drawn, with an ellipsis where it is wider; with `end`, its end stays."""
    text = printable(text)
    if len(text) > 400:  # no such width shows more
        text = text[-400:] if end else text[:400]
    letters = font(size)
    if letters.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        part = f"…{text[len(text) - middle :]}" if end else f"{text[:middle]}…"
        low, high = (middle, high) if letters.getlength(part) <= width else (low, middle - 1)
    return (f"…{text[len(text) - low :]}" if end else f"{text[:low]}…") if low else "…"


def write_text(
    draw: ImageDraw, place: tuple[float, float], text: str, size: int, colour: str = INK, anchor: str = "la"
) -> None:
    """Draw a line of text; see Pillow's text anchors."""
    draw.text(place, text, fill=colour, font=font(size), anchor=anchor)


def save(image: Image, target: Path) -> None:
    """Write a picture as PNG, in one step."""
    with replacing(target) as file:
        image.save(file, "PNG")
