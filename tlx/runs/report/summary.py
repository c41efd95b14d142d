"""What result.json says of a run, each value checked, as the folder may be another's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlx.errors import TlxError
from tlx.recipe import RENAMED, Recipe
from tlx.runs.facts import COUNT, Facts

NONE = "\u2013"  # in place of a value
# Fields that a run settles by itself where they are not given, from the device or the data; others the model decides.
SETTLED = ("device", "precision", "crop_fraction", "aspect")
_LEAST_LOSS = -1e300


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch; what it does not have is None."""

    phase: str
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    train_images: int | None  # an earlier tlx did not say
    val_average_precision: float | None = None  # of several labels


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group of parameters in a phase; `lr` None: no step changes it."""

    phase: str
    epoch: int  # from which the phase lasts, counted from 1
    group: str
    tensors: int
    parameters: int
    lr: float | None
    weight_decay: float
    norm: str
    state: str


@dataclass(frozen=True, slots=True)
class FrozenRow:
    """What a phase froze, and was checked by its digests to have not moved."""

    phase: str
    epoch: int
    arrays: int
    numbers: int
    sha256: str  # of all of them; "" where only the check is known


@dataclass(frozen=True, slots=True)
class Tried:
    """A value that a strategy without steps tried."""

    value: float
    val_loss: float | None
    val_accuracy: float | None
    val_average_precision: float | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """All of a result that a page shows."""

    backend: str
    strategy: str
    model: str
    test_accuracy: float | None
    val_accuracy: float | None
    best_epoch: int
    epochs: tuple[Epoch, ...]
    trainable: int
    total: int
    rate: float  # training images in a second
    seconds: float
    versions: Mapping[str, str]
    notes: Sequence[str]
    temperature: float | None
    ece: float | None
    ece_calibrated: float | None
    chosen: str  # in place of an epoch, such as "C = 0.0178"
    tried: tuple[Tried, ...]
    groups: tuple[GroupRow, ...] | None  # None: an earlier tlx did not say
    frozen: tuple[FrozenRow, ...] | None
    recipe: Mapping[str, Any]
    multilabel: bool = False  # whether several labels may apply to an image

    @property
    def fitted(self) -> bool:
        """Whether the head was fitted rather than trained by steps."""
        return bool(self.chosen)


def summary_of(values: Facts) -> Summary:
    """Return a summary of a result as plain values; raises TlxError, which names the value, where it is damaged."""
    epochs = values.inners("history")
    best = values.whole("best_epoch", 1, max(len(epochs), 1))
    if not epochs:
        raise values.wrong("history", "one epoch or more")
    calibration = values.inner("calibration") if values.has("calibration") else None
    fit = epochs[-1].inner("fit") if epochs[-1].has("fit") else None
    recipe = values.inner("recipe").values
    versions = values.inner("versions")
    return Summary(
        backend=values.text("backend"),
        strategy=values.text("strategy"),
        model=str(recipe.get("model", "")),
        test_accuracy=_real(values, "test_accuracy", 0, 1),
        val_accuracy=_real(values, "val_accuracy", 0, 1),
        best_epoch=best,
        epochs=tuple(map(_epoch, epochs)),
        trainable=values.whole("trainable_parameters"),
        total=values.whole("total_parameters"),
        rate=values.real("train_images_per_second", 0, 1e12),
        seconds=values.real("wall_seconds", 0, 1e12),
        versions={name: versions.text(name) for name in versions.values},
        notes=values.texts("notes") if values.has("notes") else (),
        temperature=calibration.real("temperature", 1e-6, 1e6) if calibration else None,
        ece=_real(calibration, "ece", 0, 1) if calibration else None,
        ece_calibrated=_real(calibration, "ece_calibrated", 0, 1) if calibration else None,
        chosen=f"{fit.text('name')} = {fit.real('value'):.3g}" if fit else "",
        tried=tuple(map(_tried, fit.inners("tried"))) if fit else (),
        groups=tuple(map(_group, values.inners("groups"))) if values.has("groups") else None,
        frozen=tuple(map(_frozen, values.inners("frozen"))) if values.has("frozen") else None,
        recipe={RENAMED.get(name, name): value for name, value in recipe.items()},
        multilabel=values.has("multilabel"),
    )


def _real(values: Facts, name: str, low: float, high: float) -> float | None:
    return values.real(name, low, high) if values.has(name) else None


def _epoch(values: Facts) -> Epoch:
    return Epoch(
        phase=values.text("phase"),
        train_loss=values.real("train_loss"),
        train_accuracy=values.real("train_accuracy", 0, 1),
        val_loss=_real(values, "val_loss", _LEAST_LOSS, -_LEAST_LOSS),
        val_accuracy=_real(values, "val_accuracy", 0, 1),
        seconds=values.real("seconds", 0, 1e12),
        train_images=values.whole("train_images") if values.has("train_images") else None,
        val_average_precision=_real(values, "val_average_precision", 0, 1),
    )


def _tried(values: Facts) -> Tried:
    loss = _real(values, "val_loss", _LEAST_LOSS, -_LEAST_LOSS)
    figures = (_real(values, name, 0, 1) for name in ("val_accuracy", "val_average_precision"))
    return Tried(values.real("value"), loss, *figures)


def _group(values: Facts) -> GroupRow:
    return GroupRow(
        phase=values.text("phase"),
        epoch=values.whole("epoch", 1),
        group=values.text("group"),
        tensors=values.whole("tensors"),
        parameters=values.whole("parameters"),
        lr=_real(values, "lr", 0, 1e39),
        weight_decay=values.real("weight_decay", 0, 1e39),
        norm=values.text("norm"),
        state=values.text("state"),
    )


def _frozen(values: Facts) -> FrozenRow:
    sha256 = values.text("sha256") if values.has("sha256") else ""
    counts = values.whole("arrays", 0, COUNT), values.whole("numbers", 0, COUNT)
    return FrozenRow(values.text("phase"), values.whole("epoch", 1), *counts, sha256)


@dataclass(frozen=True, slots=True)
class Change:
    """A recipe field that is not as it is by default."""

    name: str
    value: str
    default: str
    help: str


def changes(recipe: Mapping[str, Any]) -> tuple[list[Change], list[Change]]:
    """Return the fields of a recipe that differ from the defaults, and those that the run settled by itself.

    A field without a default is settled where its value is the one that model and strategy decide.
    """
    automatic = _automatic(recipe)
    changed, settled = list[Change](), list[Change]()
    for name, field in Recipe.__dataclass_fields__.items():
        value, default = recipe.get(name), field.default
        if name not in recipe or value is None or name == "out" or value == default:
            continue
        of_itself = name in SETTLED or (name in automatic and plain(automatic[name]) == plain(value))
        change = Change(
            name, plain(value), "automatic" if default == "auto" else plain(default), field.metadata["help"]
        )
        (settled if of_itself else changed).append(change)
    return changed, settled


def _automatic(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    chosen = {name: recipe[name] for name in ("model", "strategy") if isinstance(recipe.get(name), str)}
    try:
        resolved = Recipe(**chosen).resolved().to_dict()
    except TlxError:  # such as a model of the user's own, or of a library that is not installed
        return {}
    return {
        name: value
        for name, value in resolved.items()
        if name not in chosen and value != Recipe.__dataclass_fields__[name].default
    }


def plain(value: Any) -> str:
    """Write a value of a recipe for a page."""
    if value is None:
        return NONE
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, Mapping) and "name" in value:
        return f"{value['name']} (a strategy of your own)"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)
