"""What a run predicted for each image of a part, as numbers, and how the images are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tlx.data import FileImages, Images
from tlx.data.framing import Framing
from tlx.data.images import read_photo
from tlx.data.view import Resampling, View
from tlx.runs.logits import Spool
from tlx.runs.table import Predictions, measured, readable

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 128  # pixels of a thumbnail's side; images of one size that are smaller keep theirs

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The predictions of N images of a part, in its order.

    Attributes:
        labels: class of each image [N].
        predictions: predicted class [N].
        probability: of the prediction [N].
        loss: -log of the label's probability, in nats [N].
        margin: the highest probability minus the second highest [N].
        calibrated: probability of the prediction with the run's temperature [N]; None where it has none.
        name: path or name of an image, by its row.
        open: an image as a thumbnail, by its row; raises where it cannot be had. None: no image can.
    """

    labels: Places
    predictions: Places
    probability: Numbers
    loss: Numbers
    margin: Numbers
    calibrated: Numbers | None
    name: Callable[[int], str]
    open: Callable[[int], Image] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the prediction is the label [N]."""
        return np.equal(self.labels, self.predictions)


def judged_by(spool: Spool, images: Images, framing: Framing, temperature: float | None) -> Judged:
    """Return what the logits of a part say, block by block, so that memory holds a few numbers for each image."""
    columns: list[tuple[NDArray[np.int64] | Numbers, ...]] = []
    softened, at = list[Numbers](), 0
    for logits in spool.blocks():
        labels = images.labels[at : at + len(logits)]
        at += len(logits)
        columns.append(measured(logits, labels))
        if temperature is not None:
            softened.append(measured(logits / np.float64(temperature), labels)[1])
    first, probability, loss, margin = (np.concatenate(column) for column in zip(*columns, strict=True))
    calibrated = np.concatenate(softened) if softened else None
    name, opening = partial(path_of, images), partial(opened, images, framing)
    return Judged(images.labels, first, probability, loss, margin, calibrated, name, opening)


def judged_in(
    table: Predictions, classes: Sequence[str], temperature: float | None, opening: Callable[[int], Image] | None
) -> Judged:
    """Return what a run's table says of a part; `opening` is how its images are opened, where they can be had."""
    places = {readable(name): place for place, name in enumerate(classes)}
    labels = np.array([places[name] for name in table["label"]], np.int64)
    first = np.array([places[name] for name in table["prediction"]], np.int64)
    calibrated = None
    if temperature is not None:
        calibrated = measured(table["logits"] / np.float64(temperature), labels)[1]
    figures = table["probability"], table["loss"], table["margin"], calibrated
    return Judged(labels, first, *figures, table["path"].__getitem__, opening)


def path_of(images: Images, row: int) -> str:
    """Return the path or the name of an image."""
    return str(images.root / images.names[row]) if isinstance(images, FileImages) else images.names[row]


def opened(images: Images, framing: Framing, row: int) -> Image:
    """Return an image as evaluation sees it: what it keeps of a photo, at most `TILE` pixels wide and high.

    Raises DataError where it cannot be decoded.
    """
    alone = images.select(np.array([row]), images.labels[[row]])  # a part tries all others where one cannot be decoded
    if images.size is not None and max(images.size) <= TILE:
        return alone.open(0)
    return alone.open(0, _view(framing))


def opened_at(paths: Sequence[str], framing: Framing, row: int) -> Image:
    """Return a photo from where it lay. Raises DataError where it is there no more."""
    return read_photo(Path(paths[row]), _view(framing))


def _view(framing: Framing) -> View:
    size = max(min(TILE, framing.size), 64)  # no finer than what the network sees
    return View(framing.box, size, Resampling(), framing.fill if framing.aspect == "letterbox" else None)
