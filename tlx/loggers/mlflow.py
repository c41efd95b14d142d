"""MLflow: the server or store that MLFLOW_TRACKING_URI names, or files beside the run.

MLFLOW_EXPERIMENT_NAME names the experiment, by default "tlx".
"""

from __future__ import annotations

import os
import re
from typing import Any

from tlx.loggers.protocol import Figures, Logger, Run

NEEDS, INSTALL = "mlflow", 'pip install "tlx[mlflow]"'
TAG = "tlx.run_id"
LONGEST = 500  # characters of a parameter that every version of a server takes
NOT_A_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)  # what the name of a metric may not hold


class Series:
    """A run of MLflow, found again by its tag."""

    def __init__(self, run: Run) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without which MLflow 3 refuses it
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 take minutes
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or run.folder.resolve().as_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "tlx"
        experiment = self.client.get_experiment_by_name(name)
        number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        known = self.client.search_runs([number], f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if known:
            self.id = known[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            self.id = self.client.create_run(number, tags={TAG: run.id}, run_name=run.name).info.run_id
            self._describe(run)
        self.logged = {point.step for point in self._points("train/loss")}
        for epoch, figures in run.earlier:
            self.epoch(epoch, figures)

    def _points(self, name: str) -> list[Any]:
        if name not in self.client.get_run(self.id).data.metrics:
            return []
        return list(self.client.get_metric_history(self.id, name))

    def _describe(self, run: Run) -> None:
        from mlflow.entities import Param

        params = [Param(NOT_A_NAME.sub("_", name), str(value)[:LONGEST]) for name, value in run.config.items()]
        for first in range(0, len(params), 100):  # a request takes no more
            self.client.log_batch(self.id, params=params[first : first + 100])
        self.client.log_text(self.id, run.recipe, "recipe.toml")

    def epoch(self, epoch: int, figures: Figures) -> None:
        """Log an epoch, unless it is there: MLflow keeps all points that a step is given."""
        if epoch not in self.logged:
            self._log(epoch, figures)
            self.logged.add(epoch)

    def _log(self, step: int, figures: Figures) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # The loss of the training tells that the epoch is whole, so it comes last.
        names = sorted(figures, key=lambda name: name == "train/loss")
        metrics = [Metric(NOT_A_NAME.sub("_", name), figures[name], now, step) for name in names]
        for first in range(0, len(metrics), 900):  # a request takes 1,000
            self.client.log_batch(self.id, metrics=metrics[first : first + 900])

    def end(self, epochs: int, figures: Figures | None) -> None:
        """Log the test figures, and say how the run ended."""
        new = {name: value for name, value in (figures or {}).items() if epochs not in self._steps(name)}
        if new:
            self._log(epochs, new)
        self.client.set_terminated(self.id, "KILLED" if figures is None else "FINISHED")

    def _steps(self, name: str) -> set[int]:
        return {point.step for point in self._points(name)}


def start(run: Run) -> Logger:
    """Begin or go on."""
    return Series(run)
