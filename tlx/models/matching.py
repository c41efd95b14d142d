"""Fit the arrays of a checkpoint to a model: by name, shape and dtype, strictly; and what a stranger's names hide."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tlx.backend import Array, Arrays, ParamSpec
from tlx.errors import WeightsError
from tlx.models.formats import some
from tlx.models.positions import fit_positions
from tlx.models.pth import NESTED
from tlx.models.weights import first_not_finite
from tlx.models.zoo import Architecture

_COUNTER = ".num_batches_tracked"  # BatchNorm's, which checkpoints from before 2018 lack
_NEAREST = 4  # missing names for which the nearest one is looked up
# Among how many names, and of which length: comparing two takes the square of their length.
_COMPARED, _COMPARABLE = 1000, 100
_DEEPEST = 32  # modules around a backbone, whose prefix is looked for


def match(
    arrays: Arrays, specs: Iterable[ParamSpec], *, head: str, model_name: str, take_head: bool
) -> dict[str, Array]:
    """Return what a model takes from a checkpoint, in the order of `specs` and in their dtypes.

    Everything outside the module `head` must be there, once and in its shape, and nothing else may be. The head's own
    entries are dropped, or with `take_head` required like all others. BatchNorm's batch counter starts at 0 if an older
    checkpoint has none. Floats are cast to the dtype of their spec.

    Raises:
        WeightsError: entries are missing, left over, misshapen, of another kind of dtype or not finite; it lists them.
    """
    inner = head + "."
    specs = list(specs)
    arrays = _by_first_names(arrays, specs, model_name)
    wanted = {spec.name: spec for spec in specs if take_head or not spec.name.startswith(inner)}
    offered = {name: array for name, array in arrays.items() if take_head or not name.startswith(inner)}
    missing = [name for name in wanted if name not in offered and not name.endswith(_COUNTER)]
    extra = [name for name in offered if name not in wanted]
    unfit = [
        f"{name} {list(offered[name].shape)} {offered[name].dtype} (model: {list(spec.shape)} {spec.dtype})"
        for name, spec in wanted.items()
        if name in offered and not (offered[name].shape == spec.shape and _castable(offered[name], spec))
    ]
    hints = [_with_nearest(name, extra) for name in missing[:_NEAREST]] + missing[_NEAREST:]
    faults = {"missing": hints, "not in the model": extra, "of another shape or dtype": unfit}
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {some(names)}" for fault, names in faults.items() if names)
        raise WeightsError(f"Weights do not fit {model_name}: {listed}. Are they of another architecture?")
    taken = {
        name: _cast(offered[name], spec) if name in offered else np.zeros(spec.shape, spec.dtype)
        for name, spec in wanted.items()
    }
    if broken := [name for name in taken if first_not_finite({name: taken[name]}, (wanted[name],))]:
        raise WeightsError(
            f"Weights for {model_name} are not finite (NaN or infinite) in {len(broken)} entries: {some(broken)}",
            fix="the training that wrote them had diverged; take an earlier checkpoint",
        )
    return taken


def _by_first_names(arrays: Arrays, specs: Iterable[ParamSpec], model_name: str) -> dict[str, Array]:
    """Return a checkpoint without the further names of values that have several, which must be equal under all."""
    result = dict(arrays)
    for spec in specs:
        for alias in (alias for alias in spec.aliases if alias in result):
            value = result.pop(alias)
            if not np.array_equal(result.setdefault(spec.name, value), value):
                raise WeightsError(
                    f"Weights do not fit {model_name}: {spec.name} and {alias} are one value in it, but differ"
                )
    return result


def _castable(array: Array, spec: ParamSpec) -> bool:
    kinds = array.dtype.kind + np.dtype(spec.dtype).kind
    return kinds == "ff" or (kinds[1] in "iu" and np.can_cast(array.dtype, spec.dtype, "same_kind"))


def _cast(array: Array, spec: ParamSpec) -> Array:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which `match` refuses by name
        return array.astype(spec.dtype, copy=False)


def _with_nearest(name: str, extra: Sequence[str]) -> str:
    comparable = [other for other in extra[:_COMPARED] if len(other) <= _COMPARABLE]
    nearest = difflib.get_close_matches(name, comparable, n=1, cutoff=0.6)
    return f"{name} (nearest in the file: {nearest[0]})" if nearest else name


def match_backbone(
    arrays: Arrays,
    specs: Sequence[ParamSpec],
    arch: Architecture,
    translated: Callable[[Arrays], Arrays] | None = None,
) -> tuple[dict[str, Array], list[str]]:
    """Return what a model's backbone takes from anybody's checkpoint, and notes on what was done to make it fit.

    A prefix of the names is taken off where the backbone lies below it, as wrappers leave it (``module.``,
    ``model.backbone.``). Beside the backbone, which must fit strictly, other entries may lie; they are left aside.
    `translated` brings the names and shapes of other layouts that a library knows into the model's.

    Raises:
        WeightsError: the backbone does not fit; see `match`.
    """
    backbone = [spec.name for spec in specs if not _covers(arch.head, spec.name)]
    prefix, rivals = _prefix(arrays, backbone)
    below: Arrays = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if translated is not None:
        if 2 * sum(name in below for name in backbone) < len(backbone):  # names of another layout, alike by chance
            prefix, rivals, below = "", [], arrays
        below = translated(below)
    named, resampled = fit_positions(arch.translate(below), specs, arch)
    inner = _by_first_names(named, specs, arch.name)
    head = {name: array for name, array in inner.items() if _covers(arch.head, name)}
    containers = {_container(path) for _, paths in arch.stages for path in paths}
    containers = containers - {""} or containers  # the model's own module is around whatever lies beside
    wanted = {*backbone, *head}
    aside = [name for name in inner if name not in wanted and not any(_covers(path, name) for path in containers)]
    notes = resampled
    if prefix:
        notes.append(f"prefix {prefix!r} is taken off {len(below)} names")
    if rivals:
        notes.append(f"the backbone lies there more than once; beside the one taken, under {some(map(repr, rivals))}")
    if left := [name for name in arrays if not name.startswith(prefix)] + [f"{prefix}{name}" for name in aside]:
        notes.append(f"{len(left)} entries are not of the backbone and are left aside: {some(left)}")
    if head:
        outputs = next(iter(head.values())).shape[:1]
        notes.append(f"the head {arch.head!r}{f' of {outputs[0]} outputs' if outputs else ''} is left aside")
    fitting = {name: array for name, array in inner.items() if name not in aside}
    return match(fitting, specs, head=arch.head, model_name=arch.name, take_head=False), notes


def _prefix(arrays: Arrays, backbone: Iterable[str]) -> tuple[str, list[str]]:
    """Return the prefix below which most of the backbone's names lie, and others below which as many do."""
    wanted = set(backbone)
    counts: Counter[str] = Counter()
    for name in arrays:
        parts = name.split(".")
        for depth in range(min(len(parts), _DEEPEST)):
            if ".".join(parts[depth:]) in wanted:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    most = max(counts.values(), default=0)
    best = sorted((prefix for prefix, number in counts.items() if number == most), key=_rank) or [""]
    return best[0], best[1:] if most > 1 else []


def _rank(prefix: str) -> list[int]:
    """Order prefixes as the keys of a checkpoint are: plain weights before averages, a teacher before its student."""
    return [NESTED.index(part) if part in NESTED else len(NESTED) for part in prefix.split(".")[:-1]]


def _container(path: str) -> str:
    """Return what a stage's path vouches for: the path itself or, of a numbered child, all its siblings too."""
    parent, _, last = path.rpartition(".")
    return parent if last.isdigit() else path


def _covers(path: str, name: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def match_head(
    arrays: Arrays, specs: Sequence[ParamSpec], arch: Architecture, known: Sequence[str], classes: Sequence[str]
) -> tuple[dict[str, Array], str]:
    """Return a run's head for the same classes, its rows in their present order, and a note; nothing for others.

    Args:
        arrays: of the finished run.
        specs: of the model, whose head has a row for each class.
        arch: the model's layout.
        known: the classes of the finished run, in the order of its outputs.
        classes: those of the new run.
    """
    wanted = [spec for spec in specs if _covers(arch.head, spec.name)]
    if sorted(known) != sorted(classes):
        return {}, f"its classes are others ({some(known)}), so the head is drawn anew"
    if not any(spec.name in arrays for spec in wanted):
        return {}, "it has no head, so the head is drawn anew"
    if not all(s.name in arrays and arrays[s.name].shape == s.shape and _castable(arrays[s.name], s) for s in wanted):
        return {}, "its head is of another form, so the head is drawn anew"
    places = {name: place for place, name in enumerate(known)}
    order = [places[name] for name in classes]
    moves = order != sorted(order)
    last = {spec.name for spec in wanted if spec.module == wanted[-1].module}  # hidden layers have no row for a class
    if moves and any(arrays[name].shape[:1] != (len(known),) for name in last):
        return {}, "its classes are in another order and its last layer has no row for each, so the head is drawn anew"
    rows: Mapping[str, Array] = {s.name: arrays[s.name][order] if s.name in last else arrays[s.name] for s in wanted}
    head = match(rows, wanted, head=arch.head, model_name=arch.name, take_head=True)
    moved = "" if not moves else "; its outputs are put into the order of the classes now"
    return head, f"its head is kept, as its classes are the same{moved}"
