"""A sheet of pictures: each query on the left, the images that are most like it on the right."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.data.images import read_photo
from tlx.data.view import View
from tlx.errors import DataError, TlxError
from tlx.runs.embeddings.drawing import (
    FAINT,
    INK,
    PALETTE,
    PAPER,
    QUIET,
    fitting,
    save,
    write_text,
)
from tlx.runs.embeddings.file import Header, as_path, check_out
from tlx.runs.embeddings.items import find_items
from tlx.runs.inputs import Input

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from tlx.runs.embeddings.similar import Neighbor

QUERIES, NEIGHBORS = 24, 36  # that a sheet shows; more would be no picture any more
COLUMNS = 6
TILE, GAP, EDGE, CAPTION, LARGE = 208, 20, 36, 74, 300  # pixels
SMALL = 64  # pixels of an image's side, up to which each of them is shown as a square

Opens = Callable[[View | None], Any]


def check_sheet(sheet: Any) -> Path:
    """Return where a sheet is written; TlxError where its name is that of no .png."""
    return check_out(sheet, (".png",))


def write_sheet(
    sheet: str | Path, queries: Sequence[tuple[Input, list[Neighbor]]], headers: Sequence[Header], max_pixels: int
) -> None:
    """Draw and write a sheet; where an image is no longer there, a grey square says so."""
    from PIL import Image, ImageDraw

    target, shown = check_sheet(sheet), [(item, found[:NEIGHBORS]) for item, found in queries[:QUERIES]]
    opens = _openers([one for _, found in shown for one in found], headers, max_pixels)
    heights = [_height(len(found)) for _, found in shown]
    left = EDGE + LARGE + 2 * GAP
    width = left + COLUMNS * (TILE + GAP) - GAP + EDGE
    size = (width, 2 * EDGE + sum(heights) + GAP * (len(heights) - 1) * 2 + (EDGE if len(queries) > QUERIES else 0))
    picture = Image.new("RGB", size, PAPER)
    draw, top = ImageDraw.Draw(picture), EDGE
    for number, ((item, found), height) in enumerate(zip(shown, heights, strict=True)):
        if number:
            draw.line((EDGE, top - GAP, width - EDGE, top - GAP), fill=FAINT, width=2)
        tile(picture, draw, (EDGE, top), LARGE, item.open, PALETTE[0])
        write_text(draw, (EDGE, top + LARGE + 10), "query", 18, QUIET)
        write_text(draw, (EDGE, top + LARGE + 34), fitting(item.name, 18, LARGE, end=True), 18)
        for place, one in enumerate(found):
            x = left + place % COLUMNS * (TILE + GAP)
            y = top + place // COLUMNS * (TILE + CAPTION + GAP)
            tile(picture, draw, (x, y), TILE, opens.get(one["index"], _nothing))
            _caption(draw, (x, y + TILE), one)
        top += height + 2 * GAP
    if len(queries) > QUERIES:
        write_text(draw, (EDGE, top), f"the first {QUERIES} of {len(queries):,} queries", 18, QUIET)
    save(picture, target)


def _height(neighbors: int) -> int:
    rows = -(-neighbors // COLUMNS)
    return max(LARGE + 64, rows * (TILE + CAPTION + GAP) - GAP)


def _caption(draw: ImageDraw, place: tuple[int, int], one: Neighbor) -> None:
    """The cosine as a bar and as a number, the label, and the end of the path."""
    x, y = place
    share = min(max(one["cosine"], 0.0), 1.0)
    draw.rectangle((x, y + 6, x + TILE - 1, y + 10), fill=FAINT)
    if share * (TILE - 1) >= 1:
        draw.rectangle((x, y + 6, x + share * (TILE - 1), y + 10), fill=PALETTE[0])
    write_text(draw, (x + TILE, y + 18), f"{one['cosine']:.3f}", 19, QUIET, "ra")
    label = one["label"]
    name = "no label" if label is None else label
    write_text(draw, (x, y + 18), fitting(name, 19, TILE - 64), 19, QUIET if label is None else INK)
    write_text(draw, (x, y + 44), fitting(one["path"], 15, TILE, end=True), 15, QUIET)


def tile(picture: Image, draw: ImageDraw, place: tuple[int, int], side: int, opens: Opens, frame: str = FAINT) -> None:
    """An image within a square, or a grey square where it cannot be opened."""
    x, y = place
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill="#f6f7f8")
    try:
        image = opens(None)
        scale = min(side / image.width, side / image.height)
        pixels = max(image.size) <= SMALL
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        from PIL import Image as module

        small = image.resize(size, module.Resampling.NEAREST if pixels else module.Resampling.LANCZOS)
        picture.paste(small, (x + (side - size[0]) // 2, y + (side - size[1]) // 2))
    except (TlxError, OSError, ValueError):
        draw.line((x, y, x + side - 1, y + side - 1), fill=FAINT, width=2)
        draw.line((x, y + side - 1, x + side - 1, y), fill=FAINT, width=2)
        middle = (x + side / 2, y + side / 2)
        draw.rectangle((middle[0] - 62, middle[1] - 16, middle[0] + 62, middle[1] + 16), fill="#f6f7f8")
        write_text(draw, middle, "not there now", 17, QUIET, "mm")
    draw.rectangle((x, y, x + side - 1, y + side - 1), outline=frame, width=1 if frame == FAINT else 4)


def _nothing(view: View | None) -> Any:
    raise DataError("it is no longer there")


def _openers(found: Iterable[Neighbor], headers: Sequence[Header], max_pixels: int) -> Mapping[int, Opens]:
    """Return what opens each image by its place in the data: its file, or else the data that the embeddings are of."""
    opens: dict[int, Opens] = {}
    missing: dict[int, str] = {}
    for one in found:
        path = Path(as_path(one["path"]))
        if os.path.isfile(path):
            opens[one["index"]] = partial(read_photo, path, max_pixels=max_pixels)
        else:
            missing[one["index"]] = one["path"]
    data = headers[0].facts.get("data")
    if not missing or not isinstance(data, str):
        return opens
    try:
        for item in find_items(data, None, max_pixels).items:
            if missing.get(item.index) == item.input.name:
                opens[item.index] = item.input.open
                del missing[item.index]
                if not missing:
                    break
    except TlxError:  # the data are gone, or changed
        pass
    return opens
