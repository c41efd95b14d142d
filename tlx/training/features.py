"""The output of the frozen part, computed once per variant of an image and cached.

If the frozen part keeps its statistics, its output depends on the image alone. So it is cached for each variant that
augmentation makes of each image, as the variants come up, and training starts at the boundary: the first module that
trains.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tlx.backend import Array, Backend, Batch, Handle, Model
from tlx.data.loader import Epoch, Loader
from tlx.download import cache_folder
from tlx.training.feature_store import CHECKED, FeatureStore, open_store
from tlx.training.metrics import FeaturesKept

MEMORY_PART = 1 / 4  # of the machine's memory; what is larger goes to a file
DISK_PART = 1 / 2  # of the free disk space; what is larger is not cached
FEWEST = 8  # images at once; from here on, no batch size was found that gives other bits


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where the frozen part ends and training begins: a module's path, and what enters that module for one image."""

    module: str
    dtype: np.dtype[Any]  # uint16 stands for bfloat16: see `packed`
    shape: tuple[int, ...]
    store: FeatureStore | None  # features of earlier runs


class Features:
    """Serves a loader's batches from a boundary on; `epoch` and `steps` are those of the loader."""

    def __init__(self, backend: Backend, model: Model, loader: Loader, boundary: Boundary, cache: Array) -> None:
        self.backend, self.model, self.loader, self.boundary = backend, model, loader, boundary
        self.cache = cache  # [samples x variants, ...]: a row for each variant of each sample
        self.filled = np.zeros(len(cache), np.bool_)
        self.steps = loader.steps

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from number `start` on; their images are what enters the boundary."""
        drawn, variants = self.loader.draw(epoch), self.loader.variants
        assert variants is not None
        rows = drawn.order * variants + self.loader.variant(drawn)
        with closing(self._fill(drawn, rows, start * self.loader.batch_size)) as filling:
            for number in range(start, self.steps):
                wanted = rows[drawn.places(number)]
                while not self.filled[wanted].all():
                    next(filling)
                yield self.loader.batch(drawn, number, unpacked(self.cache[wanted]), self.boundary.module)

    def _fill(self, drawn: Epoch, rows: Array, start: int) -> Generator[None, None, None]:
        """Compute what the cache lacks of an epoch, in the order in which it comes up, in full batches."""
        lacking = np.flatnonzero(~self.filled[rows[start:]]) + start
        _, first = np.unique(rows[lacking], return_index=True)
        lacking = lacking[np.sort(first)]
        size = self.loader.batch_size
        chunks = [lacking[at : at + size] for at in range(0, len(lacking), size)]
        with closing(self.loader.pixels(drawn, chunks)) as pixels:
            for places, images in zip(chunks, pixels, strict=True):
                self.cache[rows[places]] = self._features(images)
                self.filled[rows[places]] = True
                yield

    def _features(self, images: Array) -> Array:
        """The features of some images: those that earlier runs left, and the others computed now."""
        store = self.boundary.store
        if store is None:
            return self._compute(images)
        if not store.verified:
            store.verify(images, self._compute)
        features = np.empty((len(images), *self.boundary.shape), self.boundary.dtype)
        known, features_of_known = store.find(images)
        features[known] = features_of_known
        if not known.all():
            features[~known] = self._compute(images[~known])
            store.add(images[~known], features[~known])
        return features

    def _compute(self, images: Array) -> Array:
        features = compute_features(self.backend, self.model, self.loader, images, self.boundary.module)
        return packed(features) if self.boundary.dtype == np.uint16 else features


Batches = Loader | Features


@dataclass(frozen=True, slots=True)
class Feed:
    """Where the batches of a phase come from: the loaders, or the cached features of the frozen part."""

    train: Batches
    val: Batches | None
    boundary: Boundary | None = None  # where the features are taken; None: nothing is cached


def choose_feed(
    backend: Backend, model: Model, train: Loader, val: Loader | None, network: Mapping[str, Any] | None
) -> Generator[FeaturesKept, None, Feed]:
    """Cache the features of each part whose images come in a bounded number of variants, if there is a boundary.

    Args:
        backend: computes the model.
        model: a model whose present phase freezes something.
        train: the training images.
        val: the validation images; None: there are none, or they go through the whole model.
        network: what identifies all that computes features, values included, so that later runs find them again; None:
            the features serve this run alone.
    """
    parts = {"train": train, "val": val}
    bounded = {part: loader for part, loader in parts.items() if loader is not None and loader.variants is not None}
    boundary = find_boundary(backend, model, next(iter(bounded.values())), network) if bounded else None
    if boundary is None:
        return Feed(train, val)
    feeds: dict[str, Batches | None] = {**parts}
    for part, loader in bounded.items():
        features, event = cache_features(backend, model, loader, part, boundary)
        feeds[part] = features or loader
        yield event
    return Feed(feeds["train"] or train, feeds["val"], boundary)


def find_boundary(backend: Backend, model: Model, loader: Loader, network: Mapping[str, Any] | None) -> Boundary | None:
    """Return the best boundary of the model's present phase, or None.

    From there on the logits are those of the whole model, which is shown on images of a loader. `network` is as in
    `choose_feed`.
    """
    if not (modules := backend.boundaries(model)):
        return None
    drawn = loader.draw(0)
    sample = next(loader.pixels(drawn, [np.arange(min(CHECKED, len(drawn.order)))]))
    module = exact_boundary(backend, model, loader, modules, sample)
    if module is None:
        return None
    example = compute_features(backend, model, loader, sample, module)
    halves = example.dtype == np.float32 and not (example.view(np.uint32) & 0xFFFF).any()  # it was bfloat16
    dtype, shape, store = np.dtype(np.uint16 if halves else example.dtype), example.shape[1:], None
    if network is not None:
        facts = {**network, "boundary": module, "preprocess": asdict(loader.preprocess)}
        store = open_store(facts, dtype, shape)
    return Boundary(module, dtype, shape, store)


def cache_features(
    backend: Backend, model: Model, loader: Loader, part: str, boundary: Boundary
) -> tuple[Features | None, FeaturesKept]:
    """Return a loader's features at a boundary, None if there is no room for them, and the event that says so."""
    count, variants = len(loader.images), loader.variants
    assert variants is not None
    shape = (count * variants, *boundary.shape)
    size = math.prod(shape) * boundary.dtype.itemsize
    cache, where = reserve(shape, boundary.dtype, size)
    earlier = 0 if boundary.store is None else len(boundary.store)
    event = FeaturesKept(part, boundary.module, count, variants, size, where, earlier)
    return (None if cache is None else Features(backend, model, loader, boundary, cache)), event


def exact_boundary(
    backend: Backend, model: Model, loader: Loader, modules: tuple[str, ...], images: Array
) -> str | None:
    """Return the first module from which the logits are those of the whole; some use more than their input."""

    def logits(images: Array, boundary: str) -> Array:
        return backend.fetch([backend.logits(model, put(backend, model, loader, images, boundary))])[0]

    expected = logits(images, "")
    for module in modules:
        if np.array_equal(logits(compute_features(backend, model, loader, images, module), module), expected):
            return module
    return None


def put(backend: Backend, model: Model, loader: Loader, images: Array, boundary: str = "") -> Handle:
    """Put a batch without labels on the device; its images are pixels, or what enters a boundary."""
    labels = np.zeros(len(images), np.int64)
    return backend.put(model, Batch(images, labels, labels, loader.preprocess, boundary=boundary))


def compute_features(backend: Backend, model: Model, loader: Loader, images: Array, boundary: str) -> Array:
    """Return what enters a boundary, [n, ...], of uint8 images [n, 3, h, w].

    A few images are repeated to make a batch: matrix products of few rows (VGG's dense layers) round otherwise.
    """
    whole = np.resize(images, (FEWEST, *images.shape[1:])) if len(images) < FEWEST else images
    return backend.fetch([backend.features(model, put(backend, model, loader, whole), boundary)])[0][: len(images)]


def packed(features: Array) -> Array:
    """Return the upper halves, uint16, of float32 numbers that are bfloat16 numbers."""
    words = np.ascontiguousarray(features).view(np.uint32)
    assert not (words & 0xFFFF).any(), "features were bfloat16 at first and are not any more"
    return (words >> 16).astype(np.uint16)


def unpacked(rows: Array) -> Array:
    """Undo `packed`; other arrays are returned as they are."""
    return (rows.astype(np.uint32) << 16).view(np.float32) if rows.dtype == np.uint16 else rows


def reserve(shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> tuple[Array | None, str]:
    """Return room for features, and where it is: "memory", "disk" (a file that vanishes with the process), or ""."""
    if size <= MEMORY_PART * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return np.zeros(shape, dtype), "memory"
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if size > DISK_PART * shutil.disk_usage(folder).free:
        return None, ""
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape), "disk"
