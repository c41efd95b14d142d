"""Batches of an epoch, in an order and with pixels that no number of workers can change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.backend import Batch, Preprocess
from tlx.backend.preprocess import Aspect
from tlx.data.augment import Augment, Draws
from tlx.data.framing import Framing
from tlx.data.geometry import Box, from_planes, planes
from tlx.data.images import ArrayImages, Images
from tlx.data.mixing import Targets, assign_slots, balanced_order
from tlx.errors import RecipeError

Rows = NDArray[np.int64]
ALL = slice(None)
Chunks = list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # per batch: indices, and their slots
BATCHES_AHEAD = 2  # decoded before they are asked for; more only costs memory

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """What chance decides for an epoch: the order of its samples and the changes of each.

    Three numbers name a sample: its *index*, which image of the part it is; its *place*, where it comes in the epoch's
    order; and its *slot*, the row of the epoch's random words that it takes. The slot equals the index, except where an
    image comes again in the same epoch (balanced sampling): then it takes a further slot, so that it changes anew.
    """

    number: int
    batch_size: int
    order: NDArray[np.int64]  # index of each place
    slots: NDArray[np.int64]  # slot of each place
    draws: Draws  # by slot

    def places(self, step: int) -> NDArray[np.int64]:
        """The places that the batch of step `step` takes."""
        start = step * self.batch_size
        return np.arange(start, min(start + self.batch_size, len(self.order)))


class Loader:
    """Turns images into `Batch`es of uint8 [N, 3, h, w] with augmentation applied. `Epoch` says what a place is.

    Photos are decoded and resampled to the network's size by threads. Images of one size that are not cropped at random
    are served from memory: those larger than the network's size are shrunk once, when the loader is made; smaller ones
    keep their size, because the device enlarges them. The last partial batch is kept.

    Args:
        images: a part of a data set.
        preprocess: the network's input size, how images are resampled, and how the device normalises pixels.
        batch_size: images in a batch.
        augment: random changes of the images.
        crop_fraction: fraction of an image's sides that is kept without a random crop. Default: 0.875 for photos, 1
            (the whole image) for images of one size.
        aspect: how an image becomes square without a random crop: see `Framing`. Default: crop, but squash for images
            of one size that are taken whole.
        antialias: average where the host shrinks images: see `Resampling`.
        seed: of the order, the augmentation and the mixing.
        workers: threads that decode; 0: the caller's own.
        shuffle: visit the images in another order in each epoch.
        balanced: visit each class equally often.
        targets: what becomes of the labels; None: they stay class numbers.
        augment_repeats: epochs after which augmentation repeats itself; None: never.

    Raises:
        RecipeError: batch_size, workers or crop_fraction is out of range.
    """

    def __init__(
        self,
        images: Images,
        preprocess: Preprocess,
        *,
        batch_size: int,
        augment: Augment = Augment(),  # noqa: B008 (frozen)
        crop_fraction: float | None = None,
        aspect: Aspect | None = None,
        antialias: bool = True,
        seed: int = 0,
        workers: int = 2,
        shuffle: bool = False,
        balanced: bool = False,
        targets: Targets | None = None,
        augment_repeats: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"batch_size must be at least 1, got {batch_size}.")
        if workers < 0:
            raise RecipeError(f"workers must be at least 0, got {workers}.")
        if crop_fraction is not None and not 0 < crop_fraction <= 1:
            raise RecipeError(f"crop_fraction must be above 0 and at most 1, got {crop_fraction}.")
        self.images, self.preprocess, self.augment = images, preprocess, augment
        self.batch_size, self.framing = batch_size, Framing.of(images, preprocess, crop_fraction, aspect, antialias)
        self.seed, self.workers, self.shuffle, self.balanced = seed, workers, shuffle, balanced
        self.targets, self.augment_repeats = targets, augment_repeats
        self.steps = -(-len(images) // batch_size)
        self._stored: NDArray[np.uint8] | None = None
        if isinstance(images, ArrayImages) and not augment.crops:
            self._stored = self.framing.shrink(images.array)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The indices of the images in the order in which an epoch visits them, int64 [N]."""
        n = len(self.images)
        if self.balanced:
            return balanced_order(self.images.labels, int(self.images.labels.max()) + 1, self.seed, epoch)
        return rng.permutation(self.seed, epoch, n) if self.shuffle else np.arange(n, dtype=np.int64)

    def epoch(self, epoch: int, start: int = 0, stride: int = 1) -> Generator[Batch, None, None]:
        """The batches of an epoch from step `start` on, every one or every `stride`-th; no others are decoded.

        Closing the iterator stops the threads.

        Raises:
            DataError: an image cannot be decoded; the text names its file.
        """
        this, steps = self.draw(epoch), range(start, self.steps, stride)
        with closing(self.pixels(this, [this.places(step) for step in steps])) as pixels:
            for step, images in zip(steps, pixels, strict=True):
                yield self.batch(this, step, images)

    def rows(self, epoch: int, start: int, wanted: Callable[[int], Rows]) -> Generator[tuple[Batch, Rows], None, None]:
        """Some rows of each batch of an epoch, from step `start` on; no others are decoded.

        Args:
            epoch: its number.
            start: the first step.
            wanted: tells which rows of a batch of so many are wanted, int64 [n], ascending.

        Yields:
            a batch of these rows, among which there are others with which they are mixed, and their numbers.
        """
        this = self.draw(epoch)
        numbers = []
        for step in range(start, self.steps):
            count = len(this.places(step))
            rows = wanted(count)
            # A row is mixed with the one at the same place from the other end, so these stay each other's mirror image.
            numbers.append(np.union1d(rows, count - 1 - rows) if self.targets and self.targets.mixes else rows)
        places = [this.places(step)[rows] for step, rows in enumerate(numbers, start)]
        with closing(self.pixels(this, places)) as pixels:
            for step, images in enumerate(pixels, start):
                yield self.batch(this, step, images, rows=numbers[step - start]), numbers[step - start]

    def count(self, step: int) -> int:
        """How many images the batch of a step holds."""
        return min(self.batch_size, len(self.images) - step * self.batch_size)

    def draw(self, epoch: int) -> Epoch:
        """Draw everything that an epoch leaves to chance."""
        order, n = self.order(epoch), len(self.images)
        slots = assign_slots(order, n) if self.balanced else order
        draws = self.augment.draw(self.seed, self._variant_epoch(epoch), max(n, int(slots.max()) + 1))
        return Epoch(epoch, self.batch_size, order, slots, draws)

    def _variant_epoch(self, epoch: int) -> int:
        """The epoch whose augmentation an epoch shows: its own, unless augmentation repeats itself."""
        return epoch if self.augment_repeats is None else epoch % self.augment_repeats

    def batch(
        self, epoch: Epoch, step: int, images: NDArray[Any], boundary: str = "", rows: Rows | slice = ALL
    ) -> Batch:
        """The batch of a step, made of its pixels or of what they become at a boundary; mixing changes `images`."""
        indices = epoch.order[epoch.places(step)[rows]]
        labels, key = self.images.labels[indices], (self.seed, epoch.number * self.steps + step, 0)
        targets = self.targets.apply(images, labels, self.seed, epoch.number, step) if self.targets else None
        return Batch(images, labels, indices, self.preprocess, key, targets, boundary)

    @property
    def variants(self) -> int | None:
        """In how many variants an image comes over all epochs; None where there is no useful bound."""
        if self.targets is not None and self.targets.mixes:
            return None
        return self.augment_repeats or self.augment.variants

    def variant(self, epoch: Epoch) -> NDArray[np.int64]:
        """Which of its variants each sample of an epoch comes in, int64 [N], by place."""
        if self.augment_repeats is not None:
            return np.full(len(epoch.order), self._variant_epoch(epoch.number))
        return epoch.draws[epoch.slots].variants()

    def pixels(self, epoch: Epoch, chunks: Iterable[NDArray[np.int64]]) -> Generator[NDArray[np.uint8], None, None]:
        """The images, uint8 [n, 3, h, w], at some places of an epoch, chunk by chunk."""
        samples = [(epoch.order[places], epoch.slots[places]) for places in chunks]
        simple = self._stored is not None and not epoch.draws.paints
        with closing(self._from_memory(samples) if simple else self._from_samples(samples, epoch.draws)) as batches:
            for (_, slots), images in zip(samples, batches, strict=True):
                epoch.draws[slots].move(images)
                yield images

    def _from_memory(self, chunks: Chunks) -> Generator[NDArray[np.uint8], None, None]:
        assert self._stored is not None
        for indices, _ in chunks:
            yield self._stored[indices]

    def _from_samples(self, chunks: Chunks, draws: Draws) -> Generator[NDArray[np.uint8], None, None]:
        sample = self._sampler(draws)
        pairs = (zip(indices, slots, strict=True) for indices, slots in chunks)
        with closing(ahead(lambda pair: sample(*pair), pairs, self.workers)) as decoded:
            for images in decoded:
                yield self._stack(images)

    def _stack(self, samples: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """One contiguous batch; `np.stack` would keep the samples' channel-last memory."""
        sides = (self.preprocess.size,) * 2 if self._stored is None else self._stored.shape[2:]
        batch = np.empty((len(samples), 3, *sides), dtype=np.uint8)
        for image, pixels in zip(batch, samples, strict=True):
            image[...] = pixels
        return batch

    def _sampler(self, draws: Draws) -> Callable[[int, int], NDArray[np.uint8]]:
        stored = self._stored

        def sample(index: int, slot: int) -> NDArray[np.uint8]:
            if stored is not None:
                return planes(draws.paint(from_planes(stored[index]), slot))

            def drawn(width: int, height: int) -> Box:
                crop = draws.crop(slot, width, height)
                assert crop is not None
                left, top, across, down = crop
                return (left, top, left + across, top + down)

            view = self.framing.view(drawn if self.augment.crops else None)
            return planes(draws.paint(self.images.open(int(index), view), slot))

        return sample


def ahead(function: Callable[[T], R], chunks: Iterable[Iterable[T]], workers: int) -> Generator[list[R], None, None]:
    """Apply a function to the items of each chunk, in their order, by threads that work ahead of who asks.

    Chunks are taken only as they are needed, so there may be any number of them. Closing the iterator stops the
    threads.

    Args:
        function: called by several threads at once; what it raises is raised here.
        chunks: what becomes one list each.
        workers: threads; 0: the caller's own.
    """
    if workers == 0:
        for chunk in chunks:
            yield [function(item) for item in chunk]
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tlx-decode")
    waiting: deque[list[Future[R]]] = deque()
    try:
        for chunk in chunks:
            waiting.append([pool.submit(function, item) for item in chunk])
            if len(waiting) > BATCHES_AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
