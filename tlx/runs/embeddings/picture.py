"""A map of embeddings as a picture: a point for each image, with the colour and the shape of its label."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx.errors import printable
from tlx.runs.embeddings.drawing import FAINT, INK, PALETTE, PAPER, QUIET, fitting, font, save, write_text

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

    from tlx.runs.embeddings.projection import EmbeddingMap

SIDE, EDGE, HEAD = 1200, 48, 132  # pixels of the map's longer side, around it, and above it
LOWEST = 560  # pixels of its height
TIMES = 3  # shapes are drawn so many times larger, and shrunk: Pillow draws without antialiasing
ROW, ROWS, COLUMN, WIDEST = 27, 34, 150, 400  # of the legend: pixels and rows, least and greatest pixels of a column
MARGIN = 62  # pixels of a column beside its texts
LABELS = 100  # that have a colour; the rarer ones are grey together
SHAPES = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "cross",
    "ring",
    "frame",
    "plus",
    "down",
    "star",
    "bar",
    "minus",
    "kite",
)
NUMBERED = len(PALETTE)  # from more labels on, numbers stand in the map as well

Styles = dict[str | None, tuple[str, str]]  # colour and shape of each label


def write_map(plane: EmbeddingMap, model: str, target: Path) -> None:
    """Draw a map and write it as PNG."""
    from PIL import Image, ImageDraw

    styles, counts = styles_of(plane.labels), Counter(plane.labels)
    legend = list(styles)
    numbers = {name: f"{number}  " for number, name in enumerate(legend, 1)} if len(legend) > NUMBERED else {}
    entries = [(numbers.get(name, "") + ("no label" if name is None else name), f"{counts[name]:,}") for name in legend]
    columns = -(-len(legend) // ROWS)
    column = _column(entries, WIDEST if columns == 1 else WIDEST * 2 // 3)
    places, height = _places(plane.coordinates)
    height = max(height, LOWEST, min(len(legend), ROWS) * ROW)
    places[:, 1] += HEAD + height / 2
    size = (2 * EDGE + SIDE + (EDGE // 2 + columns * column if legend else 0), HEAD + height + EDGE)
    large = Image.new("RGB", (size[0] * TIMES, size[1] * TIMES), PAPER)
    draw = ImageDraw.Draw(large)
    frame = (EDGE * TIMES, HEAD * TIMES, (EDGE + SIDE) * TIMES, (HEAD + height) * TIMES)
    draw.rectangle(frame, outline=FAINT, width=TIMES)
    radius = _radius(len(places))
    for place in _shuffled(len(places)):
        x, y = places[place]
        colour, shape = styles.get(plane.labels[place], (QUIET, "circle"))
        _draw(draw, shape, x * TIMES, y * TIMES, radius * TIMES, colour)
    spots = [_legend_spot(number, column) for number in range(len(legend))]
    for name, (x, y) in zip(legend, spots, strict=True):
        _draw(draw, styles[name][1], x * TIMES, y * TIMES, 7 * TIMES, styles[name][0])
    picture = large.reduce(TIMES)
    draw = ImageDraw.Draw(picture)
    total = f"{len(places):,} images" if len(places) == plane.images else f"{len(places):,} of {plane.images:,} images"
    write_text(draw, (EDGE, 66), fitting(f"{model}: {total}", 30, SIDE), 30, anchor="ls")
    write_text(draw, (EDGE, 104), fitting(plane.method, 18, SIDE), 18, QUIET, "ls")
    for (said, count), (x, y) in zip(entries, spots, strict=True):
        room = column - MARGIN - font(17).getlength(count)
        write_text(draw, (x + 16, y), fitting(said, 17, room), 17, anchor="lm")
        write_text(draw, (x + column - 30, y), count, 17, QUIET, "rm")
    if len(counts) > len(legend):
        rest = f"grey: {len(counts) - len(legend):,} rarer labels"
        write_text(draw, (EDGE + SIDE, 104), rest, 17, QUIET, "rs")
    _number(draw, plane, places, numbers)
    save(picture, target)


def styles_of(labels: list[str | None]) -> Styles:
    """Return the colour and the shape of each label, in their order; none where no image has a label."""
    counts = Counter(label for label in labels if label is not None)
    common = [name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:LABELS]]
    names = sorted(common, key=lambda name: (not name.isdecimal(), len(name) if name.isdecimal() else 0, name))
    pairs = ((PALETTE[i % len(PALETTE)], SHAPES[i // len(PALETTE) % len(SHAPES)]) for i in range(len(names)))
    styles: Styles = dict(zip(names, pairs, strict=True))
    if styles and len(labels) > counts.total():
        styles[None] = (FAINT, "circle")
    return styles


def _places(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Return points as pixels, from the middle downwards, and how high they reach; both axes have the same scale."""
    low, high = points.min(axis=0), points.max(axis=0)
    extent = float((high - low).max()) or 1.0
    scaled = (points - (low + high) / 2) / extent * (SIDE - 60)
    height = round((high - low)[1] / extent * (SIDE - 60)) + 60
    return np.asarray(np.stack([EDGE + SIDE / 2 + scaled[:, 0], -scaled[:, 1]], axis=1)), height


def _radius(points: int) -> float:
    return float(np.clip(46 / max(points, 1) ** 0.28, 4.0, 11.0))


def _shuffled(points: int) -> list[int]:
    """An order in which no label lies on top of all others: by the bits of a multiplicative hash (Knuth, 6.4)."""
    return sorted(range(points), key=lambda place: (place * 2654435761) % 2**32)


def _legend_spot(number: int, width: int) -> tuple[float, float]:
    column, row = divmod(number, ROWS)
    return EDGE + SIDE + EDGE // 2 + 10 + column * width, HEAD + 14 + row * ROW


def _column(entries: list[tuple[str, str]], widest: int) -> int:
    """Return how wide a column of the legend is for its names and their counts."""
    letters = font(17)
    wanted = (letters.getlength(printable(said[:100])) + letters.getlength(count) for said, count in entries)
    return round(min(max(COLUMN, MARGIN + 2 + max(wanted, default=0.0)), widest))


def _number(draw: ImageDraw, plane: EmbeddingMap, places: NDArray[np.float64], numbers: dict[str | None, str]) -> None:
    """Write each label's number where its images lie: at the one that is nearest to their median."""
    by_label: dict[str | None, list[int]] = {}
    for place, label in enumerate(plane.labels):
        by_label.setdefault(label, []).append(place)
    for name, text in numbers.items():
        if name is None:
            continue
        mine = places[by_label[name]]
        x, y = mine[np.linalg.norm(mine - np.median(mine, axis=0), axis=1).argmin()]
        draw.text((x, y), text.strip(), fill=INK, font=font(19), anchor="mm", stroke_width=4, stroke_fill=PAPER)


def _draw(draw: ImageDraw, shape: str, x: float, y: float, r: float, colour: str) -> None:
    thick, d = max(2, round(r * 0.5)), r * 0.88
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=PAPER, width=2)
    elif shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=thick)
    elif shape == "square":
        draw.rectangle((x - d, y - d, x + d, y + d), fill=colour, outline=PAPER, width=2)
    elif shape == "frame":
        draw.rectangle((x - d, y - d, x + d, y + d), outline=colour, width=thick)
    elif shape in ("triangle", "down"):
        up = -1 if shape == "triangle" else 1
        draw.polygon([(x - r, y - up * d), (x + r, y - up * d), (x, y + up * r)], fill=colour, outline=PAPER)
    elif shape == "diamond":
        draw.polygon([(x - r, y), (x, y - 1.2 * r), (x + r, y), (x, y + 1.2 * r)], fill=colour, outline=PAPER)
    elif shape == "kite":
        draw.polygon([(x - r, y), (x, y - 1.2 * r), (x + r, y), (x, y + 1.2 * r)], outline=colour, width=thick)
    elif shape == "bar":
        draw.rectangle((x - r * 0.4, y - r * 1.2, x + r * 0.4, y + r * 1.2), fill=colour, outline=PAPER, width=2)
    elif shape == "minus":
        draw.rectangle((x - r * 1.2, y - r * 0.4, x + r * 1.2, y + r * 0.4), fill=colour, outline=PAPER, width=2)
    lines = {
        "cross": ((-d, -d, d, d), (-d, d, d, -d)),
        "plus": ((-r, 0, r, 0), (0, -r, 0, r)),
        "star": (
            (-r, 0, r, 0),
            (0, -r, 0, r),
            (-d * 0.8, -d * 0.8, d * 0.8, d * 0.8),
            (-d * 0.8, d * 0.8, d * 0.8, -d * 0.8),
        ),
    }
    for x0, y0, x1, y1 in lines.get(shape, ()):
        draw.line((x + x0, y + y0, x + x1, y + y1), fill=colour, width=thick)
