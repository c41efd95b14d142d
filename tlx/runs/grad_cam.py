"""Grad-CAM: which parts of an image speak for a class, as the model sees it.

Source: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based localization".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tlx.backend import Array, Batch, Explains
from tlx.backend.preprocess import enlarging
from tlx.errors import TlxError, closest, shown
from tlx.runs.finished import Finished

MOST = 400  # letters of a hint: a run may have ten thousand classes
Heat = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class HeatMaps:
    """What speaks for a class in each of some images.

    Attributes:
        heat: float32 [N, size, size] of 0 to 1, at the size of the network's input; the highest of each image is 1, or
            all of it is 0 where nothing speaks for the class.
        classes: int64 [N], the class that each map is of.
        logits: float64 [N, classes].
        layer: the path of the module at whose output the maps were taken.
    """

    heat: Heat
    classes: NDArray[np.int64]
    logits: NDArray[np.float64]
    layer: str


def grad_cam(values: Array, gradients: Array) -> NDArray[np.float64]:
    """Return the class-discriminative localization map of each image, float64 [N, rows, columns], at least 0.

    Each channel's weight is the mean over all cells of the gradient of the class's logit (equation 1); the map is the
    positive part of the channels' weighted sum (equation 2).

    Args:
        values: of the last map of features, [N, channels, rows, columns].
        gradients: of the class's logit to them, likewise.
    """
    weights = gradients.astype(np.float64).mean(axis=(2, 3))
    return np.asarray(np.maximum(np.einsum("nk,nkij->nij", weights, values.astype(np.float64)), 0.0))


def heated(maps: NDArray[np.float64], size: int) -> Heat:
    """Enlarge maps [N, rows, columns] bilinearly to float32 [N, size, size], and scale each to a highest value of 1."""
    rows, columns = (enlarging(side, size) for side in maps.shape[1:])
    large = rows @ maps @ columns.T
    highest = large.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(large, highest, out=np.zeros_like(large), where=highest > 0), np.float32)


def check_explained(run: Finished) -> None:
    """Raise TlxError where nothing of a run can be explained by Grad-CAM."""
    if run.voting is not None:
        problem = f"{run.run_dir} is of strategy knn: its neighbours vote, and no class has a logit to explain"
        raise TlxError(problem, fix="train with strategy probe")
    if not hasattr(run.backend, "feature_map"):
        raise TlxError(f"backend {run.backend.name!r} has no feature_map, which Grad-CAM needs; choose another backend")


def class_index(run: Finished, name: str) -> int:
    """Return the number of a class; raises TlxError where the run has none of that name."""
    classes = run.card.classes
    if name in classes:
        return classes.index(name)
    near = closest(str(name), classes)
    raise TlxError(f"The run has no class {shown(name)}.{near if len(near) < MOST else f' It has {len(classes)}.'}")


def heat_maps(run: Finished, images: Sequence[NDArray[np.uint8]], classes: Sequence[int] | None = None) -> HeatMaps:
    """Return for each image which parts of it speak for a class.

    Args:
        run: from `tlx.runs.finished.restore`; it is as it was afterwards.
        images: of `run.framing.pixels`, uint8 [3, h, w] each; one at least.
        classes: the class of each map; by default the one that the run predicts.

    Raises:
        BackendError: the model has no map of features of more than one cell.
        TlxError: the run is of strategy knn, the backend cannot do it, or the model's outputs are not finite.
    """
    check_explained(run)
    count, size, wanted = len(images), run.preprocess.size, None if classes is None else np.asarray(classes, np.int64)
    heat, logits = np.zeros((count, size, size), np.float32), np.zeros((count, len(run.card.classes)))
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, pixels in enumerate(images):
        by_size.setdefault(pixels.shape, []).append(place)
    step, layer = run.recipe.batch_size, ""
    for places in (all_[at : at + step] for all_ in by_size.values() for at in range(0, len(all_), step)):
        stacked = np.ascontiguousarray(np.stack([images[place] for place in places]))
        batch = Batch(stacked, np.zeros(len(places), np.int64), np.array(places, np.int64), run.preprocess)
        backend = cast(Explains, run.backend)
        chosen = None if wanted is None else wanted[places]
        seen = backend.feature_map(run.model, run.backend.put(run.model, batch), chosen)
        cells = grad_cam(seen.values, seen.gradients)
        if not (np.isfinite(seen.logits).all() and np.isfinite(cells).all()):
            raise TlxError(f"{run.run_dir}: the model's outputs are not finite")
        heat[places], logits[places], layer = heated(cells, size), seen.logits, seen.path
    return HeatMaps(heat, logits.argmax(axis=1) if wanted is None else wanted, logits, layer)


def as_seen(pixels: Array, size: int) -> NDArray[np.uint8]:
    """Return an image uint8 [3, h, w] as uint8 [size, size, 3]: as large as the network sees it."""
    if pixels.shape[1:] != (size, size):
        rows, columns = (enlarging(side, size) for side in pixels.shape[1:])
        pixels = np.rint(rows @ pixels.astype(np.float64) @ columns.T).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def probabilities(logits: NDArray[np.float64], temperature: float = 1.0) -> NDArray[Any]:
    """Return softmax(logits / temperature) over the last axis, in float64."""
    odds = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))
