"""TensorBoard: event files, which `tensorboard --logdir` shows. They are written by tensorboardX."""

from __future__ import annotations

import secrets
from typing import Any

from tlx.loggers.protocol import Figures, Logger, Run

NEEDS, INSTALL = "tensorboardX", 'pip install "tlx[tensorboard]"'
FILES = "events.out.tfevents.*"


class EventFiles:
    """One event file, from the first epoch on: what earlier processes wrote is written again, and theirs is removed.

    No reader then sees an epoch twice, also one that does not know TensorBoard's purging.
    """

    def __init__(self, run: Run) -> None:
        from tensorboardX import SummaryWriter

        before = [*run.folder.glob(FILES)]
        self.writer: Any = SummaryWriter(str(run.folder), filename_suffix=f".{secrets.token_hex(4)}")
        self.run = run
        self.writer.add_text("recipe", "".join(f"    {line}\n" for line in run.recipe.splitlines()), 0)
        for epoch, figures in run.earlier:
            self.epoch(epoch, figures)
        self.writer.flush()
        for file in before:
            file.unlink()

    def epoch(self, epoch: int, figures: Figures) -> None:
        """Write an epoch to the disk."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def end(self, epochs: int, figures: Figures | None) -> None:
        """Write the test figures, and with them the recipe as hyperparameters."""
        if figures is not None:
            from tensorboardX.summary import hparams

            plain = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in self.run.config.items()}
            for summary in hparams(plain, dict(figures)):
                self.writer.file_writer.add_summary(summary)
            self.epoch(epochs, figures)
        self.writer.close()


def start(run: Run) -> Logger:
    """Begin or go on."""
    return EventFiles(run)
