"""Classify images with a finished run, from the very same pixels as its evaluation."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from tlx.atomic import replacing
from tlx.data.images import EXTENSIONS
from tlx.data.multilabel import JOIN
from tlx.errors import DataError, TlxError
from tlx.runs.card import refuse_multilabel
from tlx.runs.classify import BadImages, Tta, check_tta, classify
from tlx.runs.confidence import Answering, answering
from tlx.runs.display import LINE_SECONDS, Display
from tlx.runs.finished import Finished, restore
from tlx.runs.inputs import Input, Notes, find_inputs
from tlx.training.multilabel import probabilities

T = TypeVar("T")
TOP = 5  # classes listed for each image where nobody says how many, as ImageNet's top-5


# "class" is a keyword of Python, so these have no class syntax.
Ranked = TypedDict("Ranked", {"class": str, "probability": float})
Prediction = TypedDict(
    "Prediction",
    {
        "path": str,
        "class": str | None,
        "probability": float | None,
        "top": list[Ranked],
        "error": str | None,
    },
)


class MultilabelPrediction(Prediction):
    """Of an image that may have several labels: `class` joins their names with "|", and `top` lists all classes.

    `probability` is the highest of any class, each of which is a sigmoid by itself.
    """

    labels: list[str]  # the classes whose probability reaches their threshold


def predict(
    run_dir: str | Path,
    images: Any,
    backend: str | None = None,
    top: int | None = None,
    *,
    tta: Tta = "none",
    reject: float | None = None,
    calibrated: bool = False,
    quiet: bool = False,
    model: Any = None,
    head: Any = None,
) -> list[Prediction]:
    """Classify images with the model of a finished run.

    Args:
        run_dir: a folder that `tlx run` wrote.
        images: a file, a folder (all photos below it, by their sorted paths), a uint8 array [N, H, W, 3], [H, W, 3] or
            [N, H, W], a Pillow image, a list or an iterator of files, folders, Pillow images and arrays [H, W, 3] or
            [H, W]; or whatever `tlx.load_data` takes, of which all images are classified: a name such as "digits", a
            file of a data set, a sequence of (image, label), a part of a `tlx.Data` or the whole.
        backend: classify on this backend instead of the one that trained, on its best device, and in the precision of
            the training where that is native there.
        top: how many classes to list for each image, the most probable first; at most all. Default: up to 5.
        tta: test-time augmentation: "hflip" averages the probabilities of an image and of its mirror image.
        reject: answer only from a probability on for which the run's validation part says, with 95 % confidence, that
            at most this part of the answers is wrong, such as 0.05; see `tlx.runs.confidence.choose_threshold`.
        calibrated: divide the logits by the run's temperature before softmax.
        quiet: do not say on stderr what was left out and what cannot be read.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Returns:
        For each image, in order, its path ("array 0" and so on for arrays), class, probability (softmax of the logits
        in float64) and `top`, a list of class and probability. With `reject`, class is None where the probability is
        too low. Where the run's images may have several labels, `labels` holds those whose probability (sigmoid of the
        logit) reaches the threshold that the run chose, and `top` is of all classes. Where an image cannot be read,
        `error` says why, class and probability are None, and `top` is empty.
        `tlx.runs.prediction.predictions` returns the same one by one, for more images than a list can hold.

    Raises:
        RunNotFound: there is no finished run in the folder.
        DataError: there is no image, or none that can be read.
        TlxError: `top` is below 1, `tta` is unknown, the model's outputs are not finite, or the run's validation part
            does not allow `reject` or `calibrated`.
    """
    options: dict[str, Any] = {"tta": tta, "reject": reject, "calibrated": calibrated, "quiet": quiet}
    return list(predictions(run_dir, images, backend, top, **options, model=model, head=head))


def predictions(
    run_dir: str | Path,
    images: Any,
    backend: str | None = None,
    top: int | None = None,
    *,
    tta: Tta = "none",
    reject: float | None = None,
    calibrated: bool = False,
    quiet: bool = False,
    model: Any = None,
    head: Any = None,
) -> Generator[Prediction, None, None]:
    """Do what `tlx.predict` does, and yield each prediction as it is made: memory does not grow with the images.

    Images are found, decoded in threads and classified while the iterator is read; closing it ends that. What `predict`
    raises about images is raised while it is read.
    """
    if top is not None and top < 1:
        raise TlxError(f"top is {top}; expected at least 1")
    kind = check_tta(tta)
    if kind != "none" and (reject is not None or calibrated):
        name = "calibrated" if reject is None else "reject"
        raise TlxError(f"{name} is judged by single views of the validation images; leave tta out")
    run = restore(run_dir, backend, model=model, head=head)
    if reject is not None or calibrated:
        name = "calibrated" if reject is None else "reject"
        refuse_multilabel(run.card, run.run_dir, name, f"leave {name} out")
    answers, display = answering(run.run_dir, run.card.temperature, reject, calibrated), Display(quiet)
    if answers.note:
        display.say(f"note: {answers.note}")
    notes = Notes()
    inputs = find_inputs(images, notes, run.recipe.max_pixels)
    return _predictions(run, inputs, kind, notes, top or TOP, display, answers)


def _predictions(
    run: Finished, inputs: Iterator[Input], tta: Tta, notes: Notes, top: int, display: Display, answers: Answering
) -> Generator[Prediction, None, None]:
    count, bad = 0, BadImages(display)
    with closing(classify(run, inputs, tta, several=run.card.thresholds is not None)) as outcomes:
        for item, logits in chain.from_iterable(outcomes):
            count += 1
            if isinstance(logits, DataError):
                bad.add(item, logits)
                reason = logits.problem.rstrip(".")
                yield {"path": item.name, "class": None, "probability": None, "top": [], "error": reason}
            else:
                bad.say()
                yield (
                    prediction_of(item.name, logits, run.card.classes, top, answers)
                    if run.card.thresholds is None
                    else multilabel_prediction_of(item.name, logits, run.card.classes, run.card.thresholds)
                )
    for note in notes.all():
        display.say(note)
    if not count:
        raise DataError(f"no images: expected files, folders of photos ({', '.join(sorted(EXTENSIONS))}) or arrays")
    bad.conclude(count)


def prediction_of(
    name: str, logits: NDArray[np.float64], classes: Sequence[str], top: int, answers: Answering
) -> Prediction:
    """Return the prediction of an image from its logits [classes]."""
    odds = np.exp((logits - logits.max()) / answers.temperature)
    probabilities = odds / odds.sum()
    best = np.argsort(-logits, kind="stable")[:top]
    ranked: list[Ranked] = [{"class": classes[i], "probability": float(probabilities[i])} for i in best]
    first = ranked[0]
    return {
        "path": name,
        "class": first["class"] if first["probability"] > answers.threshold else None,
        "probability": first["probability"],
        "top": ranked,
        "error": None,
    }


def multilabel_prediction_of(
    name: str, logits: NDArray[np.float64], classes: Sequence[str], thresholds: Sequence[float]
) -> MultilabelPrediction:
    """Return the prediction of an image that may have several labels from its logits [classes]."""
    odds = probabilities(logits)
    order = np.argsort(-logits, kind="stable").tolist()
    labels = [classes[i] for i in order if odds[i] >= thresholds[i]]
    ranked: list[Ranked] = [{"class": classes[i], "probability": float(odds[i])} for i in order]
    return {
        "path": name,
        "class": JOIN.join(labels),
        "probability": ranked[0]["probability"],
        "top": ranked,
        "error": None,
        "labels": labels,
    }


def reported(rows: Iterable[T]) -> Iterator[T]:
    """Pass what is made of images on, and say on stderr from time to time how many there were."""
    display = Display()
    started = said = time.monotonic()
    for number, row in enumerate(rows, 1):
        if (now := time.monotonic()) - said > LINE_SECONDS:
            said = now
            display.say(f"{number} images, {number / (now - started):.0f} images/s")
        yield row


def write_csv(file: str | Path, rows: Iterable[Prediction]) -> tuple[int, int]:
    """Write predictions as CSV in UTF-8 while they are made; the file appears whole, or not at all.

    Of images that may have several labels the columns are path, prediction, with "|" between labels, the probability of
    each class, and error. Otherwise they are path, prediction, probability, then prediction_2, probability_2 and so on,
    as many as the first image that can be read lists, and error. A prediction that was rejected is empty. Text is
    quoted, numbers are not. A path that is no UTF-8 keeps its bytes.

    Returns:
        How many images were predicted, and how many could not be read.
    """
    rest, first = iter(rows), []
    for row in rest:
        first.append(row)
        if not row["error"]:
            break
    top = max((len(row["top"]) for row in first), default=1)
    ranks = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("prediction", "probability")]
    several = sorted(entry["class"] for entry in first[-1]["top"]) if first and "labels" in first[-1] else None
    counts = [0, 0]
    with replacing(os.path.realpath(file)) as binary:  # a link, such as /dev/stdout, stays one
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        if several is None:
            writer.writerow(["path", "prediction", "probability", *ranks, "error"])
        else:
            writer.writerow(["path", "prediction", *(f"probability of {name}" for name in several), "error"])
        for row in chain(first, rest):
            if several is not None:
                odds = {entry["class"]: entry["probability"] for entry in row["top"]}
                numbers = [odds[name] if odds else "" for name in several]
                writer.writerow([row["path"], row["class"] or "", *numbers, row["error"] or ""])
                counts[row["error"] is not None] += 1
                continue
            cells = [value for entry in row["top"] for value in entry.values()] or [""] * (2 * top)
            cells[0] = row["class"] or ""
            writer.writerow([row["path"], *cells, row["error"] or ""])
            counts[row["error"] is not None] += 1
        text.detach()
    return counts[0], counts[1]
