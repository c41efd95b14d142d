"""What a run returns and what its history holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tlx.errors import printable
from tlx.models.weights import joint_digest
from tlx.recipe import Recipe
from tlx.runs.confidence import Calibration
from tlx.strategy.plan import Plan
from tlx.training.metrics import EpochEnded, Fit
from tlx.training.multilabel import Multilabel

if TYPE_CHECKING:
    from typing_extensions import NotRequired


class FitEntry(TypedDict):
    """What a strategy chose that takes no steps, and what it tried."""

    name: str  # "C" or "neighbors"
    value: float
    seconds: float  # without the extraction of the features
    tried: list[TriedEntry]


class TriedEntry(TypedDict):
    """One value that was tried."""

    value: float
    val_loss: float | None
    val_accuracy: float | None
    iterations: int | None
    val_average_precision: NotRequired[float]  # mAP, where several labels may apply to an image


class HistoryEntry(TypedDict):
    """One epoch of a run, as in `history.jsonl`. Losses are means over the samples, accuracies between 0 and 1."""

    epoch: int  # counted from 1
    phase: str
    train_loss: float
    train_accuracy: float
    train_images: int
    val_loss: float | None
    val_accuracy: float | None
    val_images: int | None
    lr: list[float]  # of each group, at the epoch's last step
    seconds: float  # of training alone
    best: bool  # whether these are the best values so far
    fit: NotRequired[FitEntry]  # of strategy probe or knn
    val_average_precision: NotRequired[float]  # the mean over the classes (mAP), where several may apply to an image


class GroupEntry(TypedDict):
    """A group of parameters in one phase."""

    phase: str
    epoch: int  # from which the phase lasts, counted from 1
    group: str
    tensors: int
    parameters: int
    lr: float | None  # None: no step changes it
    weight_decay: float
    norm: str  # whether BatchNorm takes the batch's or the running statistics
    state: str  # trained, frozen, fitted or unused


class FrozenEntry(TypedDict):
    """What a phase froze, which has not moved, or the run would have ended with an error."""

    phase: str
    epoch: int  # from which the phase lasts, counted from 1
    arrays: int
    numbers: int  # in these arrays
    sha256: str | None  # of all of them; of the last phase only


def group_entries(plan: Plan) -> list[GroupEntry]:
    """Return the groups of a plan in each of its phases."""
    return [{**asdict(row), "epoch": row.epoch + 1} for row in plan.table()]  # type: ignore[typeddict-item]


def frozen_entries(plan: Plan, frozen: Mapping[str, str]) -> list[FrozenEntry]:
    """Return what each phase of a plan froze; `frozen` are the digests of what the last one did."""
    sizes = {spec.name: math.prod(spec.shape) for spec in plan.specs}
    entries: list[FrozenEntry] = []
    for phase in plan.strategy.phases:
        names = plan.frozen_at(phase.start * plan.schedule.steps_per_epoch)
        known = joint_digest(frozen) if names and names == frozen.keys() else None
        entries.append(
            {
                "phase": phase.name,
                "epoch": phase.start + 1,
                "arrays": len(names),
                "numbers": sum(sizes[name] for name in names),
                "sha256": known if phase is plan.strategy.phases[-1] else None,
            }
        )
    return entries


def history_entry(event: EpochEnded) -> HistoryEntry:
    """Return an epoch as plain values."""
    entry: HistoryEntry = {
        "epoch": event.epoch + 1,
        "phase": event.phase,
        "train_loss": event.train.loss,
        "train_accuracy": event.train.accuracy,
        "train_images": event.train.images,
        "val_loss": event.val.loss if event.val else None,
        "val_accuracy": event.val.accuracy if event.val else None,
        "val_images": event.val.images if event.val else None,
        "lr": list(event.lr),
        "seconds": event.seconds,
        "best": event.best,
    }
    if event.val is not None and event.val.average_precision is not None:
        entry["val_average_precision"] = event.val.average_precision
    return entry if event.fit is None else {**entry, "fit": _fit_entry(event.fit)}


def _fit_entry(fit: Fit) -> FitEntry:
    tried: list[TriedEntry] = [
        {
            "value": one.value,
            "val_loss": one.val.loss if one.val else None,
            "val_accuracy": one.val.accuracy if one.val else None,
            "iterations": one.iterations,
        }
        for one in fit.tried
    ]
    for entry, one in zip(tried, fit.tried, strict=True):
        if one.val is not None and one.val.average_precision is not None:
            entry["val_average_precision"] = one.val.average_precision
    return {"name": fit.name, "value": fit.value, "seconds": fit.seconds, "tried": tried}


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What a run returns. Accuracies lie between 0 and 1; `model` is the framework's own module, at its best epoch."""

    backend: str
    strategy: str
    test_accuracy: float | None
    test_balanced_accuracy: float | None  # the mean recall of the classes
    test_macro_f1: float | None
    val_accuracy: float | None
    val_balanced_accuracy: float | None
    val_macro_f1: float | None
    best_epoch: int  # counted from 1
    epochs_run: int
    history: list[HistoryEntry]
    trainable_parameters: int
    total_parameters: int
    train_images_per_second: float
    wall_seconds: float
    processes: int  # over which the run spread; when it was resumed, those of the last part
    versions: dict[str, str]
    notes: list[str]  # what was shown about the data, the recipe and the outcome
    calibration: Calibration | None  # None without a validation part, or where no temperature fits it
    multilabel: Multilabel | None  # where several labels may apply to an image; None: each has one
    groups: list[GroupEntry]  # what trained, at which rates, in each phase
    frozen: list[FrozenEntry]  # what each phase froze, which has not moved
    recipe: Recipe
    run_dir: Path
    model: Any = field(repr=False)

    @property
    def chosen(self) -> str:
        """What was chosen where no steps are taken, such as "C = 0.0178"; otherwise ""."""
        fit = self.history[-1].get("fit")
        return "" if fit is None else f"{fit['name']} = {fit['value']:.3g}"

    @property
    def score(self) -> str:
        """How good it is on the test part, such as "accuracy 0.9512", or "mAP 0.8321" of several labels."""
        if self.multilabel is not None and self.multilabel["test"] is not None:
            return f"mAP {self.multilabel['test']['average_precision'] or 0.0:.4f}"
        return f"accuracy {self.test_accuracy:.4f}"

    @property
    def unread(self) -> str:
        """Why there is no test accuracy, where there is none."""
        return "no test part" if self.recipe.evaluate_test else "test part not read"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `model` is the architecture's name."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            **values,
            "model": self.recipe.model_name,
            "recipe": self.recipe.to_dict(),
            "run_dir": str(self.run_dir),
        }

    def __repr__(self) -> str:
        accuracy = self.unread if self.test_accuracy is None else f"test {self.score}"
        name = f"{self.recipe.model_name} {self.strategy} on {self.backend}"
        return printable(f"<Result {name}: {accuracy}, {self.run_dir}>")

    def _repr_html_(self) -> str:
        from tlx.runs.report.small import small

        return small(self)
