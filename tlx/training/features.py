"""What enters the part that trains is the same each time an image comes: it is computed once and kept.

Where the frozen part keeps its statistics, its output depends on the image alone. So it is kept for every version of
every image that augmentation has, filled as the versions come up, and training starts at the boundary.
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
from tlx.training.feature_store import Shelf, open_shelf
from tlx.training.metrics import FeaturesKept

MEMORY_PART = 1 / 4  # of the machine's memory; what is larger lies in a file
DISK_PART = 1 / 2  # of the free disk; what is larger is not kept
FEWEST = 8  # images at once; from here on, no batch size was found that gives other bits
CHECKED = 8  # images on which a cut must give the logits of the whole model, bit for bit


@dataclass(frozen=True, slots=True)
class Cut:
    """Where features are taken, what one of them is, and those that earlier runs left."""

    module: str
    dtype: np.dtype[Any]  # uint16 stands for bfloat16: see `packed`
    shape: tuple[int, ...]
    shelf: Shelf | None


class Features:
    """Serves a loader's batches from a cut on; `epoch` and `steps` are those of the loader."""

    def __init__(self, backend: Backend, model: Model, loader: Loader, cut: Cut, store: Array) -> None:
        self.backend, self.model, self.loader, self.cut, self.store = backend, model, loader, cut, store
        self.there = np.zeros(len(store), np.bool_)
        self.steps = loader.steps

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from number `start` on, whose images are what enters the cut."""
        drawn, versions = self.loader.draw(epoch), self.loader.variants
        assert versions is not None
        slots = drawn.order * versions + self.loader.variant(drawn)
        with closing(self._fill(drawn, slots, start * self.loader.batch_size)) as filling:
            for number in range(start, self.steps):
                wanted = slots[drawn.places(number)]
                while not self.there[wanted].all():
                    next(filling)
                yield self.loader.batch(drawn, number, unpacked(self.store[wanted]), self.cut.module)

    def _fill(self, drawn: Epoch, slots: Array, start: int) -> Generator[None, None, None]:
        """Compute what an epoch lacks, in the order in which it comes up, in full batches."""
        lacking = np.flatnonzero(~self.there[slots[start:]]) + start
        _, first = np.unique(slots[lacking], return_index=True)
        lacking = lacking[np.sort(first)]
        size = self.loader.batch_size
        chunks = [lacking[at : at + size] for at in range(0, len(lacking), size)]
        with closing(self.loader.pixels(drawn, chunks)) as pixels:
            for rows, images in zip(chunks, pixels, strict=True):
                self.store[slots[rows]] = self._rows(images)
                self.there[slots[rows]] = True
                yield

    def _rows(self, images: Array) -> Array:
        """The features of images: those of an earlier run, of which a few are computed anew, and the rest."""
        shelf = self.cut.shelf
        if shelf is None:
            return self._computed(images)
        found, rows = shelf.find(images)
        if found.any() and not shelf.proven:
            shelf.proven = np.array_equal(self._computed(images[found][:CHECKED]), rows[:CHECKED])
            if not shelf.proven:
                shelf.clear()
                return self._rows(images)
        every = np.empty((len(images), *self.cut.shape), self.cut.dtype)
        every[found] = rows
        if not found.all():
            every[~found] = self._computed(images[~found])
            shelf.add(images[~found], every[~found])
        return every

    def _computed(self, images: Array) -> Array:
        found = computed(self.backend, self.model, self.loader, images, self.cut.module)
        return packed(found) if self.cut.dtype == np.uint16 else found


def find_cut(backend: Backend, model: Model, loader: Loader, network: Mapping[str, Any] | None) -> Cut | None:
    """The best cut of the model's present phase that gives the logits of the whole, shown on images of a loader.

    network: what identifies all that computes features, for later runs to find them again; None: this run alone.
    """
    if not (cuts := backend.cuts(model)):
        return None
    drawn = loader.draw(0)
    sample = next(loader.pixels(drawn, [np.arange(min(CHECKED, len(drawn.order)))]))
    module = exact_cut(backend, model, loader, cuts, sample)
    if module is None:
        return None
    example = computed(backend, model, loader, sample, module)
    halves = example.dtype == np.float32 and not (example.view(np.uint32) & 0xFFFF).any()  # it was bfloat16
    dtype, shape, shelf = np.dtype(np.uint16 if halves else example.dtype), example.shape[1:], None
    if network is not None:
        facts = {**network, "cut": module, "preprocess": asdict(loader.preprocess)}
        shelf = open_shelf(facts, dtype, shape)
    return Cut(module, dtype, shape, shelf)


def keep(backend: Backend, model: Model, loader: Loader, part: str, cut: Cut) -> tuple[Features | None, FeaturesKept]:
    """Return a loader's features at a cut, None where there is no room, and what to tell."""
    count, versions = len(loader.images), loader.variants
    assert versions is not None
    shape = (count * versions, *cut.shape)
    size = math.prod(shape) * cut.dtype.itemsize
    store, where = reserve(shape, cut.dtype, size)
    told = FeaturesKept(part, cut.module, count, versions, size, where, 0 if cut.shelf is None else len(cut.shelf))
    return (None if store is None else Features(backend, model, loader, cut, store)), told


def exact_cut(backend: Backend, model: Model, loader: Loader, cuts: tuple[str, ...], images: Array) -> str | None:
    """Return the first cut from which the logits are those of the whole; a module may use more than its input."""

    def logits(images: Array, cut: str) -> Array:
        return backend.fetch([backend.logits(model, put(backend, model, loader, images, cut))])[0]

    expected = logits(images, "")
    for cut in cuts:
        if np.array_equal(logits(computed(backend, model, loader, images, cut), cut), expected):
            return cut
    return None


def put(backend: Backend, model: Model, loader: Loader, images: Array, cut: str = "") -> Handle:
    labels = np.zeros(len(images), np.int64)
    return backend.put(model, Batch(images, labels, labels, loader.preprocess, cut=cut))


def computed(backend: Backend, model: Model, loader: Loader, images: Array, cut: str) -> Array:
    """What enters a cut. Few images are repeated: matrix products of few rows (VGG's dense layers) round otherwise."""
    whole = np.resize(images, (FEWEST, *images.shape[1:])) if len(images) < FEWEST else images
    return backend.fetch([backend.features(model, put(backend, model, loader, whole), cut)])[0][: len(images)]


def packed(features: Array) -> Array:
    """The upper halves of float32 numbers that are bfloat16 numbers, uint16."""
    words = np.ascontiguousarray(features).view(np.uint32)
    assert not (words & 0xFFFF).any(), "features were bfloat16 at first and are not any more"
    return (words >> 16).astype(np.uint16)


def unpacked(stored: Array) -> Array:
    """Undo `packed`; other arrays are returned as they are."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored


def reserve(shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> tuple[Array | None, str]:
    """Room for features: in memory, else in a file that vanishes with the process, else none."""
    if size <= MEMORY_PART * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return np.zeros(shape, dtype), "memory"
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if size > DISK_PART * shutil.disk_usage(folder).free:
        return None, ""
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape), "disk"
