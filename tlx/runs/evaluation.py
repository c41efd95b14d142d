"""Evaluate a finished run on its test part."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from tlx.errors import TlxError
from tlx.runs.display import Display, follow
from tlx.runs.finished import restore
from tlx.runs.folder import read_json
from tlx.training.build import make_loader, open_data
from tlx.training.loop import evaluate as evaluate_part


class Evaluation(TypedDict):
    """What `tlx.evaluate` returns. Accuracies lie between 0 and 1, the loss is the mean over the images."""

    backend: str
    test_accuracy: float
    test_loss: float
    images: int
    recorded_accuracy: float | None  # that the run itself recorded
    run_dir: str


def evaluate(
    run_dir: str | Path,
    backend: str | None = None,
    *,
    quiet: bool = False,
    data: Any = None,
    data_root: str | Path | None = None,
    model: Any = None,
    head: Any = None,
) -> Evaluation:
    """Evaluate a finished run's model on its test part, on the same backend or on another.

    Args:
        run_dir: a folder that `tlx run` wrote.
        backend: where to evaluate; default: the backend that trained.
        quiet: show nothing on stderr.
        data: the data again, where the run's were Python objects.
        data_root: where the data lie now.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Raises:
        RunNotFound: there is no finished run in the folder.
        TlxError: the data have other classes or no test part, or the weights do not fit.
    """
    objects = {"data": data, "data_root": data_root, "model": model, "head": head}
    run = restore(run_dir, backend, **objects)
    dataset = open_data(run.recipe)
    if list(dataset.classes) != run.card["classes"]:
        raise TlxError(f"{run_dir} was trained on classes {run.card['classes']}; the data has {list(dataset.classes)}")
    if dataset.test is None:
        raise TlxError(f"{dataset.name} has no test part")
    display = Display(quiet)
    with display.live(run.recipe):
        events = evaluate_part(run.backend, run.model, make_loader(run.recipe, dataset.test), "test")
        metrics = follow(events, [display.event])
    return {
        "backend": run.recipe.backend,
        "test_accuracy": metrics.accuracy,
        "test_loss": metrics.loss,
        "images": metrics.images,
        "recorded_accuracy": read_json(run.run_dir / "result.json")["test_accuracy"],
        "run_dir": str(run.run_dir),
    }
