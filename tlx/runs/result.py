"""What a run returns and what its history holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tlx.errors import as_html, printable
from tlx.recipe import Recipe
from tlx.runs.confidence import Calibration
from tlx.training.metrics import EpochEnded, Fit

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
    return {"name": fit.name, "value": fit.value, "seconds": fit.seconds, "tried": tried}


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What a run returns. Accuracies lie between 0 and 1; `model` is the framework's own module, at its best epoch."""

    backend: str
    strategy: str
    test_accuracy: float | None
    val_accuracy: float | None
    best_epoch: int  # counted from 1
    epochs_run: int
    history: list[HistoryEntry]
    trainable_parameters: int
    total_parameters: int
    train_images_per_second: float
    wall_seconds: float
    versions: dict[str, str]
    notes: list[str]  # what was shown about the data, the recipe and the outcome
    calibration: Calibration | None  # None without a validation part, or where no temperature fits it
    recipe: Recipe
    run_dir: Path
    model: Any = field(repr=False)

    @property
    def chosen(self) -> str:
        """What was chosen where no steps are taken, such as "C = 0.0178"; otherwise ""."""
        fit = self.history[-1].get("fit")
        return "" if fit is None else f"{fit['name']} = {fit['value']:.3g}"

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
        accuracy = self.unread if self.test_accuracy is None else f"test accuracy {self.test_accuracy:.4f}"
        name = f"{self.recipe.model_name} {self.strategy} on {self.backend}"
        return printable(f"<Result {name}: {accuracy}, {self.run_dir}>")

    def _repr_html_(self) -> str:
        facts = {
            "test accuracy": self.unread if self.test_accuracy is None else f"{self.test_accuracy:.4f}",
            "validation accuracy": "no validation part" if self.val_accuracy is None else f"{self.val_accuracy:.4f}",
            **({"chosen": self.chosen} if self.chosen else {"best epoch": f"{self.best_epoch} of {self.epochs_run}"}),
            "trained": f"{self.trainable_parameters:,} of {self.total_parameters:,} parameters",
            "seconds": f"{self.wall_seconds:.1f}",
            "saved in": str(self.run_dir),
        }
        rows = "".join(f"<tr><th>{name}</th><td>{as_html(text)}</td></tr>" for name, text in facts.items())
        title = f"{self.recipe.model_name}, strategy {self.strategy}, on {self.backend}"
        return f"<table><caption>{as_html(title)}</caption>{rows}</table>"
