"""What a logger is told of a run, and what it does with that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# By their names: train/loss, train/accuracy, train/images_per_second, val/loss, val/accuracy, lr/GROUP; at the end
# test/loss and test/accuracy. Losses are means over the images, accuracies lie between 0 and 1.
Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is logged.

    Attributes:
        folder: where the logger may keep files: `log/NAME` in the folder of the run. It exists.
        id: 16 hex digits by which the run is known again when it is resumed.
        name: what the folder of the run is called.
        config: the recipe's fields that have a value, and facts of the run such as the number of parameters.
        recipe: the text of recipe.toml.
        earlier: the epochs that were done before, counted from 1, with their figures; none where the run begins. They
            may have been logged already, and so may epochs after them, which a kill has undone.
    """

    folder: Path
    id: str
    name: str
    config: Mapping[str, Any]
    recipe: str
    earlier: Sequence[tuple[int, Figures]]


class Logger(Protocol):
    """One series of figures. Whatever it raises ends the logging, never the run."""

    def epoch(self, epoch: int, figures: Figures) -> None:
        """Take the figures of an epoch, counted from 1."""

    def end(self, epochs: int, figures: Figures | None) -> None:
        """Finish after so many epochs with the figures of the test part, which may be none.

        None: the run was interrupted, and may go on in another process.
        """
