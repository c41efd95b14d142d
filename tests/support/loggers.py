"""A logger of somebody else's, in a package with an entry point, and readers of what clients wrote."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

Series = dict[str, list[tuple[int, float]]]  # of each figure the steps and values, as they lie there

# What it does is said by the names of the files that lie beside the module.
MODULE = """
import json, os, sys, time
from pathlib import Path

HERE = Path(__file__).parent

class Lines:
    def __init__(self, run):
        self.file = run.folder / "lines.jsonl"
        self.write({"id": run.id, "name": run.name, "config": dict(run.config), "earlier": run.earlier})

    def write(self, value):
        with self.file.open("a") as file:
            file.write(json.dumps(value) + "\\n")

    def epoch(self, epoch, figures):
        print("noise", epoch, flush=True)
        if (HERE / "raises").exists() and epoch == 2:
            raise OSError(28, "No space left on device")
        if (HERE / "exits").exists() and epoch == 2:
            os._exit(7)
        self.write([epoch, figures])

    def end(self, epochs, figures):
        if (HERE / "hangs").exists():
            time.sleep(600)
        self.write({"end": figures, "epochs": epochs})

def start(run):
    os.environ["CHANGED"] = "1"
    sys.excepthook = None
    return Lines(run)
"""


def install(folder: Path, needs: str = "") -> Path:
    """Put a distribution with the logger `lines` into a folder, which is then to stand on sys.path."""
    info = folder / "tlx_lines-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tlx-lines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tlx.loggers]\nlines = tlx_lines\n")
    (folder / "tlx_lines.py").write_text(MODULE + (f"\nNEEDS = {needs!r}\n" if needs else ""))
    return folder


def lines_of(run: Path) -> list[Any]:
    """What the logger `lines` wrote."""
    return [json.loads(line) for line in (run / "log" / "lines" / "lines.jsonl").read_text().splitlines()]


def of_tensorboard(run: Path) -> Series:
    """Every scalar of every event file, as TensorBoard's own loader reads them, nothing purged."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    series: Series = {}
    for file in sorted((run / "log" / "tensorboard").glob("events*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(tensor_util.make_ndarray(value.tensor))
                    series.setdefault(value.tag, []).append((event.step, number))
    return series


def of_wandb(run: Path) -> tuple[Series, dict[str, float], dict[str, Any]]:
    """The history, the summary and the config of the offline run, as `wandb sync` would read them."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (file,) = (run / "log" / "wandb").glob("offline-run-*/run-*.wandb")
    store: Any = DataStore()
    store.open_for_scan(str(file))
    series: Series = {}
    summary: dict[str, float] = {}
    config: dict[str, Any] = {}
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in items.items():
            if not name.startswith("_"):
                series.setdefault(name, []).append((items["_step"], value))
        summary |= {item.key: json.loads(item.value_json) for item in record.summary.update}
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    store.close()
    return series, summary, config


def of_mlflow(run: Path) -> tuple[Series, Any]:
    """The metrics of the one run, every point of them, and the run, as MlflowClient reads them."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run / "log" / "mlflow").resolve().as_uri())
    experiment: Any = client.get_experiment_by_name("tlx")
    (logged,) = client.search_runs([experiment.experiment_id])
    series = {
        name: [(point.step, point.value) for point in client.get_metric_history(logged.info.run_id, name)]
        for name in logged.data.metrics
    }
    return series, logged


def of_trackio(run: Path) -> Series:
    """The metrics in Trackio's database."""
    series: Series = {}
    with sqlite3.connect(run / "log" / "trackio" / "tlx.db") as connection:
        for step, metrics in connection.execute("SELECT step, metrics FROM metrics ORDER BY step, id"):
            for name, value in json.loads(metrics).items():
                series.setdefault(name, []).append((step, value))
    return series
