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
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tlx.backend import Array, Backend, Batch, Model
from tlx.backend.protocol import divided
from tlx.data.loader import Epoch, Loader, Rows
from tlx.download import cache_folder
from tlx.processes import Alone, Channel, all_true, of_first
from tlx.training.boundary import Boundary, find_boundary, unpacked
from tlx.training.feature_store import unwritable
from tlx.training.metrics import FeaturesKept, FeaturesNotKept

MEMORY_PART = 1 / 4  # of the memory that the process may take; what is larger goes to a file
BLOCK = 1 << 24  # bytes of zeros that are written at once where a file cannot be allocated
DISK_PART = 1 / 2  # of the free disk space; what is larger is not cached


class Features:
    """Serves a loader's batches from a boundary on; `epoch` and `steps` are those of the loader.

    Of each epoch the first `cached_steps` batches are features, and what is left goes through the whole model. Where
    several processes take part, all of them compute features; the first alone has the cache and the batches, or all
    have, where `common`.
    """

    def __init__(
        self,
        loader: Loader,
        boundary: Boundary,
        cache: Array,
        cached_steps: int,
        channel: Channel = Alone(),  # noqa: B008 (frozen)
        common: bool = False,
    ) -> None:
        self.loader, self.boundary, self.cached_steps, self.channel = loader, boundary, cached_steps, channel
        self.common = common
        self.cache = cache  # [samples x variants, ...]: a row for each variant of each sample
        self.filled = np.zeros(_rows(loader), np.bool_)
        self.steps = loader.steps

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from number `start` on; the images of most are what enters the boundary."""
        drawn, rows = self._drawn(epoch)
        with closing(self._filled(drawn, rows, start)) as filled:
            for number in filled:
                features = unpacked(self.cache[rows[drawn.places(number)]])
                yield self.loader.batch(drawn, number, features, self.boundary.module)
        rest = range(max(start, self.cached_steps), self.steps)
        with closing(self.loader.pixels(drawn, [drawn.places(number) for number in rest])) as pixels:
            for number, images in zip(rest, pixels, strict=True):
                yield self.loader.batch(drawn, number, images)

    def rows(self, epoch: int, start: int, wanted: Callable[[int], Rows]) -> Generator[tuple[Batch, Rows], None, None]:
        """Some rows of each batch of an epoch, as `Loader.rows` gives them, where all processes have the cache."""
        drawn, rows = self._drawn(epoch)
        with closing(self._filled(drawn, rows, start)) as filled:
            for number in filled:
                own = wanted(self.loader.count(number))
                features = unpacked(self.cache[rows[drawn.places(number)[own]]])
                yield self.loader.batch(drawn, number, features, self.boundary.module, own), own
        yield from self.loader.rows(epoch, max(start, self.cached_steps), wanted)

    def count(self, step: int) -> int:
        """How many images the batch of a step holds."""
        return self.loader.count(step)

    def accompany(self, epoch: int, start: int = 0) -> Generator[None, None, None]:
        """Compute along with the first process, which takes the batches of an epoch; yields once for each of them."""
        drawn, rows = self._drawn(epoch)
        with closing(self._filled(drawn, rows, start)) as filled:
            for _ in filled:
                yield
        for _ in range(max(start, self.cached_steps), self.steps):
            yield

    def _drawn(self, epoch: int) -> tuple[Epoch, Array]:
        """What chance decides for an epoch, and the row of the cache of each place."""
        drawn, variants = self.loader.draw(epoch), self.loader.variants
        assert variants is not None
        return drawn, drawn.order * variants + self.loader.variant(drawn)

    def _filled(self, drawn: Epoch, rows: Array, start: int) -> Generator[int, None, None]:
        """Yield the number of each batch of features, once the cache has its rows."""
        with closing(self._fill(drawn, rows, start * self.loader.batch_size)) as filling:
            for number in range(start, self.cached_steps):
                wanted = rows[drawn.places(number)]
                while not self.filled[wanted].all():
                    next(filling)
                yield number

    def _fill(self, drawn: Epoch, rows: Array, start: int) -> Generator[None, None, None]:
        """Compute what the cache lacks of an epoch, in the order in which it comes up, in full batches."""
        size = self.loader.batch_size
        lacking = np.flatnonzero(~self.filled[rows[start : self.cached_steps * size]]) + start
        _, first = np.unique(rows[lacking], return_index=True)
        lacking = lacking[np.sort(first)]
        chunks = [lacking[at : at + size] for at in range(0, len(lacking), size)]
        world = self.channel.world
        with closing(self.loader.pixels(drawn, chunks[world.rank :: world.size])) as pixels:
            for at in range(0, len(chunks), world.size):
                together = chunks[at : at + world.size]
                own = self._features(next(pixels)) if world.rank < len(together) else None
                for places, features in zip(together, self._gathered(own), strict=False):
                    if world.rank == 0 or self.common:
                        self.cache[rows[places]] = features
                    self.filled[rows[places]] = True
                yield

    def _gathered(self, own: Array | None) -> list[Array]:
        """Return the features that each process computed."""
        if self.channel.world.size == 1 and own is not None:
            return [own]
        parts = self.channel.gather(b"" if own is None else own.tobytes())
        return [np.frombuffer(part, self.boundary.dtype).reshape(-1, *self.boundary.shape) for part in parts]

    def _features(self, images: Array) -> Array:
        """The features of some images: those that earlier runs left, and the others computed now."""
        store, compute = self.boundary.store, self.boundary.compute
        if store is None:
            return compute(images)
        if not store.verified:
            store.verify(images, compute)
        features = np.empty((len(images), *self.boundary.shape), self.boundary.dtype)
        known, features_of_known = store.find(images)
        features[known] = features_of_known
        if not known.all():
            features[~known] = compute(images[~known])
            store.add(images[~known], features[~known])
        return features


Batches = Loader | Features


@dataclass(frozen=True, slots=True)
class Feed:
    """Where the batches of a phase come from: the loaders, or the cached features of the frozen part."""

    train: Batches
    val: Batches | None
    boundary: Boundary | None = None  # where the features are taken; None: nothing is cached

    def problems(self) -> Generator[FeaturesNotKept, None, None]:
        """Say, once, why nothing more is kept for later runs."""
        for holder in (self.boundary, self.boundary and self.boundary.store):
            if holder is not None and holder.problem:
                yield FeaturesNotKept(holder.problem, later=True)
                holder.problem = ""


def choose_feed(
    backend: Backend,
    model: Model,
    train: Loader,
    val: Loader | None,
    network: Mapping[str, Any] | None,
    micro_batch: int | None,
    trains: Collection[str] = (),
    channel: Channel = Alone(),  # noqa: B008 (frozen)
    common: bool = False,
) -> Generator[FeaturesKept | FeaturesNotKept, None, Feed]:
    """Cache the features of each part whose images come in a bounded number of variants, if there is a boundary.

    Args:
        backend: computes the model.
        model: a model whose present phase freezes something.
        train: the training images.
        val: the validation images; None: there are none, or they go through the whole model.
        network: what identifies all that computes features, values included, so that later runs find them again; None:
            the features serve this run alone.
        micro_batch: training images that are on the device at once.
        trains: the parameters that train in the phase.
        channel: to the other processes of the run, which call this too.
        common: all of them train from the features of training images, and so have them all.
    """
    parts = {"train": train, "val": val}
    bounded = {part: loader for part, loader in parts.items() if loader is not None and loader.variants is not None}
    if not bounded:
        return Feed(train, val)
    boundary, why = find_boundary(backend, model, next(iter(bounded.values())), network, trains)
    if len({*channel.gather(b"" if boundary is None else boundary.module.encode())}) > 1:
        boundary, why = None, why or "the processes of the run do not compute the same bits"
    if boundary is None:
        if why:
            yield FeaturesNotKept(why)
        return Feed(train, val)
    feeds: dict[str, Batches | None] = {**parts}
    for part, loader in bounded.items():
        micro = micro_batch if part == "train" else None
        features, event = cache_features(loader, part, boundary, micro, channel, common and part == "train")
        feeds[part] = features or loader
        yield event
    return Feed(feeds["train"] or train, feeds["val"], boundary)


def cache_features(
    loader: Loader,
    part: str,
    boundary: Boundary,
    micro_batch: int | None = None,
    channel: Channel = Alone(),  # noqa: B008 (frozen)
    common: bool = False,
) -> tuple[Features | None, FeaturesKept | FeaturesNotKept]:
    """Return a loader's features at a boundary, None if they are not cached, and the event that says so.

    Of several processes the first decides, and has the cache; where it is `common`, all have it, or none.
    """
    if common and channel.world.size > 1:
        features, event = _cache(loader, part, boundary, micro_batch, channel, common)
        if all_true(channel, features is not None):
            return features, event
        return None, event if features is None else FeaturesNotKept("another process has no room for them")
    if channel.world.rank == 0:
        features, event = _cache(loader, part, boundary, micro_batch, channel)
        of_first(channel, b"" if features is None else features.cached_steps.to_bytes(8, "big"))
        return features, event
    if not (steps := of_first(channel)):
        return None, FeaturesNotKept("the first process does not")
    empty = np.empty((0, *boundary.shape), boundary.dtype)
    event = FeaturesKept(part, boundary.module, len(loader.images), loader.variants or 1, 0, "", 0)
    return Features(loader, boundary, empty, int.from_bytes(steps, "big"), channel), event


def _rows(loader: Loader) -> int:
    """How many rows of features a loader's images have in all their variants."""
    assert loader.variants is not None
    return len(loader.images) * loader.variants


def _cache(
    loader: Loader, part: str, boundary: Boundary, micro_batch: int | None, channel: Channel, common: bool = False
) -> tuple[Features | None, FeaturesKept | FeaturesNotKept]:
    count, variants, most = len(loader.images), loader.variants, loader.batch_size
    assert variants is not None
    batches = [min(most, count - at) for at in range(0, count, most)]
    otherwise = {size: [n for n in divided(size, micro_batch) if not boundary.exact(n)] for size in set(batches)}
    if wrong := otherwise[batches[0]]:
        what = f"{part} images go through the whole model: {boundary.backend.name} rounds what enters {boundary.module}"
        return None, FeaturesNotKept(f"{what} otherwise in a batch of {wrong[0]}")
    steps = sum(not otherwise[size] for size in batches)  # all but the last are of one size
    shape = (_rows(loader), *boundary.shape)
    size = math.prod(shape) * boundary.dtype.itemsize
    try:
        cache, where = reserve(shape, boundary.dtype, size, channel.world.local_size if common else 1)
    except OSError as error:
        gigabytes = f"{count} {part} images take {size / 1e9:.2g} GB, more than there is memory for, and"
        return None, FeaturesNotKept(f"{gigabytes} {unwritable(error)}")
    earlier = 0 if boundary.store is None else len(boundary.store)
    event = FeaturesKept(part, boundary.module, count, variants, size, where, earlier)
    return (None if cache is None else Features(loader, boundary, cache, steps, channel, common)), event


def reserve(shape: tuple[int, ...], dtype: np.dtype[Any], size: int, of: int = 1) -> tuple[Array | None, str]:
    """Return room for features, and where it is: "memory", "disk" (a file that vanishes with the process), or "".

    So many processes of this machine take as much.

    Raises OSError where the file cannot be written.
    """
    if size * of <= MEMORY_PART * memory():
        with suppress(MemoryError):
            return np.zeros(shape, dtype), "memory"
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if size * of > DISK_PART * shutil.disk_usage(folder).free:
        return None, ""
    with tempfile.TemporaryFile(dir=folder, prefix=".features-", suffix=".tmp") as file:
        _allocate(file, size)
        return np.memmap(file, dtype, "r+", shape=shape), "disk"


def memory() -> int:
    """Bytes that this process may take: what the machine has, or less where a container grants less."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            sizes.append(int(Path(file).read_text(encoding="ascii")))
    return min(sizes)


def _allocate(file: IO[bytes], size: int) -> None:
    """Take the room on the disk. To write to a mapped file that finds none later ends the process with SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, BLOCK):  # macOS
        file.write(bytes(min(BLOCK, size - start)))
    file.flush()
