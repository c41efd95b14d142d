"""Some images of a data set in a grid: with their labels, or with what a finished run takes them for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tlx import rng
from tlx.data.images import MAX_PIXELS
from tlx.errors import DataError, TlxError, closest
from tlx.runs.embeddings.drawing import FAINT, PALETTE, PAPER, QUIET, fitting, save, write_text
from tlx.runs.embeddings.items import Item, find_items
from tlx.runs.embeddings.sheet import check_sheet, tile
from tlx.runs.prediction import Prediction, predict

MOST = 144  # images of a picture; more would be none any more
TILE, GAP, EDGE, LINE = 160, 14, 20, 24  # pixels
RIGHT, WRONG = PALETTE[0], PALETTE[3]


def draw(
    data: Any,
    out: str | Path,
    *,
    run: str | Path | None = None,
    part: str | None = None,
    count: int = 32,
    seed: int = 0,
    data_root: str | Path | None = None,
    quiet: bool = False,
    model: Any = None,
    head: Any = None,
) -> Path:
    """Draw images in a grid, each with its label; with `run`, with what that run takes it for.

    Args:
        data: whatever `tlx.load_data` takes, or photos without labels, as for `tlx.embed`.
        out: the .png file. An existing one is replaced.
        run: a folder that `tlx run` wrote. Where the label is known and the class is another, both stand there.
        part: take images of this part alone: train, val or test, as the data have them.
        count: how many images, at most 144; all of them if there are fewer.
        seed: the same seed draws the same images.
        data_root: folder that holds a published data set, as in a recipe.
        quiet: do not say on stderr what the run cannot read.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Returns:
        `out`.

    Raises:
        TlxError: `count` is out of range, `out` is no .png, or there is no finished run in the folder.
        DataError: there is no such data or part.
    """
    target = check_sheet(out)
    if not 1 <= count <= MOST:
        raise TlxError(f"count is {count}; expected 1 to {MOST}")
    items = list(find_items(data, data_root, MAX_PIXELS).items)
    parts = list(dict.fromkeys(item.part for item in items))
    chosen = [item for item in items if part in (None, item.part)]
    if not chosen:
        there = f"the data has the parts {', '.join(parts)}" if parts else "the data has no image"
        raise DataError(f"no image of part {part!r}: {there}.{closest(str(part), parts)}")
    order = np.argsort(rng.words(seed, "drawn", 0, len(chosen), 1)[:, 0], kind="stable")
    some = [chosen[i] for i in order[:count]]
    found: list[Prediction] | None = None
    if run is not None:
        images = [item.input.open(None) for item in some]
        found = predict(run, images, top=1, quiet=quiet, model=model, head=head)
    _write(target, [_caption(item, None if found is None else found[i]) for i, item in enumerate(some)], some)
    return Path(out)


def _caption(item: Item, found: Prediction | None) -> tuple[str, str, str]:
    """Return two lines of text and the colour of the frame."""
    label = "no label" if item.label is None else item.label
    if found is None:
        return label, "", FAINT
    said = f"{found['class']} {found['probability']:.2f}"
    if item.label in (None, found["class"]):
        return said, "", FAINT if item.label is None else RIGHT
    return said, f"is {label}", WRONG


def _write(target: Path, captions: list[tuple[str, str, str]], items: list[Item]) -> None:
    from PIL import Image, ImageDraw

    columns = min(len(items), 8 if len(items) > 12 else 6 if len(items) % 6 == 0 else 4)
    lines = 2 if any(second for _, second, _ in captions) else 1
    step, rows = TILE + LINE * lines + GAP, -(-len(items) // columns)
    size = (2 * EDGE + columns * (TILE + GAP) - GAP, 2 * EDGE + rows * step - GAP)
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    for place, (item, (first, second, frame)) in enumerate(zip(items, captions, strict=True)):
        x, y = EDGE + place % columns * (TILE + GAP), EDGE + place // columns * step
        tile(picture, pen, (x, y), TILE, item.input.open, frame)
        write_text(pen, (x, y + TILE + 4), fitting(first, 16, TILE), 16)
        write_text(pen, (x, y + TILE + 4 + LINE), fitting(second, 16, TILE), 16, QUIET)
    save(picture, target)
