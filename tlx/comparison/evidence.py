"""What frozen features and trials say of a data set: each image is judged by what has not seen it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.backend import Batch, registry
from tlx.comparison.domain import domain_distance
from tlx.data import Data, Images
from tlx.data.file_hashes import FileHashes
from tlx.data.fingerprint import hashes_of
from tlx.data.split import limit
from tlx.recipe import Recipe
from tlx.runs.display import Display, follow
from tlx.runs.extractor import Extractor, extractor_of, features_of
from tlx.training.build import build_model, load_initial, make_training
from tlx.training.loop import State, Training, evaluated, train
from tlx.training.neighbors import Bank, choose_neighbors, unit
from tlx.training.out_of_fold import folds_of, out_of_fold

MOST = 5000  # training images that are judged, drawn in the classes' proportions
BATCH = 128  # images by which the domain is judged, at most

Right = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the features of the training images say.

    Attributes:
        images: those that were judged.
        fold: of each, [N].
        probe: whether a regression that has not seen it was right about each, [N].
        knn: whether the nearest of the images outside its fold were right about each, [N].
        neighbors: how many vote where all images but one may.
        distance: from the pretraining, as `domain_distance` has it; None: there is no BatchNorm.
        fit_seconds: that the regressions took.
    """

    images: Images
    fold: NDArray[np.int64]
    probe: Right
    knn: Right
    neighbors: int
    distance: float | None
    fit_seconds: float


def evidence_of(recipe: Recipe, data: Data, display: Display, neighbors: int | None = None) -> Evidence:
    """Compute the features of the training images once, and judge each image by the others.

    `neighbors` is how many vote; None: as many as the training images choose.
    """
    extractor = extractor_of(recipe, display.shown)
    images = limit(data.train, data.classes, max(MOST, len(data.classes)), "images")
    contents = [bytes(name).hex() for name in hashes_of(images, FileHashes()).tolist()]
    features = features_of(extractor, images, contents, display.counted("features of the images"))
    import_module("sklearn.linear_model")  # which takes seconds the first time, and no time of a fit's
    started = time.perf_counter()
    probabilities = out_of_fold(features, images.labels, (), display.counted("probes"))
    seconds = time.perf_counter() - started
    fold, whole = folds_of(images.labels), Bank(unit(features), images.labels, len(data.classes), 1)
    knn = np.zeros(len(images), np.bool_)
    for number in np.unique(fold):
        inside, outside = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        bank = _with_neighbors(
            replace(whole, features=whole.features[outside], labels=whole.labels[outside]), neighbors
        )
        knn[inside] = bank.logits(features[inside]).argmax(axis=1) == images.labels[inside]
    probe = probabilities.argmax(axis=1) == images.labels
    distance = distance_of(extractor, images)
    return Evidence(images, fold, probe, knn, _with_neighbors(whole, neighbors).k, distance, seconds)


def _with_neighbors(bank: Bank, neighbors: int | None) -> Bank:
    """Choose how many vote where that is not given, as a run without a validation part does."""
    able = None if neighbors is None else min(neighbors, len(bank.labels) - 1)
    return replace(bank, k=follow(choose_neighbors(bank, None, able), ()).k)


def distance_of(extractor: Extractor, images: Images) -> float | None:
    """Return how far images lie from the pretraining of a model: see `domain_distance`."""
    framing, backend, model = extractor.framing_of(images), extractor.backend, extractor.model
    places = np.unique(np.linspace(0, len(images) - 1, min(len(images), BATCH)).astype(np.int64))

    def pixels(index: int) -> NDArray[np.uint8]:
        return framing.pixels(lambda view: images.open(index, view))

    zeros, size = np.zeros(len(places), np.int64), extractor.preprocess.size
    photos = np.ascontiguousarray(np.stack([pixels(index) for index in places.tolist()]))
    words = rng.words(0, "advise/noise", 0, len(places), -(-3 * size * size // 4))
    noise = np.ascontiguousarray(words.view(np.uint8)[:, : 3 * size * size].reshape(-1, 3, size, size))
    seen, unlike = (backend.put(model, Batch(images, zeros, zeros, extractor.preprocess)) for images in (photos, noise))
    specs = backend.param_specs(model)
    return domain_distance(backend, model, specs, [extractor.head.weight.name], seen, unlike)


def prepared(recipe: Recipe, data: Data) -> Training:
    """Build what a run would train. It finds no features of earlier runs, and leaves none."""
    backend = registry.load(recipe.backend)
    model, arch = build_model(recipe, backend, len(data.classes))
    load_initial(recipe, backend, model, arch, data.classes, False)
    return replace(make_training(recipe, backend, data, model, arch), network=None)


def trial(recipe: Recipe, data: Data, evidence: Evidence, fold: int) -> Right:
    """Train on the judged images outside a fold; return which of those inside are right after the last epoch."""
    images, inside = evidence.images, evidence.fold == fold
    parts = [images.select(which, images.labels[which]) for which in (np.flatnonzero(~inside), np.flatnonzero(inside))]
    held = replace(data, train=parts[0], val=parts[1], test=None, _fingerprint=[])
    training = prepared(recipe, held)
    follow(train(training, State()), ())
    assert training.val is not None
    right = []
    for batch in training.val.epoch(0):
        (logits,) = training.backend.fetch([evaluated(training.backend, training.judged, batch)[2]])
        right.append(logits.argmax(axis=1) == batch.labels)
    return np.concatenate(right)
