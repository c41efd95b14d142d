"""What a few passes tell before the first step: whether the batches can be trained on, and give the same bits again.

The passes take made-up images, of the sizes that the run's own batches have, and leave the model as it was, bit for
bit. What a batch holds has no part in either question.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tlx import rng
from tlx.atomic import write_atomic
from tlx.backend import Array, Batch, Hyper, OptimizerSpec
from tlx.download import cache_folder
from tlx.errors import BackendError, RecipeError, TlxError
from tlx.training.loop import Training

PERTURB = -6  # of mallopt(3): memory is filled with a byte when it is freed, and with its complement when handed out
FILLS = (0x55, 0xAA)


def part_sizes(images: int, batch_size: int, micro_batch: int | None) -> set[int]:
    """Return how many images the device sees at once in an epoch: in full batches, in the last one, in their parts."""
    sizes: set[int] = set()
    for length in (min(batch_size, images), images % batch_size or batch_size):
        count = -(-length // micro_batch) if micro_batch else 1
        sizes |= {length // count, -(-length // count)}  # as `Batch.parts` divides
    return sizes


def check_small_batches(training: Training) -> str:
    """Find out whether BatchNorm can take statistics over the smallest batch of an epoch.

    Returns:
        What to say about a batch of which little can be learned, or "".

    Raises:
        RecipeError: a batch has one image, and that is one value for each of BatchNorm's channels.
    """
    loader, micro = training.loader, training.micro_batch
    images, size = len(loader.images), loader.batch_size
    smallest = min(part_sizes(images, size, micro))
    if smallest > 2 or not _trains(training)[1] or _can_train_on(training, 1):
        return ""
    if smallest == 1 and not _can_train_on(training, 2):
        return ""  # it is something else, and the first step says what
    where = "each batch" if size <= 2 else f"the last batch of an epoch ({images} images in batches of {size})"
    if micro is not None and smallest < min(part_sizes(images, size, None)):
        where = f"a part of a batch (micro_batch={micro})"
    fix = _better_sizes(images, size, micro)
    if smallest == 1:
        raise RecipeError(
            f"{where} has 1 image, and BatchNorm cannot take statistics over 1 value; image_size decides how many "
            "values an image has where BatchNorm stands",
            fix=fix,
        )
    return f"{where} has 2 images, whose values BatchNorm turns into 1 and -1, whatever they are: {fix}"


def _better_sizes(images: int, size: int, micro: int | None) -> str:
    """Say what to change so that no batch, and no part of one, has fewer than three images."""
    if micro is not None and min(part_sizes(images, size, None)) > 2:
        return f"use a larger micro_batch, or leave it out; the smallest batch has {images % size or size} images"
    for other in sorted(range(3, max(images, size) + 1), key=lambda other: (abs(other - size), other)):
        if min(part_sizes(images, other, micro)) > 2:
            return f"use batch_size {other}, or a larger image_size"
    return "use more images, or a larger image_size"


def find_unrepeatable(training: Training, network: Mapping[str, Any] | None = None) -> str | None:
    """Return the name of a parameter whose gradient does not come out the same twice, or None.

    The passes take as long as some steps, so what they tell is kept in the cache for later runs of the same network on
    the same machine, as `network` identifies it (see `tlx.training.build.identity`).

    Fresh memory holds other bits the second time, so that what a kernel leaves uninitialised shows. PyTorch's bfloat16
    leaves the unused taps of a 3x3 convolution of stride 2 over a 1x1 map, for one: 30 of 30 trials saw it. A backend
    without sgd is not examined, because the gradients are read from the slots of that.
    """
    if "sgd" not in training.backend.capabilities().optimizers:
        return None
    loader = training.loader
    sizes = sorted(part_sizes(len(loader.images), loader.batch_size, training.micro_batch), reverse=True)
    if network is None:
        return _unrepeatable(training, sizes)
    trains = [sorted(names) for names in _trains(training)]
    facts = json.dumps([dict(network), training.loader.preprocess.size, sizes, trains], sort_keys=True)
    with suppress(OSError, ValueError):  # there is no record, or a damaged one
        seal, _, told = _record(facts).read_text(encoding="utf-8").partition(" ")
        if seal == _seal(facts, told):
            return told or None
    name = _unrepeatable(training, sizes)
    with suppress(OSError, TlxError):  # a cache that cannot be written costs time alone
        record = _record(facts)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(record, f"{_seal(facts, name or '')} {name or ''}".encode())
    return name


def _record(facts: str) -> Path:
    """The file of the cache that holds what a trial told: a hash, a space and a parameter's name, or nothing."""
    return cache_folder() / "trials" / _seal(facts, "")[:32]


def _seal(facts: str, told: str) -> str:
    return hashlib.sha256(f"{facts} {told}".encode()).hexdigest()


def _unrepeatable(training: Training, sizes: list[int]) -> str | None:
    for size in sizes:
        first, second = (_gradients(training, size, fill) for fill in FILLS)
        for name, gradient in first.items():
            if gradient.tobytes() != second[name].tobytes():
                return name.rpartition("/")[0]
    return None


def _gradients(training: Training, images: int, fill: int) -> dict[str, Array]:
    """The gradient of each parameter that ever trains, as the first momentum of SGD, which is a copy of it."""
    backend, model = training.backend, training.model
    params = tuple(spec.name for spec in training.plan.specs if spec.role != "statistic")
    with _trial(training), _memory_filled(fill):
        optimizer = backend.optimizer(model, OptimizerSpec("sgd", momentum=0.5), [params])
        backend.set_hyper(optimizer, [Hyper(0.0, 0.0)])
        backend.backward(model, backend.put(model, _made_up(training, images)))
        backend.update(model, optimizer)
        return backend.dump_optimizer(optimizer)


@contextmanager
def _memory_filled(byte: int) -> Generator[None, None, None]:
    """Let the C library fill the memory that it hands out; one that is not glibc leaves it as it is."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(PERTURB, byte)
    try:
        yield
    finally:
        library.mallopt(PERTURB, 0)


def _can_train_on(training: Training, images: int) -> bool:
    with _trial(training):
        try:
            training.backend.backward(training.model, training.backend.put(training.model, _made_up(training, images)))
        except BackendError:
            return False
        return True


def _made_up(training: Training, images: int) -> Batch:
    """A batch of noise that is as large where it enters the network as those of the run."""
    preprocess = training.loader.preprocess
    shape = (images, 3, preprocess.size, preprocess.size)
    words = rng.words(0, "trial", 0, images, 3 * preprocess.size**2)
    zeros = np.zeros(images, np.int64)
    return Batch((words >> 24).astype(np.uint8).reshape(shape), zeros, zeros, preprocess)


@contextmanager
def _trial(training: Training) -> Generator[None, None, None]:
    """Let everything train that ever does, and give the model its values back in the end."""
    backend, model = training.backend, training.model
    values = backend.dump_arrays(model)
    trainable, batch_norm = _trains(training)
    backend.set_phase(model, trainable, batch_norm)
    try:
        yield
    finally:
        backend.set_phase(model, frozenset(), frozenset())  # which drops the gradients
        backend.load_arrays(model, values)


def _trains(training: Training) -> tuple[frozenset[str], frozenset[str]]:
    """The parameters that train, and the modules that take statistics of the batch, in any phase."""
    plan = training.plan
    states = [plan.state_at(phase.start * plan.schedule.steps_per_epoch) for phase in plan.strategy.phases]
    none: frozenset[str] = frozenset()
    return none.union(*(s.trainable for s in states)), none.union(*(s.batch_norm for s in states))
