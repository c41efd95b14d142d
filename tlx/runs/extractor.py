"""The features of images by a frozen model: what enters its head. They are kept in the cache, by what is in the images.

Another name or another order of the same images makes no difference; other weights or another preprocessing do.
Processes that want the same features at the same time share them out, by leases beside them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.backend import Backend, Batch, Model, Preprocess, registry
from tlx.data import Images
from tlx.data.file_hashes import hash_of, read_table, write_table
from tlx.data.framing import Framing
from tlx.data.loader import ahead
from tlx.download import cache_folder
from tlx.errors import TlxError
from tlx.leases import Lease
from tlx.models.weights import digest
from tlx.models.zoo import Architecture, own_architecture
from tlx.recipe import Recipe
from tlx.runs.finished import restore
from tlx.training.build import (
    build_model,
    frame,
    is_own,
    load_initial,
    resolve_placement,
    versions,
    with_pinned_weights,
)
from tlx.training.fit import Head, find_head

SHARD = 1024  # images that are computed, and kept, together
POLL = 0.2  # seconds between two looks at what other processes compute
STRATEGY = "probe"  # names the head's demands in errors, and the weights to start from

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Extractor:
    """A frozen model on its backend. `framing` is a run's own; None: that of the recipe, by the kind of the images."""

    name: str
    recipe: Recipe
    backend: Backend
    model: Model
    preprocess: Preprocess
    framing: Framing | None
    head: Head
    sha256: str  # of all its values

    def framing_of(self, images: Images) -> Framing:
        """Return what is kept of the images of a part."""
        if self.framing is not None:
            return self.framing
        fraction, aspect = frame(self.recipe, images)
        return Framing.of(images, self.preprocess, fraction, aspect, self.recipe.antialias)

    def identity(self, framing: Framing) -> bytes:
        """Return what decides the features beside the images."""
        parts = (self.sha256, self.backend.name, self.recipe.device, self.recipe.precision)
        return hash_of(
            repr((parts, self.preprocess, framing, versions(), self.backend.capabilities().versions)).encode()
        )


def open_extractor(
    model: str = "resnet18",
    weights: str | None = None,
    run: str | Path | None = None,
    backend: str | None = None,
    image_size: int | None = None,
) -> Extractor:
    """Build a model with its weights, or that of a finished run.

    Raises:
        TlxError: there is no such model, weights file or run, or its head is not one linear layer.
    """
    if run is not None:
        if weights is not None or image_size is not None:
            raise TlxError("a run has weights and an image size of its own", fix="leave weights and image_size out")
        finished = restore(run, backend)
        recipe, target, built = finished.recipe, finished.backend, finished.model
        arch = _architecture(recipe, target.param_specs(built))
        preprocess, framing, name = finished.preprocess, finished.framing, str(run)
    else:
        target = registry.load(backend or "torch")
        asked = Recipe(model=model, weights=weights, backend=target.name, strategy=STRATEGY, image_size=image_size)
        return extractor_of(asked)
    return _extractor(name, recipe, target, built, arch, preprocess, framing)


def extractor_of(asked: Recipe, progress: bool = True) -> Extractor:
    """Build the model of a recipe with the values that it starts from; `progress` shows a download."""
    target = registry.load(asked.backend)
    recipe = with_pinned_weights(resolve_placement(asked.resolved(), target), progress)
    built, arch = build_model(recipe, target, 2)
    load_initial(recipe, target, built, arch, ("0", "1"), progress)
    pixels = recipe.pixels
    preprocess = Preprocess(pixels.size, pixels.mean, pixels.std, pixels.interpolation)
    return _extractor(recipe.model_name, recipe, target, built, arch, preprocess, None)


def _extractor(
    name: str,
    recipe: Recipe,
    target: Backend,
    built: Model,
    arch: Architecture,
    preprocess: Preprocess,
    framing: Framing | None,
) -> Extractor:
    specs = target.param_specs(built)
    head = find_head([spec for spec in specs if arch.stage_of(spec.module) == "head"], STRATEGY)
    values = {name: value for name, value in target.dump_arrays(built).items() if name not in head.zeros()}
    return Extractor(name, recipe, target, built, preprocess, framing, head, digest(values))


def _architecture(recipe: Recipe, specs: Sequence[Any]) -> Architecture:
    from tlx.models.zoo import architecture

    if isinstance(recipe.model, str):
        return architecture(recipe.model)
    assert recipe.head_path is not None
    return own_architecture(recipe.model_name, recipe.head_path, specs)


def features_of(
    extractor: Extractor,
    images: Images,
    contents: Sequence[str],
    advance: Callable[[int, int], object] | None = None,
) -> Features:
    """Return the features of all images of a part, float32 [N, features]; those that the cache holds are read.

    Args:
        extractor: the model.
        images: that can be read.
        contents: what tells each image from others, [N].
        advance: is told how many images of how many are done.
    """
    framing = extractor.framing_of(images)
    identity, folder = extractor.identity(framing), cache_folder() / "check-features"
    kept = not is_own(extractor.recipe)  # the code of a module of somebody's own may change, and its values not
    shards: dict[int, Features] = {}
    left, done = [*range(0, len(images), SHARD)], 0
    while left:
        for start in left:
            which = np.arange(start, min(start + SHARD, len(images)))
            key = hashlib.sha256(identity + "\n".join(contents[start : start + SHARD]).encode()).hexdigest()[:32]
            part = images.select(which, images.labels[which])
            shard = _shared(extractor, part, framing, folder / key) if kept else _compute(extractor, part, framing)
            if shard is not None:
                shards[start] = shard
                done += len(which)
                if advance is not None:
                    advance(done, len(images))
        before, left = left, [start for start in left if start not in shards]
        if len(left) == len(before):
            time.sleep(POLL)
    return np.concatenate(
        [shards[start] for start in sorted(shards)] or [np.zeros((0, extractor.head.width), np.float32)]
    )


def _shared(extractor: Extractor, images: Images, framing: Framing, file: Path) -> Features | None:
    """Read the features of some images from the cache, or compute and keep them; None where another process does."""

    def known() -> Features | None:
        values: Features = read_table(file, np.dtype("<f4"))
        return values.reshape(len(images), -1) if len(values) == len(images) * extractor.head.width else None

    if (features := known()) is not None:
        return features
    path = file.parent.with_name(f"{file.parent.name}-leases") / file.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease = Lease.take(path)
    except OSError:  # without a cache nothing is shared
        return _compute(extractor, images, framing)
    if lease is None:
        return None
    with closing(lease.file):
        if (features := known()) is None:  # otherwise written between the look and the lease
            features = _compute(extractor, images, framing)
            write_table(file, features)
        path.unlink(missing_ok=True)  # before it is given back: whoever waits for it finds the features
    return features


def _compute(extractor: Extractor, images: Images, framing: Framing) -> Features:
    backend, size, rows = extractor.backend, extractor.recipe.batch_size, []

    def read(index: int) -> NDArray[np.uint8]:
        return framing.pixels(lambda view: images.open(index, view))

    chunks = (range(start, min(start + size, len(images))) for start in range(0, len(images), size))
    with closing(ahead(read, chunks, extractor.recipe.workers)) as decoded:
        for pixels in decoded:
            zeros = np.zeros(len(pixels), np.int64)
            batch = Batch(np.ascontiguousarray(np.stack(pixels)), zeros, zeros, extractor.preprocess)
            (features,) = backend.fetch([backend.features(extractor.model, backend.put(extractor.model, batch))])
            rows.append(extractor.head.pooled(features).astype("<f4"))
    result: Features = np.concatenate(rows)
    if not np.isfinite(result).all():
        raise TlxError(f"the features of {extractor.name} are not finite", fix="use another model or other weights")
    return result
