"""What a page shows of a run: taken from a run that ends, or read from its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx.data import ArrayImages, Data, Images, Loader
from tlx.data.fingerprint import difference
from tlx.data.geometry import from_planes
from tlx.data.multilabel import is_multilabel
from tlx.errors import DataError, RecipeError, RunNotFound, TlxError
from tlx.files import read_regular
from tlx.manifest import CARD, PART_TABLES, RECIPE, read_files, read_manifest
from tlx.recipe import Recipe, read_toml
from tlx.runs.card import Card, read_card, read_pixels
from tlx.runs.facts import Facts, parse_object
from tlx.runs.folder import RESULT
from tlx.runs.logits import Spool
from tlx.runs.report.judged import TILE, Judged, judged_by, judged_in, opened, opened_at
from tlx.runs.report.several import Several, named, several_by
from tlx.runs.report.summary import Summary, summary_of
from tlx.runs.table import load_multilabel, load_predictions
from tlx.training.build import make_loader, open_data

if TYPE_CHECKING:
    from PIL.Image import Image


BATCH = 16  # images of the first batch that are shown
_FIX = "train again"
# What the loader of a run's training images needs of its recipe; neither the model, nor what trains.
_LOADING = {
    *("batch_size", "augment", "augment_repeats", "sampler", "class_weights", "label_smoothing", "mixup", "cutmix"),
    *("image_size", "mean", "std", "interpolation", "crop_fraction", "aspect", "antialias", "workers", "seed"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image of the first batch as it enters the network, before it is normalised."""

    image: Image
    label: str
    side: int  # pixels of its longer side; the device enlarges what is smaller than the network takes


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """All that a page shows of one run."""

    run_dir: str
    data: str  # its name
    size: int  # pixels of the network's input, in height and width
    classes: Sequence[str]
    summary: Summary
    parts: Mapping[str, Judged]  # "val" and "test", where there are predictions of them
    batch: Callable[[], Sequence[Sample]] | None  # None: the training images cannot be had
    problem: str = ""  # why images are missing
    images: Mapping[str, Images] = field(default_factory=dict)  # of the parts whose images are those of the run
    several: Mapping[str, Several] = field(default_factory=dict)  # in place of `parts`, where images may have several


def contents_of(
    result: Mapping[str, Any],
    card: Mapping[str, Any],
    data: Data,
    loader: Loader,
    judged: Loader,
    spools: Mapping[str, Spool],
) -> Contents:
    """Return the contents of a run that ends.

    Args:
        result: as result.json will hold it.
        card: as card.json will hold it.
        data: the run's data.
        loader: of its training images.
        judged: of images that are evaluated.
        spools: the logits of the parts that were read.
    """
    summary = summary_of(Facts(RESULT, result, ""))
    parts, several = dict[str, Judged](), dict[str, Several]()
    for part, spool in ((part, spool) for part, spool in spools.items() if part in data.parts):
        if data.multilabel:
            several[part] = several_by(spool, data.parts[part], judged.framing, card["thresholds"])
        else:
            parts[part] = judged_by(spool, data.parts[part], judged.framing, summary.temperature)
    size = card["preprocess"]["size"]
    name = card["data"]["name"]
    batch = lambda: first_batch(loader, data.classes)  # noqa: E731
    return Contents(result["run_dir"], name, size, data.classes, summary, parts, batch, several=several)


def first_batch(loader: Loader, classes: Sequence[str], most: int = BATCH) -> list[Sample]:
    """Draw the first images of the first batch again: chance depends on nothing but the seed.

    Raises DataError where one cannot be decoded.
    """
    epoch = loader.draw(0)
    places = epoch.places(0)
    mixes = loader.targets is not None and loader.targets.mixes
    if not mixes:  # otherwise an image's partner is needed
        places = places[:most]
    (images,) = loader.pixels(epoch, [places])
    several, rows = is_multilabel(loader.images.labels), loader.images.labels[epoch.order[places]]
    labels = [named(row, classes) if several else classes[row] for row in rows]
    if mixes:
        loader.batch(epoch, 0, images)  # which mixes them in place
        labels = [a if a == b else f"{a} + {b}" for a, b in zip(labels, reversed(labels), strict=True)]
    side = max(images.shape[2:])
    return [Sample(_small(image), label, side) for image, label in zip(images[:most], labels, strict=False)]


def _small(pixels: NDArray[np.uint8]) -> Image:
    image = from_planes(pixels)
    image.thumbnail((TILE, TILE))
    return image


def read_contents(run_dir: Path, data: Any = None) -> Contents:
    """Return the contents of a finished run, read from its folder; of its data only the images that are shown.

    Args:
        run_dir: its folder.
        data: the run's data again, where it was passed in Python or lies elsewhere.

    Raises:
        RunNotFound: there is no finished run in the folder.
        RunDamaged: a file of the run is missing or is not what the run wrote.
        TlxError: `data` are not those of the run.
    """
    files, tables = _files(run_dir)
    card = read_card(files[CARD], run_dir)
    result = Facts(str(run_dir / RESULT), parse_object(files[RESULT], str(run_dir / RESULT), _FIX), _FIX)
    summary = summary_of(result)
    there, batch, problem = _data(run_dir, files[RECIPE], card, data)
    framing = read_pixels(card, run_dir, files[RECIPE])
    parts, several, same = dict[str, Judged](), dict[str, Several](), dict[str, Images]()
    for part in tables:
        images = None if there is None else there.parts.get(part)
        if card.thresholds is None:
            table = load_predictions(run_dir, part)  # type: ignore[arg-type]
            paths, labels = table["path"], table["label"]
            known = [] if images is None else [card.classes[label] for label in images.labels]
        else:
            marked, logits = load_multilabel(run_dir, part)  # type: ignore[arg-type]
            paths, labels = marked.path, marked.labels.tolist()
            known = [] if images is None else images.labels.tolist()
        if images is not None and not (known == labels and _same(images, paths)):
            images, problem = None, problem or f"the {_PARTS[part]} images are not those that the run predicted"
        if images is not None:
            same[part] = images
        opening = None if images is None else partial(opened, images, framing)
        if opening is None and card.photos:  # some may lie where they did
            opening = partial(opened_at, paths, framing)
        if card.thresholds is None:
            parts[part] = judged_in(table, card.classes, card.temperature, opening)
        else:
            cuts = np.array(card.thresholds)
            several[part] = Several(marked.labels, logits, cuts, paths.__getitem__, opening)
    of_data = Facts(str(run_dir / CARD), parse_object(files[CARD], str(run_dir / CARD)), _FIX).inner("data")
    head = str(run_dir), of_data.text("name"), card.preprocess.size, card.classes, summary
    return Contents(*head, parts, batch, problem, same, several)


_PARTS = {"val": "validation", "test": "test"}


def _same(images: Images, paths: Sequence[str]) -> bool:
    """Whether these are the images of a table, wherever their folder lies now."""
    return len(images) == len(paths) and all(map(str.endswith, paths, images.names))


def _files(run_dir: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return the small files of a finished run, and the parts of which it has predictions."""
    manifest, names = read_manifest(run_dir), (RECIPE, RESULT, CARD)
    finished = RESULT in manifest.files if manifest else isfile(run_dir / RESULT)
    if not finished and (manifest or isfile(run_dir / RECIPE)):
        raise RunNotFound(f"{run_dir} is not finished; finish it with: tlx run --resume {run_dir}")
    if manifest:
        return read_files(run_dir, names), [part for part, name in PART_TABLES.items() if name in manifest.files]
    missing = [name for name in names if not isfile(run_dir / name)]
    if missing:
        raise RunNotFound(
            f"{run_dir} holds no finished run: {missing[0]} is missing. Pass a folder that `tlx run` wrote."
        )
    try:
        return {name: read_regular(run_dir / name) for name in names}, []
    except OSError as error:
        raise TlxError(f"{run_dir} cannot be read: {error.strerror}") from error


def _data(
    run_dir: Path, recipe_file: bytes, card: Card, data: Any
) -> tuple[Data | None, Callable[[], Sequence[Sample]] | None, str]:
    """Open a run's data; return also what draws the first batch, and why there are no images, if so."""
    of_data = {f.name for f in fields(Recipe) if f.metadata["group"] == "Data"}
    try:
        recipe = Recipe.from_toml(
            run_dir / RECIPE, {} if data is None else {"data": data}, of_data | _LOADING, recipe_file
        )
        there = open_data(recipe)
        if list(there.classes) != card.classes:
            raise DataError("the data has other classes than the run")
        # Photos are known by their paths; reading all of them would take too long for a page.
        if isinstance(there.train, ArrayImages) and (what := difference(card.fingerprint, there)):
            raise DataError(f"the data is not the run's: {what}")
    except (DataError, RecipeError) as error:
        if data is not None:
            raise
        return None, None, error.problem
    # "2:train=90 val=10:..." of the run; without the same counts, the first batch is another.
    counts = " ".join(f"{part}={len(images)}" for part, images in there.parts.items())
    if card.fingerprint.startswith("2:") and card.fingerprint.split(":")[1] != counts:
        return there, None, "there are more or fewer images than when the run was trained"
    fits = read_toml(run_dir / RECIPE, recipe_file).get("strategy") in ("probe", "knn")

    def batch() -> Sequence[Sample]:
        loader = make_loader(recipe, there.train, training=not fits, classes=len(there.classes))
        return first_batch(loader, there.classes)

    return there, batch, ""
