"""Batches of an epoch, in an order and with pixels that no number of workers can change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from tlx import rng
from tlx.backend import Batch, Preprocess
from tlx.data.images import ArrayImages, Images
from tlx.data.transforms import Augment, Box, Geometry, centre_box, crop_box, resize
from tlx.errors import RecipeError

BATCHES_AHEAD = 2  # decoded before they are asked for; more only costs memory


class Loader:
    """Turns images into `Batch`es of uint8 [N, 3, h, w] with geometry applied.

    Photos are decoded and resampled to `preprocess.size` by `workers` threads (0: the caller's). Images of one size
    that are not cropped at random are served from memory: those larger than `preprocess.size` are shrunk once, here;
    smaller ones keep their size, as the device enlarges them. `crop_fraction` is the part of the shorter side that
    evaluation keeps: 0.875 for photos, 1 (the whole image) for images of one size. The last partial batch is kept.
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
        self.seed, self.workers, self.shuffle = seed, workers, shuffle
        self.steps = -(-len(images) // batch_size)
        self._stored: NDArray[np.uint8] | None = None
        if isinstance(images, ArrayImages) and "crop" not in augment.ops:
            self._stored = _fit(images, preprocess.size, crop_fraction)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """In which order an epoch visits the samples, int64 [N]."""
        n = len(self.images)
        return rng.permutation(self.seed, epoch, n) if self.shuffle else np.arange(n, dtype=np.int64)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from number `start` on; those before it are not decoded.

        Raises DataError, naming the file, where an image cannot be decoded. Closing the iterator stops the threads.
        """
        order, geometry = self.order(epoch), self.augment.draw(self.seed, epoch, len(self.images))
        plan = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(start, self.steps)]
        pixels = self._from_memory(plan) if self._stored is not None else self._from_samples(plan, geometry)
        with closing(pixels):
            for number, (indices, images) in enumerate(zip(plan, pixels, strict=True), start):
                geometry[indices].flip(images)
                key = (self.seed, epoch * self.steps + number, 0)
                yield Batch(images, self.images.labels[indices], indices, self.preprocess, key)

    def _from_memory(self, plan: list[NDArray[np.int64]]) -> Generator[NDArray[np.uint8], None, None]:
        assert self._stored is not None
        for indices in plan:
            yield self._stored[indices]

    def _from_samples(
        self, plan: list[NDArray[np.int64]], geometry: Geometry
    ) -> Generator[NDArray[np.uint8], None, None]:
        sample = self._sampler(geometry)
        if self.workers == 0:
            for indices in plan:
                yield self._stack(len(indices), (sample(int(i)) for i in indices))
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="tlx-decode")
        ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()
        try:
            for indices in plan:
                ahead.append([pool.submit(sample, int(i)) for i in indices])
                if len(ahead) > BATCHES_AHEAD:
                    yield self._stack(len(ahead[0]), (future.result() for future in ahead.popleft()))
            while ahead:
                yield self._stack(len(ahead[0]), (future.result() for future in ahead.popleft()))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _stack(self, count: int, samples: Iterator[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """One contiguous batch; `np.stack` would keep the samples' channel-last memory."""
        batch = np.empty((count, 3, self.preprocess.size, self.preprocess.size), dtype=np.uint8)
        for row, pixels in zip(batch, samples, strict=True):
            row[...] = pixels
        return batch

    def _sampler(self, geometry: Geometry) -> Callable[[int], NDArray[np.uint8]]:
        size, fraction, fixed = self.preprocess.size, self.crop_fraction, self.images.size is not None

        def sample(index: int) -> NDArray[np.uint8]:
            image = self.images.open(index)
            box: Box
            if geometry.crop is not None:
                left, top, width, height = crop_box(geometry.crop[index], image.width, image.height)
                box = (left, top, left + width, top + height)
            elif fixed and fraction == 1:
                box = (0, 0, image.width, image.height)
            else:
                box = centre_box(image.width, image.height, size, fraction)
            return resize(image, box, size)

        return sample


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
    from PIL.Image import fromarray

    small = np.empty((len(array), 3, size, size), dtype=np.uint8)
    for row, pixels in zip(small, array, strict=True):
        row[...] = resize(fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), (0, 0, width, height), size)
    return small
