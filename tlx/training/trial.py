"""What a few passes tell before the first step: whether the batches can be trained on, and give the same bits again.

The passes take made-up images, of the sizes that the run's own batches have, and leave the model as it was, bit for
bit. What a batch holds has no part in either question.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np

from tlx import rng
from tlx.backend import Array, Batch, Hyper, OptimizerSpec
from tlx.errors import BackendError, RecipeError
from tlx.training.loop import Training

# Of a gradient. Numbers below 1e-38 are not held to the last bit, so neither is what comes of them.
NOTHING = 1e-30


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


def find_unrepeatable(training: Training) -> str | None:
    """Return the name of a parameter whose gradient does not come out the same twice, or None.

    The second time the loss counts double, and so must every gradient, to the last bit; and some memory is taken, so
    that the pass finds other rubbish where a kernel leaves its output uninitialised. PyTorch's bfloat16 does so with
    the unused taps of a 3x3 convolution of stride 2 over a 1x1 map: of 30 fresh processes, 30 saw it. A backend without
    sgd is not examined, because the gradients are read from the slots of that.
    """
    if "sgd" not in training.backend.capabilities().optimizers:
        return None
    loader = training.loader
    for size in sorted(part_sizes(len(loader.images), loader.batch_size, training.micro_batch), reverse=True):
        once = _gradients(training, size, 1.0)
        taken = list(training.backend.dump_arrays(training.model).values())[::2]
        twice = _gradients(training, size, 2.0)
        del taken
        for name, gradient in once.items():
            with np.errstate(invalid="ignore", over="ignore"):  # rubbish may be anything
                same = np.abs(twice[name] / 2 - gradient) <= NOTHING
            if not same.all():
                return name.rpartition("/")[0]
    return None


def _gradients(training: Training, images: int, scale: float) -> dict[str, Array]:
    """The gradient of each parameter that ever trains, as the first momentum of SGD, which is a copy of it."""
    backend, model = training.backend, training.model
    params = tuple(spec.name for spec in training.plan.specs if spec.role != "statistic")
    with _trial(training):
        optimizer = backend.optimizer(model, OptimizerSpec("sgd", momentum=0.5), [params])
        backend.set_hyper(optimizer, [Hyper(0.0, 0.0)])
        backend.backward(model, backend.put(model, _made_up(training, images)), scale)
        backend.update(model, optimizer)
        return backend.dump_optimizer(optimizer)


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
