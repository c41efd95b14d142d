"""A finished run, opened again: to evaluate it, to predict with it, or to take its model elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array, Backend, Batch, Lazy, Model, Preprocess, registry
from tlx.data.framing import Framing
from tlx.data.geometry import from_planes
from tlx.data.images import seen
from tlx.errors import DataError, RunNotFound, TlxError
from tlx.files import read_regular
from tlx.manifest import BANK, CARD, RECIPE, read_files, read_manifest
from tlx.models.matching import match
from tlx.models.weights import RUN_WEIGHTS, check_digest, parse_safetensors
from tlx.recipe import Recipe
from tlx.runs.card import Card, read_card, read_pixels, recorded_accuracy
from tlx.runs.facts import parse_object
from tlx.runs.folder import RESULT
from tlx.training.build import build_model, resolve_placement
from tlx.training.fit import find_head
from tlx.training.neighbors import Bank

# What a model needs of its run's recipe.
NEEDED = (
    *("backend", "model", "head", "hidden", "dropout", "image_size", "batch_size"),
    *("precision", "device", "workers", "max_pixels"),
    "label_separator",  # by which it reads other lists of photos too
)

FILES = (RECIPE, RESULT, CARD, RUN_WEIGHTS)


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A run's model with its weights, placed on a backend; `recipe` says where and in which precision.

    `recipe_file` is all of recipe.toml, of which `recipe` reads what the model needs.
    """

    run_dir: Path
    card: Card
    recorded_accuracy: float | None  # of its own test part
    recipe_file: bytes
    recipe: Recipe
    backend: Backend
    model: Model
    preprocess: Preprocess
    framing: Framing
    voting: Callable[[Array], Array] | None = None  # strategy knn: from what enters the head to logits

    def outputs(self, batch: Batch) -> Lazy:
        """Start a batch on the device: its logits, or what the neighbours vote by."""
        compute = self.backend.logits if self.voting is None else self.backend.features
        return compute(self.model, self.backend.put(self.model, batch))

    def logits(self, outputs: Array) -> Array:
        """Return the logits [N, classes] of fetched outputs."""
        return outputs if self.voting is None else self.voting(outputs)


def read_run(run_dir: Path) -> dict[str, bytes]:
    """Return what the files of a finished run hold: its recipe, result, card and weights, all of one moment.

    Raises:
        RunNotFound: there is no run in the folder, or it has not finished.
        RunDamaged: one of them is missing or is not what the run wrote.
    """
    manifest = read_manifest(run_dir)
    finished = RESULT in manifest.files if manifest else isfile(run_dir / RESULT)
    if not finished and (manifest or isfile(run_dir / RECIPE)):
        raise RunNotFound(f"{run_dir} is not finished; finish it with: tlx run --resume {run_dir}")
    if manifest:
        return read_files(run_dir, (*FILES, BANK) if BANK in manifest.files else FILES)
    for name in FILES:
        if not isfile(run_dir / name):
            raise RunNotFound(
                f"{run_dir} holds no finished run: {name} is missing. Pass a folder that `tlx run` wrote."
            )
    try:
        contents = {name: read_regular(run_dir / name) for name in FILES}
    except OSError as error:
        raise TlxError(f"{run_dir} cannot be read: {error.strerror}") from error
    arrays = parse_safetensors(contents[RUN_WEIGHTS], run_dir / RUN_WEIGHTS)
    check_digest(arrays, parse_object(contents[CARD], str(run_dir / CARD)), run_dir / RUN_WEIGHTS)
    return contents


def opened(run_dir: Path, objects: Mapping[str, Any]) -> tuple[dict[str, bytes], Card, Recipe]:
    """Return what the files of a finished run hold, its card, and of its recipe what the model needs.

    `objects` are `model` and `head`, where the recipe's were Python objects.
    """
    contents = read_run(run_dir)
    overrides = {name: value for name, value in objects.items() if value is not None}
    recipe = Recipe.from_toml(run_dir / RECIPE, overrides, NEEDED, contents[RECIPE])
    return contents, read_card(contents[CARD], run_dir), recipe


def restore(run_dir: str | Path, backend: str | None = None, *, single: bool = False, **objects: Any) -> Finished:
    """Build the model of a finished run and load its weights.

    Args:
        run_dir: a folder that `tlx run` wrote.
        backend: where to build it; default: the backend that trained. On another one, on its best device, in the
            precision of the training where that is native there.
        single: place it on the CPU in float32, wherever it was trained.
        **objects: `model` and `head`, where the recipe's were Python objects.
    """
    run_dir = Path(run_dir)
    contents, card, recipe = opened(run_dir, objects)
    target = registry.load(backend or recipe.backend)
    if single:
        recipe = resolve_placement(replace(recipe, backend=target.name, device="cpu", precision="float32"), target)
    else:
        recipe = resolve_placement(recipe, target) if backend is None else _moved(recipe, target)
    if card.preprocess.size != recipe.pixels.size:
        problem = f"its recipe has image_size {recipe.pixels.size}, and its card {card.preprocess.size}"
        raise TlxError(f"{run_dir} is damaged: {problem}", fix="train again")
    built, arch = build_model(recipe, target, len(card.classes))
    specs = target.param_specs(built)
    arrays, voting = parse_safetensors(contents[RUN_WEIGHTS], run_dir / RUN_WEIGHTS), None
    if card.neighbors is not None:
        head = find_head([spec for spec in specs if arch.stage_of(spec.module) == "head"], "knn")
        bank = read_bank(contents, run_dir, card, head.width)
        arrays, voting = {**arrays, **head.zeros()}, lambda features: bank.logits(head.pooled(features))
    weights = match(arrays, specs, head=arch.head, model_name=arch.name, take_head=True)
    target.load_arrays(built, weights)
    framing = read_pixels(card, run_dir, contents[RECIPE])
    recorded = recorded_accuracy(contents[RESULT], run_dir)
    return Finished(run_dir, card, recorded, contents[RECIPE], recipe, target, built, card.preprocess, framing, voting)


def read_bank(contents: Mapping[str, bytes], run_dir: Path, card: Card, width: int) -> Bank:
    """Return the training images by which a run of strategy knn classifies; TlxError where they do not fit its model.

    Args:
        contents: of the run's files.
        run_dir: its folder.
        card: its card.
        width: how many features its model has.
    """
    assert card.neighbors is not None
    path, (k, temperature), classes = run_dir / BANK, card.neighbors, len(card.classes)
    if BANK not in contents:
        raise TlxError(f"{run_dir / CARD} says that neighbours vote, but the run has no {BANK}", fix="train again")
    arrays = parse_safetensors(contents[BANK], path)
    features, labels = (arrays.get(name, np.empty(0)) for name in ("features", "labels"))
    fits = features.dtype in (np.float32, np.float64) and features.shape == (len(labels), width)
    several = card.thresholds is not None
    shape, most = ((len(features), classes), 1) if several else ((len(features),), classes - 1)
    fits = fits and labels.dtype == np.int64 and labels.shape == shape and k <= len(labels)
    if not fits or not np.isfinite(features).all() or not ((labels >= 0) & (labels <= most)).all():
        rows = f"labels [n, {classes}] of 0 and 1" if several else f"labels [n] from 0 to {most}"
        expected = f"features [n, {width}] and {rows} of at least {k} images"
        raise TlxError(f"{path} is damaged: expected {expected}", fix="train again")
    return Bank(features, labels, classes, k, temperature)


def _moved(recipe: Recipe, backend: Backend) -> Recipe:
    placed = resolve_placement(replace(recipe, backend=backend.name, device="auto", precision="auto"), backend)
    if recipe.precision in backend.capabilities().precisions[placed.device]:
        return replace(placed, precision=recipe.precision)
    return placed


def load_model(run_dir: str | Path, backend: str | None = None, *, model: Any = None, head: Any = None) -> Any:
    """Return the model of a finished run as the framework's own module, in eval mode.

    The module has two attributes more: `classes`, the class names in the order of the logits, and `preprocess`, which
    turns uint8 images [N, 3, h, w] into the array [N, 3, size, size] that the module takes, in its dtype: cropped,
    resized and normalised as those that the run was evaluated on::

        model = tlx.load_model("runs/digits-resnet18-full-torch-1")
        logits = model(torch.from_numpy(model.preprocess(images)))

    Its dropout layers draw their masks from tlx's streams, which only `tlx.run` advances. To train on by hand, load
    the module's `state_dict()` into a model of your own.

    Args:
        run_dir: a folder that `tlx run` wrote.
        backend: whose module to build; default: the backend that trained. The same weights serve either.
        model: the module again, where the run's `model` was a Python object; a copy of it is returned.
        head: the module again, where the run's `head` was one.

    Raises:
        RunNotFound: there is no finished run in the folder.
        BackendUnavailable: the backend is not installed.
        RunDamaged: a file of the run is missing or is not what the run wrote.
        WeightsError: the weights do not fit.
        TlxError: the run is of strategy knn, which has no head.
    """
    finished = restore(run_dir, backend, model=model, head=head)
    if finished.voting is not None:
        problem = f"{run_dir} is of strategy knn: its neighbours vote, and its module has no head to give logits"
        raise TlxError(problem, fix="use tlx.predict, or train with strategy probe")
    module = finished.model.module
    module.classes = tuple(finished.card.classes)
    dtype = np.float64 if finished.recipe.precision == "float64" else np.float32
    module.preprocess = partial(framed, framing=finished.framing, preprocess=finished.preprocess, dtype=dtype)
    return module


def framed(images: Array, *, framing: Framing, preprocess: Preprocess, dtype: Any) -> Array:
    """Return uint8 images [N, 3, h, w] of any size, cropped, resized and normalised as in evaluation.

    Raises DataError where they are something else.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise DataError(f"images are {images.dtype} {list(images.shape)}; expected uint8 [N, 3, h, w]")
    return preprocess.apply(np.stack([framing.pixels(partial(seen, from_planes(image))) for image in images]), dtype)
