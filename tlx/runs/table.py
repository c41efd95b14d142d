"""The table of predictions of a part of the data: a row for each image, as CSV in UTF-8, in the order of the part."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from tlx.atomic import replacing
from tlx.data import Data, Images
from tlx.data.multilabel import JOIN, joined
from tlx.errors import RunDamaged, RunNotFound, TlxError, closest, shown
from tlx.manifest import CARD, PART_LOGITS, PART_TABLES, RECIPE, read_files, read_manifest
from tlx.runs.card import Card, read_card, refuse_multilabel
from tlx.runs.folder import RESULT, RunFolder
from tlx.runs.inputs import paths_of
from tlx.runs.logits import Sink, Spool, parse_logits
from tlx.training.multilabel import losses_of, probabilities

MULTILABEL = ("path", "labels", "prediction", "loss")  # then the probability of each class
COLUMNS = ("path", "label", "prediction", "probability", "loss", "margin")

Part = Literal["val", "test"]
Numbers = NDArray[np.float64]


class Predictions(TypedDict):
    """What `tlx.load_predictions` returns: columns of N images each, in the order of the part.

    Where the data has no paths, `path` names an image by its number in the data or as the data does.
    """

    part: Part
    classes: list[str]  # in the order of the logits
    path: list[str]
    label: list[str]
    prediction: list[str]  # of equal probabilities the first class
    probability: NDArray[np.float64]  # of the prediction [N]
    loss: NDArray[np.float64]  # -log of the label's probability, in nats [N]
    margin: NDArray[np.float64]  # the highest probability minus the second highest [N]
    logits: NDArray[Any]  # float32 or float64 [N, classes]


class MultilabelTable(NamedTuple):
    """What a table of images that may have several labels holds: of N images and K classes."""

    path: list[str]
    labels: NDArray[np.int64]  # of 0 and 1 [N, K]
    probability: Numbers  # of each class [N, K]


class Table:
    """Writes rows to an open file as they come; with thresholds, of images that may have several labels."""

    def __init__(self, out: Sink, classes: Sequence[str], thresholds: Sequence[float] | None = None) -> None:
        self.out, self.classes, self.thresholds = out, classes, thresholds
        self._write([COLUMNS if thresholds is None else [*MULTILABEL, *(f"probability of {name}" for name in classes)]])

    def add(self, paths: Iterable[str], labels: NDArray[np.int64], logits: NDArray[Any]) -> None:
        """Write a row for each of n images, by their logits [n, classes]."""
        if self.thresholds is not None:
            odds, losses = probabilities(logits), losses_of(logits, labels).tolist()
            answers = odds >= np.array(self.thresholds)
            rows = zip(paths, labels, answers, losses, odds.tolist(), strict=True)
            self._write(
                [path, joined(label, self.classes), joined(answer, self.classes), loss, *each]
                for path, label, answer, loss, each in rows
            )
            return
        first, *figures = measured(logits, labels)
        columns = (column.tolist() for column in (labels, first, *figures))
        self._write(
            [path, self.classes[label], self.classes[prediction], *numbers]
            for path, label, prediction, *numbers in zip(paths, *columns, strict=True)
        )

    def _write(self, rows: Iterable[Sequence[str | float]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows(rows)
        self.out.write(_encoded(text.getvalue()))


@contextmanager
def table_file(
    file: str | Path | None, classes: Sequence[str], thresholds: Sequence[float] | None = None
) -> Iterator[Table | None]:
    """Give a table that appears under its name once it is whole; None where there is no file to write."""
    if file is None:
        yield None
        return
    with replacing(os.path.realpath(file)) as out:  # a link, such as /dev/stdout, stays one
        yield Table(out, classes, thresholds)


def measured(logits: NDArray[Any], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], Numbers, Numbers, Numbers]:
    """Return of each image the predicted class, its probability, the loss of its label and the margin: [n] each.

    Probabilities are the softmax of the logits [n, classes], computed in float64; labels are int64 [n].
    """
    wide = logits.astype(np.float64)
    first = wide.argmax(axis=1)
    wide -= wide.max(axis=1, keepdims=True)
    odds = np.exp(wide)
    total = odds.sum(axis=1)
    losses = np.log(total) - wide[np.arange(len(labels)), labels]
    second = np.partition(odds, -2, axis=1)[:, -2] if odds.shape[1] > 1 else 0.0
    return first, 1 / total, losses, (1 - second) / total


def put_tables(
    folder: RunFolder, data: Data, spools: dict[str, Spool], thresholds: Sequence[float] | None = None
) -> list[str]:
    """Put the tables and logits of the parts that were read; return what an earlier end of the run left of others."""
    for part in PART_TABLES:
        images = data.parts.get(part)
        if images is None or part not in spools:
            continue
        with folder.putting(PART_LOGITS[part]) as out:
            spools[part].write(out)
        with folder.putting(PART_TABLES[part]) as out:
            _fill(Table(out, data.classes, thresholds), images, spools[part])
    absent = [name for names in (PART_TABLES, PART_LOGITS) for part, name in names.items() if part not in spools]
    return [name for name in absent if name in folder.files]


def _fill(table: Table, images: Images, spool: Spool) -> None:
    paths, at = iter(paths_of(images)), 0
    for logits in spool.blocks():
        table.add(islice(paths, len(logits)), images.labels[at : at + len(logits)], logits)
        at += len(logits)


def load_predictions(run_dir: str | Path, part: Part = "test") -> Predictions:
    """Return what a finished run predicted for the images of a part of its data, without computing anything.

    Args:
        run_dir: a folder that `tlx run` wrote.
        part: "val", as judged at the epoch whose weights are kept, or "test".

    Returns:
        The columns of the run's `predictions-<part>.csv`, and the logits. For a data frame:
        ``pandas.DataFrame({name: predictions[name] for name in tlx.runs.table.COLUMNS})``.

    Raises:
        RunNotFound: there is no finished run in the folder.
        RunDamaged: a file of the run is missing or is not what the run wrote.
        TlxError: `part` is unknown, or the run holds no predictions of it.
    """
    folder = Path(run_dir)
    card, table, logits = _stored(folder, part)
    refuse_multilabel(
        card,
        folder,
        "load_predictions",
        f"read {folder / PART_TABLES[part]}, and the logits from {folder / PART_LOGITS[part]}",
    )
    columns = parse_table(table, folder / PART_TABLES[part], card.classes)
    _check_rows(folder, part, len(columns["path"]), logits, card)
    texts = {name: [str(value) for value in columns[name]] for name in COLUMNS[:3]}
    numbers = {name: np.array(columns[name], np.float64) for name in COLUMNS[3:]}
    return {"part": part, "classes": card.classes, **texts, **numbers, "logits": logits}  # type: ignore[typeddict-item]


def load_multilabel(run_dir: str | Path, part: Part = "test") -> tuple[MultilabelTable, NDArray[Any]]:
    """Return the table and the logits [N, K] of a part of a finished run whose images may have several labels."""
    folder = Path(run_dir)
    card, content, logits = _stored(folder, part)
    table = parse_multilabel(content, folder / PART_TABLES[part], card.classes)
    _check_rows(folder, part, len(table.path), logits, card)
    return table, logits


def _stored(folder: Path, part: Part) -> tuple[Card, bytes, NDArray[Any]]:
    """Return the card of a finished run, its table of a part, and the part's logits."""
    known = get_args(Part)
    if part not in known:
        raise TlxError(f"Unknown part {shown(part)}.{closest(str(part), known)}")
    manifest = read_manifest(folder)
    if manifest is None or RESULT not in manifest.files:
        if manifest is None and not (folder / RECIPE).is_file():
            raise RunNotFound(f"{folder} holds no finished run. Pass a folder that `tlx run` wrote.")
        if manifest is not None:
            raise RunNotFound(f"{folder} is not finished; finish it with: tlx run --resume {folder}")
    table, outputs = PART_TABLES[part], PART_LOGITS[part]
    if manifest is None or table not in manifest.files:
        raise _without(folder, part)
    contents = read_files(folder, (CARD, table, outputs))
    return read_card(contents[CARD], folder), contents[table], parse_logits(contents[outputs], folder / outputs)


def _check_rows(folder: Path, part: Part, rows: int, logits: NDArray[Any], card: Card) -> None:
    if logits.shape != (rows, len(card.classes)):
        problem = f"{folder / PART_LOGITS[part]} does not fit {PART_TABLES[part]}: it is {list(logits.shape)}"
        raise RunDamaged(problem, fix="train again")


def _without(folder: Path, part: Part) -> TlxError:
    problem = f"{folder} holds no predictions of its {'validation' if part == 'val' else 'test'} part"
    if part == "test":
        return TlxError(
            f"{problem}: its data had none, its recipe left it unread, or an earlier tlx wrote it",
            fix=f"write a table of other data, with: tlx evaluate {folder} --data DATA --csv FILE",
        )
    return TlxError(
        f"{problem}: it was trained with val_fraction 0, or by an earlier tlx",
        fix="train with val_fraction above 0, or on data with a validation folder",
    )


def parse_table(content: bytes, path: Path, classes: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns of a table; raises RunDamaged where it is none."""
    text, known = io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), {*map(readable, classes)}
    try:
        header, *rows = csv.reader(text, quoting=csv.QUOTE_NONNUMERIC)
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(header)[:60]}")
        for number, row in enumerate(rows, 2):
            kinds = [type(value) for value in row]
            if kinds != [str] * 3 + [float] * 3 or not {*row[1:3]} <= known:
                raise ValueError(f"its row {number} is no path, two classes and three numbers")
    except (ValueError, csv.Error) as error:
        raise RunDamaged(f"{path} is damaged: {' '.join(str(error).split())}", fix="train again") from error
    return {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}


def parse_multilabel(content: bytes, path: Path, classes: Sequence[str]) -> MultilabelTable:
    """Return what a table says of images that may have several labels; raises RunDamaged where it is none."""
    text, names = io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), [*map(readable, classes)]
    place, first = {name: k for k, name in enumerate(names)}, len(MULTILABEL)
    try:
        header, *rows = csv.reader(text, quoting=csv.QUOTE_NONNUMERIC)
        if header != [*MULTILABEL, *(f"probability of {name}" for name in names)]:
            raise ValueError(f"its columns are {', '.join(header)[:60]}")
        labels = np.zeros((len(rows), len(names)), np.int64)
        odds = np.empty(labels.shape)
        for number, row in enumerate(rows):
            applying, said = ([name for name in text.split(JOIN) if name] for text in (*row[1:3], "", "")[:2])
            if len(row) != len(header) or not {*applying, *said} <= place.keys():
                raise ValueError(
                    f"its row {number + 2} is no path, its labels, its answer and {len(names) + 1} numbers"
                )
            labels[number, [place[name] for name in applying]] = 1
            odds[number] = row[first:]
    except (ValueError, AttributeError, csv.Error) as error:
        raise RunDamaged(f"{path} is damaged: {' '.join(str(error).split())}", fix="train again") from error
    return MultilabelTable([str(row[0]) for row in rows], labels, odds)


def _encoded(text: str) -> bytes:
    """Return text in UTF-8. A path that is no UTF-8 keeps its bytes; surrogates that are no bytes are escaped."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def readable(name: str) -> str:
    """Return a name as a table holds it: in UTF-8, with surrogates that are no bytes escaped."""
    return _encoded(name).decode("utf-8", "surrogateescape")
