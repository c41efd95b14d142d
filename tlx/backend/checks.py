"""What every backend refuses, in the same words: names, shapes and dtypes that do not fit the model.

An adapter calls these where the protocol hands it something. Each raises BackendError, which lists both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, zip_longest

import numpy as np

from tlx.backend.optimizers import Array, OptimizerSpec
from tlx.backend.protocol import Arrays, Batch, ParamSpec
from tlx.errors import BackendError, closest


def check_known(names: Collection[str], known: Collection[str], what: str) -> None:
    """Raise BackendError, naming the nearest that is known, if one of the names is not; `what` says what they name."""
    for name in sorted(set(names) - set(known)):
        raise BackendError(f"the model has no {what} {name!r}.{closest(name, known)}")


def check_arrays(specs: Sequence[ParamSpec], arrays: Arrays) -> None:
    """Raise BackendError, listing both sides, unless names, shapes and dtypes are exactly those of `specs`."""
    expected = {spec.name: (spec.shape, spec.dtype) for spec in specs}
    actual = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    wrong = [
        f"{name}: model has {expected.get(name, 'nothing')}, arrays have {actual.get(name, 'nothing')}"
        for name in sorted(expected.keys() | actual.keys())
        if expected.get(name) != actual.get(name)
    ]
    if wrong:
        raise BackendError(f"{len(wrong)} arrays do not fit the model: {'; '.join(wrong[:5])}")


def check_alike(first: Sequence[ParamSpec], second: Sequence[ParamSpec]) -> None:
    """Raise BackendError, naming the first difference, unless two models have the same values in the same order."""
    for a, b in zip_longest(first, second):
        if a != b:
            sides = [f"{s.name} {list(s.shape)} {s.dtype}" if s else "nothing" for s in (a, b)]
            raise BackendError(f"The two models differ: one has {sides[0]} where the other has {sides[1]}")


def check_batch(batch: Batch, classes: int) -> None:
    """Raise BackendError unless labels and targets fit the number of classes, and pixels the preprocessing.

    The images of a batch that begins at a boundary may have any shape [N, ...] and dtype.
    """
    images, labels, count = batch.images, batch.labels, len(batch.images)
    if not batch.boundary:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise BackendError(f"Images are {images.dtype} {list(images.shape)}; expected uint8 [N, 3, h, w]")
        height, width = images.shape[2:]
        if max(height, width) > batch.preprocess.size:
            raise BackendError(
                f"Images of {height} x {width} pixels are larger than {batch.preprocess.size}; shrink them first"
            )
    if labels.dtype != np.int64 or labels.shape not in ((count,), (count, classes)) or not count:
        raise BackendError(
            f"Labels are {labels.dtype} {list(labels.shape)}; expected int64 [{count}] or [{count}, {classes}], and at "
            "least one"
        )
    last = classes - 1 if labels.ndim == 1 else 1
    if labels.min() < 0 or labels.max() > last:
        raise BackendError(f"A label is outside 0..{last}")
    check_targets(batch, classes)


def check_targets(batch: Batch, classes: int) -> None:
    """Raise BackendError unless the targets of a batch, if it has any, are finite float64 [N, classes]."""
    targets = batch.targets
    if targets is None:
        return
    if targets.dtype != np.float64 or targets.shape != (len(batch), classes):
        raise BackendError(
            f"Targets are {targets.dtype} {list(targets.shape)}; expected float64 [{len(batch)}, {classes}]"
        )
    if not np.isfinite(targets).all():
        raise BackendError("Targets hold a value that is not finite")


def check_groups(groups: Sequence[Sequence[str]], parameters: Collection[str]) -> None:
    """Raise BackendError unless every parameter is in exactly one group of an optimizer."""
    listed = list(chain.from_iterable(groups))
    check_known(listed, parameters, "parameter")
    twice = sorted({name for name in listed if listed.count(name) > 1})
    missing = sorted(set(parameters) - set(listed))
    if twice or missing:
        raise BackendError(f"Every parameter belongs in one group; in two: {twice}, in none: {missing}")


def slots_by_parameter(
    state: Arrays, spec: OptimizerSpec, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, Array]]:
    """Return the optimizer's state as parameter -> slot -> array.

    Args:
        state: arrays under ``"<parameter>/<slot>"``, as `dump_optimizer` of any backend returns them.
        spec: the optimizer, whose slots are expected.
        shapes: the parameters' shapes; a slot has its parameter's shape, but ``step`` is a single number.

    Raises:
        BackendError: a parameter or a slot is unknown, a shape does not fit, or a parameter lacks a slot.
    """
    slots: dict[str, dict[str, Array]] = {}
    for key, array in state.items():
        name, _, slot = key.rpartition("/")
        check_known([name], shapes, "parameter")
        if slot not in spec.slots:
            raise BackendError(f"Optimizer state {key!r}: {spec.name} has no slot {slot!r}.{closest(slot, spec.slots)}")
        shape = () if slot == "step" else shapes[name]
        if array.shape != shape:
            raise BackendError(f"Optimizer state {key!r} has shape {list(array.shape)}; expected {list(shape)}")
        slots.setdefault(name, {})[slot] = array
    for name, arrays in slots.items():
        if missing := sorted(set(spec.slots) - arrays.keys()):
            raise BackendError(f"Optimizer state of {name!r} lacks {', '.join(missing)}")
    return slots
