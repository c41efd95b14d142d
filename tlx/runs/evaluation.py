"""Evaluate a finished run on its test part, or on other data with its classes."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from tlx.data import Data, Images
from tlx.data.fingerprint import difference
from tlx.data.multilabel import is_multilabel
from tlx.data.sources.registry import open_source
from tlx.errors import DataError, RecipeError, TlxError
from tlx.manifest import RECIPE
from tlx.recipe import Recipe
from tlx.runs.card import refuse_multilabel
from tlx.runs.classify import BadImages, Tta, check_tta, classify
from tlx.runs.display import READING, Display, follow
from tlx.runs.finished import Finished, restore
from tlx.runs.inputs import columns_for, of_part
from tlx.runs.scores import scores_of_counts
from tlx.runs.table import Table, table_file
from tlx.training.build import open_data
from tlx.training.metrics import FETCH_SECONDS, Event, Metrics, Progress
from tlx.training.multilabel import Figures, figures, losses_of

TOP = 5  # as ImageNet's top-5; it says nothing where there are no more classes

ClassFigures = TypedDict(
    "ClassFigures",
    {"class": str, "images": int, "correct": int, "accuracy": float | None, "f1": float | None},
)
ClassFigures.__doc__ = """The figures of one class; `accuracy` is None where it has no image, `f1` where it was not
predicted either."""


class Evaluation(TypedDict):
    """What `tlx.evaluate` returns. Accuracies and F1 lie between 0 and 1, the loss is the mean over the images.

    Where several labels may apply to an image, the accuracy is that of images whose labels are all right at probability
    0.5, `multilabel` holds the figures of each class, and `classes` and `confusion` are empty.
    """

    backend: str
    data: str  # the name of the data
    tta: Tta  # the test-time augmentation, "none" or "hflip"
    test_accuracy: float
    test_loss: float
    images: int
    unreadable: int  # images of other data that could not be read, and are left out
    top_k: int | None  # K of the top-K accuracy; None: it was not asked for, and there are at most 5 classes
    top_k_accuracy: float | None
    balanced_accuracy: float | None  # the mean recall of the classes that have images
    macro_f1: float
    classes: list[ClassFigures]
    confusion: list[list[int]]  # images by their class (rows) and the predicted class (columns)
    multilabel: Figures | None  # None: each image has one label
    recorded_accuracy: float | None  # that the run itself recorded, on its own test part
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
    top: int | None = None,
    tta: Tta = "none",
    csv: str | Path | None = None,
) -> Evaluation:
    """Evaluate a finished run's model on its test part or on other data, on the same backend or on another.

    Args:
        run_dir: a folder that `tlx run` wrote.
        backend: where to evaluate; default: the backend that trained.
        quiet: show nothing on stderr.
        data: other data, whatever `tlx.load_data` takes. Its test part is evaluated, or all of it where it has only one
            part; classes are matched by name, so it may have some of the run's, in any order. The run's own data, which
            is known by its fingerprint, is evaluated as ever; it must be given where it was passed in Python.
        data_root: where the data lie now.
        model: the module again, where the run's was a Python object.
        head: likewise.
        top: K of the top-K accuracy; default: 5 where there are more than 5 classes.
        tta: test-time augmentation: "hflip" averages the probabilities of an image and of its mirror image; every
            figure is then computed from that mean.
        csv: write a table of the predictions to this file, as a run does of its own parts: see `tlx.load_predictions`.

    Raises:
        RunNotFound: there is no finished run in the folder.
        RunDamaged: a file of the run is missing or is not what the run wrote.
        DataError: the data has classes that the run does not know, or no test part.
        TlxError: `tta` is unknown, the weights do not fit, or the model's outputs are not finite.
    """
    if top is not None and top < 1:
        raise TlxError(f"top is {top}; expected at least 1")
    kind = check_tta(tta)
    run = restore(run_dir, backend, model=model, head=head)
    display = Display(quiet)
    several = run.card.thresholds is not None
    if top is not None:
        refuse_multilabel(run.card, run.run_dir, "top", "leave it out")
    name, images, own = _images(run, data, data_root, display)
    classes: list[str] = run.card.classes
    k = top or (TOP if len(classes) > TOP and not several else None)
    bad = BadImages(display)
    with table_file(csv, classes, run.card.thresholds) as table:
        with display.live(run.recipe):
            tally = follow(_evaluate(run, images, kind, k, bad, table), [display.event])
        bad.conclude(len(images), allowed=not own)
    confusion = tally.confusion
    answers = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    scores = None if several else scores_of_counts(*answers)
    found = tally.figures(run) if isinstance(tally, Rows) else None
    return {
        "backend": run.recipe.backend,
        "data": name,
        "tta": kind,
        "test_accuracy": tally.metrics().accuracy,
        "test_loss": tally.metrics().loss,
        "images": tally.images,
        "unreadable": bad.count,
        "top_k": k,
        "top_k_accuracy": None if k is None else tally.hits / tally.images,
        "balanced_accuracy": None if scores is None else scores.balanced_accuracy,
        "macro_f1": (found["macro_f1"] or 0.0 if found else 0.0) if scores is None else scores.macro_f1,
        "multilabel": found,
        "classes": []
        if scores is None
        else [
            {
                "class": label,
                "images": int(row.sum()),
                "correct": int(row[i]),
                "accuracy": float(row[i] / row.sum()) if row.any() else None,
                "f1": None if np.isnan(scores.f1[i]) else float(scores.f1[i]),
            }
            for i, (label, row) in enumerate(zip(classes, confusion, strict=True))
        ],
        "confusion": [] if several else confusion.tolist(),
        "recorded_accuracy": run.recorded_accuracy,
        "run_dir": str(run.run_dir),
    }


@dataclass(slots=True, eq=False)
class Tally:
    """What an evaluation counts: images by class and predicted class, those in the first K, and the summed loss."""

    confusion: NDArray[np.int64]
    hits: int = 0
    loss: float = 0.0

    def add(self, logits: NDArray[np.float64], label: int, k: int | None) -> None:
        """Count an image by its logits [classes]."""
        # Of equal logits the first counts as higher. Sorting all would cost a millisecond an image with 10,000 classes.
        higher = np.count_nonzero(logits > logits[label]) + np.count_nonzero(logits[:label] == logits[label])
        self.confusion[label, logits.argmax()] += 1
        self.hits += k is None or bool(higher < k)
        self.loss += float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])

    @property
    def images(self) -> int:
        """How many were counted."""
        return int(self.confusion.sum())

    def metrics(self) -> Metrics:
        """The mean loss and the accuracy."""
        images = max(self.images, 1)
        return Metrics(self.loss / images, int(np.trace(self.confusion)) / images, images)


class Rows(Tally):
    """The logits and labels of images that may have several labels; all are kept, as average precision ranks them."""

    __slots__ = ("labels", "logits", "rows")

    def __init__(self, confusion: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        super().__init__(confusion)
        self.labels = labels  # of all images of the part [N, classes]
        self.logits: list[NDArray[np.float64]] = []
        self.rows: list[int] = []

    def add(self, logits: NDArray[np.float64], label: int, k: int | None) -> None:
        """Keep an image; `label` is its place in the part."""
        self.logits.append(logits)
        self.rows.append(label)
        self.loss += float(losses_of(logits[None], self.labels[[label]])[0])
        self.hits += bool(((logits > 0) == self.labels[label]).all())

    @property
    def images(self) -> int:
        """How many were kept."""
        return len(self.rows)

    def metrics(self) -> Metrics:
        """The mean loss, and the part of the images whose labels are all right."""
        images = max(self.images, 1)
        return Metrics(self.loss / images, self.hits / images, images)

    def figures(self, run: Finished) -> Figures:
        """Return the figures at the run's thresholds."""
        assert run.card.thresholds is not None
        thresholds = np.array(run.card.thresholds)
        return figures(np.stack(self.logits), self.labels[self.rows], thresholds, run.card.classes)


def _evaluate(
    run: Finished, images: Images, tta: Tta, k: int | None, bad: BadImages, table: Table | None
) -> Generator[Event, None, Tally]:
    """Read the images once; events say how far it has come."""
    several, counts = run.card.thresholds is not None, np.zeros((len(run.card.classes),) * 2, dtype=np.int64)
    tally = Rows(counts, images.labels) if several else Tally(counts)
    steps = -(-len(images) // run.recipe.batch_size)
    started = said = time.perf_counter()
    with closing(classify(run, of_part(images, run.recipe.max_pixels), tta, several=several)) as outcomes:
        for step, outcome in enumerate(outcomes, 1):
            for item, logits in outcome:
                if isinstance(logits, DataError):
                    bad.add(item, logits)
                    continue
                tally.add(logits, item.label, k)
                if table is not None:
                    labels = images.labels[[item.label]] if several else np.array([item.label])
                    table.add([item.name], labels, logits[None])
            if (now := time.perf_counter()) - said > FETCH_SECONDS:
                said = now
                yield Progress("test", 0, step, steps, tally.metrics(), now - started)
    return tally


def own_data(run: Finished, data: Any = None, root: Any = None) -> Data:
    """Open the data of a run as its recipe divides them; `data` and `root` say where they are now."""
    own_fields = {f.name for f in fields(Recipe) if f.metadata["group"] == "Data"} | {"seed"}
    moved = {name: value for name, value in (("data", data), ("data_root", root)) if value is not None}
    return open_data(Recipe.from_toml(run.run_dir / RECIPE, moved, own_fields, run.recipe_file))


def own_test_part(run: Finished) -> Images:
    """Return the images of the test part of a run's own data; raises TlxError where they cannot be had any more."""
    return _images(run, None, None, Display(quiet=True))[1]


def _images(run: Finished, data: Any, root: Any, display: Display) -> tuple[str, Images, bool]:
    """The name of the data, the images to evaluate with labels in the run's numbers, and whether they are its own."""
    try:
        dataset = own_data(run, data, root)
    except (DataError, RecipeError):
        if data is None:
            raise
        return *_other_images(run, data, root, display), False  # it may be data that the recipe cannot divide
    if data is not None and difference(run.card.fingerprint, dataset, display.counted(READING)):
        return *_other_images(run, data, root, display), False
    classes = run.card.classes
    if list(dataset.classes) != classes:
        raise TlxError(f"{run.run_dir} was trained on classes {classes}; the data has {list(dataset.classes)}")
    if dataset.test is None:
        raise TlxError(f"{dataset.name} has no test part")
    return dataset.name, dataset.test, True


def _other_images(run: Finished, data: Any, root: Any, display: Display) -> tuple[str, Images]:
    source = open_source(data, root, columns_for(data, run.recipe.label_separator))
    for note in source.notes:
        display.say(f"note: {note}")
    parts, classes = source.parts, run.card.classes
    if "test" not in parts and len(parts) > 1:
        raise DataError(f"{source.name} has no test part, only {' and '.join(parts)}", fix="pass the one to evaluate")
    images = parts["test"] if "test" in parts else next(iter(parts.values()))
    if is_multilabel(images.labels) != (run.card.thresholds is not None):
        one, other = ("several labels", "one") if is_multilabel(images.labels) else ("one label", "several")
        raise DataError(f"images of {source.name} have {one} each, but those of {run.run_dir} {other}")
    if is_multilabel(images.labels):
        if sorted(source.classes) != sorted(classes):
            problem = f"{source.name} has the classes {', '.join(source.classes)}, but {run.run_dir} has"
            raise DataError(f"{problem} {', '.join(classes)}", fix="name the data's classes as the run's")
        columns = [source.classes.index(name) for name in classes]
        return source.name, images.select(np.arange(len(images)), images.labels[:, columns])
    present, known = [source.classes[label] for label in np.unique(images.labels)], set(classes)
    unknown = [name for name in present if name not in known]
    if unknown:
        raise DataError(
            f"{source.name} has classes that {run.run_dir} was not trained on: {', '.join(unknown)}. "
            f"The run's classes: {', '.join(classes)}",
            fix="name the data's classes as the run's, and leave the others out",
        )
    numbers = {name: number for number, name in enumerate(classes)}
    table = np.array([numbers.get(name, -1) for name in source.classes], dtype=np.int64)
    return source.name, images.select(np.arange(len(images)), table[images.labels])
