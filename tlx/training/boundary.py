"""Where the frozen part ends: the module at which training may begin, and what enters it, right to the last bit.

A framework may compute other last bits for an image in a batch of another size, or in another place of a batch: matrix
products of few rows round otherwise, and so do some of images that lie elsewhere in memory. So each batch size of a run
is tried before cached features stand for what the whole model computes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from tlx.backend import Array, Backend, Batch, Handle, Model
from tlx.data.loader import Loader
from tlx.errors import one_line
from tlx.training.feature_store import CHECKED, FeatureStore, open_store, unwritable

IDLE = 1 / 64  # below, a value may leave no trace in bfloat16; new layers are drawn with larger ones


class Boundary:
    """A module's path, and the features that enter it: those of an image in a batch of `rows` images.

    Args:
        backend: computes the model.
        model: a model whose present phase trains nothing before the module.
        loader: says how pixels are preprocessed, and how many are in a batch.
        module: the module's path.
        sample: pixels of at least `CHECKED` images, and of a whole batch.
    """

    def __init__(self, backend: Backend, model: Model, loader: Loader, module: str, sample: Array) -> None:
        self.backend, self.model, self.loader, self.module, self.sample = backend, model, loader, module, sample
        self.store: FeatureStore | None = None  # features of earlier runs
        self.problem = ""  # why there is no store, where there should be one
        self.rows = CHECKED
        self.expected = self._computed(sample[: self.rows])
        self._exact: dict[int, bool] = {}
        halves = self.expected.dtype == np.float32 and not (self.expected.view(np.uint32) & 0xFFFF).any()
        self.dtype = np.dtype(np.uint16 if halves else self.expected.dtype)  # uint16: it was bfloat16; see `packed`
        self.shape = self.expected.shape[1:]  # for one image

    def divides(self) -> bool:
        """Whether the logits from here on are those of the whole model; some use more than what enters a module."""
        whole = put(self.backend, self.model, self.loader, self.sample[: self.rows])
        part = put(self.backend, self.model, self.loader, self.expected, self.module)
        logits, of_part = (self.backend.fetch([self.backend.logits(self.model, handle)])[0] for handle in (whole, part))
        return np.array_equal(of_part, logits)

    def settle(self) -> bool:
        """Choose how many images are computed at once; False where an image's features depend on its place."""
        size = self.loader.batch_size
        if self.exact(self.rows) and self.exact(size):
            return True
        self.rows = size
        self.expected = self._computed(self.sample[:size])
        self._exact = {}
        return self.exact(size)

    def exact(self, size: int) -> bool:
        """Whether a batch of `size` images gives the features of each, wherever in the batch it stands."""
        if size not in self._exact:
            self._exact[size] = all(map(self._as_expected, self._trials(size)))
        return self._exact[size]

    def _trials(self, size: int) -> Iterator[Array]:
        """Batches of images of the sample, by number: as many as hold `CHECKED` images, each in another place.

        A difference in one small layer may not show in a single image.
        """
        among = max(size, self.rows)
        for number in range(-(-CHECKED // size)):
            # The first step is odd, so that images lie otherwise in memory.
            yield (np.arange(size) + (3 if size > 3 else 1) + number * (size if size < among else 1)) % among

    def _as_expected(self, numbers: Array) -> bool:
        known = numbers < self.rows
        features = self._computed(self.sample[numbers])
        return np.array_equal(features[known], self.expected[numbers[known]])

    def compute(self, images: Array) -> Array:
        """Return what enters the module, [n, ...], of uint8 images [n, 3, h, w]; repeats some to fill a batch."""
        features, most = [], max(self.rows, self.loader.batch_size)
        while len(images):
            size = most if len(images) >= most else self.rows
            part, images = images[:size], images[size:]
            features.append(self._computed(np.resize(part, (size, *part.shape[1:])))[: len(part)])
        rows = np.concatenate(features)
        return packed(rows) if self.dtype == np.uint16 else rows

    def _computed(self, images: Array) -> Array:
        return compute_features(self.backend, self.model, self.loader, images, self.module)


def find_boundary(
    backend: Backend, model: Model, loader: Loader, network: Mapping[str, Any] | None, trains: Collection[str] = ()
) -> tuple[Boundary | None, str]:
    """Return the best boundary of the model's present phase; or None, and why, unless nothing is frozen at its start.

    Args:
        backend: computes the model.
        model: a model whose present phase freezes something.
        loader: of training images.
        network: identifies the network in the store of earlier runs; None: there is no store.
        trains: the parameters that train in the phase.
    """
    modules = backend.boundaries(model)
    if not modules:
        return None, ""
    with _none_idle(backend, model, trains):
        return _find(backend, model, loader, network, modules)


def _find(
    backend: Backend, model: Model, loader: Loader, network: Mapping[str, Any] | None, modules: Collection[str]
) -> tuple[Boundary | None, str]:
    drawn, count = loader.draw(0), max(CHECKED, loader.batch_size)
    sample = next(loader.pixels(drawn, [np.arange(min(count, len(drawn.order)))]))
    sample = np.resize(sample, (count, *sample.shape[1:]))
    why = []
    for module in modules:
        try:
            boundary = Boundary(backend, model, loader, module, sample)
            if not boundary.divides():
                why.append(f"from {module} on the logits are not those of the whole model")
                continue
            settled = boundary.settle()
        except Exception as error:  # a model's own code may raise anything where its pass is divided
            why.append(f"{module}: {one_line(f'{type(error).__name__}: {error}')}")
            continue
        if not settled:
            return None, f"{backend.name} rounds what enters {module} otherwise in another place of a batch"
        if network is not None:
            facts = {**network, "boundary": module, "preprocess": asdict(loader.preprocess), "rows": boundary.rows}
            try:
                boundary.store = open_store(facts, boundary.dtype, boundary.shape)
            except OSError as error:
                boundary.problem = unwritable(error)
        return boundary, ""
    return None, "; ".join(why)


@contextmanager
def _none_idle(backend: Backend, model: Model, trains: Collection[str]) -> Iterator[None]:
    """Give other values to what trains and is close to zero, while the block runs.

    A gain of zero on a branch, as NFNet's begin with, hides that what enters the branch is not what entered it before:
    the logits are right, and the first gradients are not.
    """
    values = backend.dump_arrays(model) if trains else {}
    idle = {name: values[name] for name in trains if name in values and np.abs(values[name]).max(initial=0) < IDLE}
    moved = {name: (IDLE * (np.arange(v.size) % 7 + 1)).reshape(v.shape).astype(v.dtype) for name, v in idle.items()}
    try:
        if moved:
            backend.load_arrays(model, {**values, **moved})
        yield
    finally:
        if moved:
            backend.load_arrays(model, values)


def put(backend: Backend, model: Model, loader: Loader, images: Array, boundary: str = "") -> Handle:
    """Put a batch without labels on the device; its images are pixels, or what enters a boundary."""
    labels = np.zeros(len(images), np.int64)
    return backend.put(model, Batch(images, labels, labels, loader.preprocess, boundary=boundary))


def compute_features(backend: Backend, model: Model, loader: Loader, images: Array, boundary: str) -> Array:
    """Return what enters a boundary, [n, ...], of a batch of uint8 images [n, 3, h, w]."""
    return backend.fetch([backend.features(model, put(backend, model, loader, images), boundary)])[0]


def packed(features: Array) -> Array:
    """Return the upper halves, uint16, of float32 numbers that are bfloat16 numbers."""
    words = np.ascontiguousarray(features).view(np.uint32)
    assert not (words & 0xFFFF).any(), "features were bfloat16 at first and are not any more"
    return (words >> 16).astype(np.uint16)


def unpacked(rows: Array) -> Array:
    """Undo `packed`; other arrays are returned as they are."""
    return (rows.astype(np.uint32) << 16).view(np.float32) if rows.dtype == np.uint16 else rows
