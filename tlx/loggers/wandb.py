"""Weights & Biases: offline, unless WANDB_MODE or a login of the user's own says otherwise.

`wandb sync FOLDER` uploads an offline run. WANDB_PROJECT, WANDB_ENTITY and the like act as ever.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tlx.loggers.protocol import Figures, Logger, Run

NEEDS, INSTALL = "wandb", 'pip install "tlx[wandb]"'


class Series:
    """A run of wandb under the id of ours."""

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports to the client's authors
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        before = [*run.folder.glob(f"offline-run-*-{run.id}")]
        self.series: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "tlx",
            name=run.name,
            id=run.id,
            resume=None if mode == "offline" else "allow",
            mode=mode,
            dir=str(run.folder.parent),  # in which the client makes a folder "wandb"
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        self.logged = int(self.series.starting_step)  # epochs that a server has already
        for epoch, figures in run.earlier:
            self.epoch(epoch, figures)
        if mode == "offline":
            now = Path(self.series.settings.sync_dir).resolve()
            for folder in before:  # the new one holds these epochs too
                if folder.resolve() != now:
                    shutil.rmtree(folder)

    def epoch(self, epoch: int, figures: Figures) -> None:
        """Log an epoch as a step of the same number."""
        if epoch >= self.logged:
            self.series.log(dict(figures), step=epoch, commit=True)

    def end(self, epochs: int, figures: Figures | None) -> None:
        """Put the test figures into the summary."""
        if figures is not None:
            self.series.summary.update(dict(figures))
        self.series.finish(exit_code=0 if figures is not None else 1)


def logged_in() -> bool:
    """Whether the user has a key, in the environment or from `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc
    from urllib.parse import urlparse

    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return host in netrc.netrc(os.environ.get("NETRC") or str(Path.home() / ".netrc")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


def start(run: Run) -> Logger:
    """Begin or go on."""
    return Series(run)
