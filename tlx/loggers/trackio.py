"""Trackio: its database beside the run, which `TRACKIO_DIR=FOLDER trackio show` shows.

A TRACKIO_DIR of the user's own acts as ever. Nothing is sent to a server or a Space, of which no run could ask what it
has already: `trackio sync` does that.
"""

from __future__ import annotations

import os
from typing import Any

from tlx.loggers.protocol import Figures, Logger, Run

NEEDS, INSTALL = "trackio", 'pip install "tlx[trackio]"'
PROJECT = "tlx"


class Series:
    """A run of Trackio, known again by its name, which ends in the id of ours."""

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run.folder.resolve()))
        for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"):
            os.environ.pop(variable, None)
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{run.name}-{run.id[:8]}"
        options: dict[str, Any] = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self.series: Any = trackio.init(PROJECT, name=name, config=dict(run.config), **options)
        points = SQLiteStorage.get_logs(PROJECT, name)
        self.logged = {point["step"] for point in points if "train/loss" in point}
        self.tested = {point["step"] for point in points if "test/loss" in point}
        for epoch, figures in run.earlier:
            self.epoch(epoch, figures)

    def epoch(self, epoch: int, figures: Figures) -> None:
        """Log an epoch, unless it is there."""
        if epoch not in self.logged:
            self.series.log(dict(figures), step=epoch)
            self.logged.add(epoch)

    def end(self, epochs: int, figures: Figures | None) -> None:
        """Log the test figures."""
        if figures and epochs not in self.tested:
            self.series.log(dict(figures), step=epochs)
        self.series.finish()


def start(run: Run) -> Logger:
    """Begin or go on."""
    return Series(run)
