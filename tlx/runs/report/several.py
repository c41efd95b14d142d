"""What a page shows of a part whose images may have several labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.data import Images
from tlx.data.framing import Framing
from tlx.data.multilabel import joined
from tlx.runs.logits import Spool
from tlx.runs.report.judged import opened, path_of
from tlx.runs.scores import CLASS_ROWS
from tlx.training.multilabel import ClassFigures, Figures, figures, losses_of, probabilities

if TYPE_CHECKING:
    from PIL.Image import Image

NONE = "no label"  # of an image to which no class applies
NAMES = 6  # labels of an image that are written out; of more, how many more there are


@dataclass(frozen=True, slots=True, eq=False)
class Several:
    """The predictions of N images of a part to which K classes may apply, in its order.

    Attributes:
        labels: of 0 and 1, int64 [N, K].
        logits: [N, K].
        thresholds: of each class, the probability from which on it is said to apply, [K].
        name: path or name of an image, by its row.
        open: an image as a thumbnail, by its row; raises where it cannot be had. None: no image can.
    """

    labels: NDArray[np.int64]
    logits: NDArray[Any]
    thresholds: NDArray[np.float64]
    name: Callable[[int], str]
    open: Callable[[int], Image] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def several_by(spool: Spool, images: Images, framing: Framing, thresholds: Sequence[float]) -> Several:
    """Return what the logits of a part say."""
    logits = np.concatenate(list(spool.blocks()))
    name, opening = partial(path_of, images), partial(opened, images, framing)
    return Several(images.labels, logits, np.array(thresholds), name, opening)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The figures of a part, the classes of its table, and the images with the highest loss.

    `random` is the mAP of answers that rank the images at random: of each class that occurs the share of the images
    that have it. `exact` is the share of the images whose answers are all right.
    """

    figures: Figures
    rows: list[ClassFigures]
    shots: list[dict[str, Any]]
    random: float
    exact: float


def shown_of(
    several: Several, classes: Sequence[str], most: int, tile: Callable[[Several, int], int] = lambda part, row: 0
) -> Shown:
    """Return what a page says of a part, with its `most` worst images, whose thumbnails `tile` numbers."""
    found = figures(several.logits, several.labels, several.thresholds, classes)
    odds, losses = probabilities(several.logits), losses_of(several.logits, several.labels)
    answers, occurs = odds >= several.thresholds, several.labels.any(axis=0)
    rows = found["classes"]
    if len(rows) > CLASS_ROWS:
        occurring = [row for row in rows if row["images"]]
        ranked = sorted(occurring, key=lambda row: row["average_precision"] or 0.0)
        lowest = {row["class"] for row in ranked[:CLASS_ROWS]}
        rows = [row for row in occurring if row["class"] in lowest]
    exact = (answers == (several.labels == 1)).all(axis=1)
    shots = []
    for row in np.argsort(-losses, kind="stable")[:most].tolist():
        labels = several.labels[row]
        wrong = np.where(labels == 1, 1 - odds[row], odds[row])
        shots.append(
            {
                "tile": tile(several, row),
                "labels": named(labels, classes),
                "answers": named(answers[row], classes),
                "correct": bool(exact[row]),
                "loss": float(losses[row]),
                "worst": classes[int(wrong.argmax())],
                "probability": float(odds[row][wrong.argmax()]),
                "path": several.name(row),
            }
        )
    share = float(several.labels.mean(axis=0)[occurs].mean()) if occurs.any() else 0.0
    return Shown(found, rows, shots, share, float(exact.mean()))


def named(row: NDArray[Any], classes: Sequence[str]) -> str:
    """Write the labels of an image, by its row [K], for a page."""
    applying = np.flatnonzero(row)
    text = joined(np.isin(np.arange(len(classes)), applying[:NAMES]), classes).replace("|", ", ")
    more = f" and {len(applying) - NAMES} more" if len(applying) > NAMES else ""
    return f"{text}{more}" or NONE
