"""Batches of an epoch, in an order and with pixels that no number of workers can change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.backend import Batch, Preprocess
from tlx.data.augment import Augment, Box, Geometry, centre_box, crop_box, planes, resize
from tlx.data.images import ArrayImages, Images, View
from tlx.data.mixing import Targets, balanced_order, slots
from tlx.errors import RecipeError

if TYPE_CHECKING:
    from PIL.Image import Image

Plan = list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # per batch: samples, and their rows of random words
BATCHES_AHEAD = 2  # decoded before they are asked for; more only costs memory


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """What was drawn for an epoch: its samples in order, and for each its place in the random words."""

    epoch: int
    batch_size: int
    order: NDArray[np.int64]
    places: NDArray[np.int64]
    geometry: Geometry

    def rows(self, number: int) -> NDArray[np.int64]:
        """The places in the epoch's order that batch `number` takes."""
        start = number * self.batch_size
        return np.arange(start, min(start + self.batch_size, len(self.order)))


class Loader:
    """Turns images into `Batch`es of uint8 [N, 3, h, w] with geometry applied.

    Photos are decoded and resampled to `preprocess.size` by `workers` threads (0: the caller's). Images of one size
    that are not cropped at random are served from memory: those larger than `preprocess.size` are shrunk once, here;
    smaller ones keep their size, as the device enlarges them. `crop_fraction` is the part of the shorter side that
    evaluation keeps: 0.875 for photos, 1 (the whole image) for images of one size. The last partial batch is kept.
    `balanced` visits each class equally often; `targets` says what becomes of the labels; with `views`, augmentation
    repeats itself after so many epochs.
    """

    def __init__(
        self,
        images: Images,
        preprocess: Preprocess,
        *,
        batch_size: int,
        augment: Augment = Augment(),  # noqa: B008 (frozen)
        crop_fraction: float | None = None,
        seed: int = 0,
        workers: int = 2,
        shuffle: bool = False,
        balanced: bool = False,
        targets: Targets | None = None,
        views: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"batch_size must be at least 1, got {batch_size}.")
        if workers < 0:
            raise RecipeError(f"workers must be at least 0, got {workers}.")
        if crop_fraction is None:
            crop_fraction = 0.875 if images.size is None else 1.0
        if not 0 < crop_fraction <= 1:
            raise RecipeError(f"crop_fraction must be above 0 and at most 1, got {crop_fraction}.")
        self.images, self.preprocess, self.augment = images, preprocess, augment
        self.batch_size, self.crop_fraction = batch_size, crop_fraction
        self.seed, self.workers, self.shuffle, self.balanced = seed, workers, shuffle, balanced
        self.targets, self.views = targets, views
        self.steps = -(-len(images) // batch_size)
        self._stored: NDArray[np.uint8] | None = None
        if isinstance(images, ArrayImages) and "crop" not in augment.ops:
            self._stored = _fit(images, preprocess.size, crop_fraction)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """In which order an epoch visits the samples, int64 [N]."""
        n = len(self.images)
        if self.balanced:
            return balanced_order(self.images.labels, int(self.images.labels.max()) + 1, self.seed, epoch)
        return rng.permutation(self.seed, epoch, n) if self.shuffle else np.arange(n, dtype=np.int64)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from number `start` on; those before it are not decoded.

        Raises DataError, naming the file, where an image cannot be decoded. Closing the iterator stops the threads.
        """
        drawn = self.draw(epoch)
        with closing(self.pixels(drawn, [drawn.rows(number) for number in range(start, self.steps)])) as pixels:
            for number, images in enumerate(pixels, start):
                yield self.batch(drawn, number, images)

    def draw(self, epoch: int) -> Epoch:
        """Draw all that an epoch leaves to chance."""
        order, n = self.order(epoch), len(self.images)
        places = slots(order, n) if self.balanced else order
        geometry = self.augment.draw(self.seed, epoch % (self.views or epoch + 1), max(n, int(places.max()) + 1))
        return Epoch(epoch, self.batch_size, order, places, geometry)

    def batch(self, drawn: Epoch, number: int, images: NDArray[Any], cut: str = "") -> Batch:
        """Batch `number` of an epoch, of its pixels or of what they become at a cut; mixing changes `images`."""
        indices = drawn.order[drawn.rows(number)]
        labels, key = self.images.labels[indices], (self.seed, drawn.epoch * self.steps + number, 0)
        targets = self.targets.apply(images, labels, self.seed, drawn.epoch, number) if self.targets else None
        return Batch(images, labels, indices, self.preprocess, key, targets, cut)

    @property
    def versions(self) -> int | None:
        """In how many versions a sample comes over all epochs; None where there is no useful bound."""
        if self.targets is not None and self.targets.mixes:
            return None
        return self.views or self.augment.finite

    def version(self, drawn: Epoch) -> NDArray[np.int64]:
        """Which of its versions each sample of an epoch comes in, int64 [N], in the order of the epoch."""
        if self.views:
            return np.full(len(drawn.order), drawn.epoch % self.views)
        geometry = drawn.geometry[drawn.places]
        flips = [flip.astype(np.int64) for flip in (geometry.hflip, geometry.vflip) if flip is not None]
        return sum((flip << bit for bit, flip in enumerate(flips)), np.zeros(len(drawn.order), np.int64))

    def pixels(self, drawn: Epoch, chunks: Iterable[NDArray[np.int64]]) -> Generator[NDArray[np.uint8], None, None]:
        """The images, uint8 [n, 3, h, w], at some places of an epoch, chunk by chunk."""
        plan = [(drawn.order[rows], drawn.places[rows]) for rows in chunks]
        simple = self._stored is not None and not drawn.geometry.pixels
        with closing(self._from_memory(plan) if simple else self._from_samples(plan, drawn.geometry)) as served:
            for (_, places), images in zip(plan, served, strict=True):
                drawn.geometry[places].flip(images)
                yield images

    def _from_memory(self, plan: Plan) -> Generator[NDArray[np.uint8], None, None]:
        assert self._stored is not None
        for indices, _ in plan:
            yield self._stored[indices]

    def _from_samples(self, plan: Plan, geometry: Geometry) -> Generator[NDArray[np.uint8], None, None]:
        sample = self._sampler(geometry)
        if self.workers == 0:
            for indices, rows in plan:
                yield self._stack(len(indices), map(sample, indices, rows))
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="tlx-decode")
        ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()
        try:
            for indices, rows in plan:
                ahead.append([pool.submit(sample, i, row) for i, row in zip(indices, rows, strict=True)])
                if len(ahead) > BATCHES_AHEAD:
                    yield self._stack(len(ahead[0]), (future.result() for future in ahead.popleft()))
            while ahead:
                yield self._stack(len(ahead[0]), (future.result() for future in ahead.popleft()))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _stack(self, count: int, samples: Iterator[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """One contiguous batch; `np.stack` would keep the samples' channel-last memory."""
        sides = (self.preprocess.size,) * 2 if self._stored is None else self._stored.shape[2:]
        batch = np.empty((count, 3, *sides), dtype=np.uint8)
        for row, pixels in zip(batch, samples, strict=True):
            row[...] = pixels
        return batch

    def _sampler(self, geometry: Geometry) -> Callable[[int, int], NDArray[np.uint8]]:
        size, fraction, fixed = self.preprocess.size, self.crop_fraction, self.images.size is not None
        stored = self._stored

        def sample(index: int, row: int) -> NDArray[np.uint8]:
            if stored is not None:
                return planes(geometry.paint(fromarray(stored[index]), row))

            def box(width: int, height: int) -> Box:
                if geometry.crop is not None:
                    left, top, across, down = crop_box(geometry.crop[row], width, height)
                    return (left, top, left + across, top + down)
                if fixed and fraction == 1:
                    return (0, 0, width, height)
                return centre_box(width, height, size, fraction)

            return planes(geometry.paint(self.images.open(int(index), View(box, size)), row))

        return sample


def fromarray(pixels: NDArray[np.uint8]) -> Image:
    """uint8 [3, h, w] as an RGB image."""
    from PIL import Image as module

    return module.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _fit(images: ArrayImages, size: int, crop_fraction: float) -> NDArray[np.uint8]:
    """The stored pixels as batches carry them: centre-cropped, shrunk if larger than `size`, never enlarged."""
    array = images.array
    if crop_fraction < 1:
        height, width = images.size
        side = max(1, round(crop_fraction * min(height, width)))
        top, left = (height - side) // 2, (width - side) // 2
        array = array[:, :, top : top + side, left : left + side]
    height, width = array.shape[2:]
    if max(height, width) <= size:
        return array
    small = np.empty((len(array), 3, size, size), dtype=np.uint8)
    for row, pixels in zip(small, array, strict=True):
        row[...] = planes(resize(fromarray(pixels), (0, 0, width, height), size))
    return small
