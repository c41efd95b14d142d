"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tlx.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Result:
    """What a run returns. Accuracies are parts of 1; `history` has one entry per epoch; `model` is the framework's."""

    backend: str
    strategy: str
    test_accuracy: float | None
    val_accuracy: float | None
    best_epoch: int  # counted from 1
    epochs_run: int
    history: list[dict[str, Any]]
    trainable_parameters: int
    total_parameters: int
    train_images_per_second: float
    wall_seconds: float
    versions: dict[str, str]
    recipe: Recipe
    run_dir: Path
    model: Any = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `model` is the architecture's name."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            **values,
            "model": self.recipe.model_name,
            "recipe": self.recipe.to_dict(),
            "run_dir": str(self.run_dir),
        }
