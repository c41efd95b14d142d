"""A module of somebody's own: tried before a run begins, and seeded, so that what it draws can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx import rng
from tlx.backend.module.net import DeviceBatch, Net
from tlx.errors import BackendError, one_line

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend

Key = tuple[int, int, int]  # of a batch: (seed, step, first row)
EVALUATION: Key = (0, 0, 0)  # evaluation is seeded alike for every batch
NAMES = ("logits", "out")  # of the logits among several outputs, as Hugging Face and torchvision call them
IMAGES = 2  # in a trial; BatchNorm needs two values


def taken_over(backend: ModuleBackend, module: Any, what: str, notes: list[str]) -> Any:
    """Return a copy of a user's module, which must be one of the framework; what was taken off it is noted."""
    kind = type(module).__name__
    if not isinstance(module, backend.fw.nn.Module):
        whole = f"{type(module).__module__}.{kind}"
        raise BackendError(f"{what} is a {whole}, not a module of {backend.name}; choose the backend it is made with")
    inner = backend.unwrapped(module)
    if inner is not module:
        notes.append(f"{what} is a {kind}; the {type(inner).__name__} in it is used")
    for name, param in inner.named_parameters():
        if not param.is_floating_point():
            raise BackendError(f"{what}: parameter {name!r} is {param.dtype}, which cannot train; make it a buffer")
    if what == "model" and not any(True for _ in inner.parameters()):
        raise BackendError(f"model is a {kind} without parameters; there is nothing to train")
    try:
        return backend.copied(inner)
    except Exception as error:
        cause = one_line(f"{type(error).__name__}: {error}")
        raise BackendError(f"{what}: this {kind} cannot be copied, as a run must: {cause}") from error


@contextmanager
def seeded(backend: ModuleBackend, net: Net, key: Key) -> Iterator[None]:
    """Seed what an own module may draw from while the block runs: the framework's generators, Python's and NumPy's.

    Afterwards the user's own random state is as before, where the framework can restore it.
    """
    seed, step, row = key
    number = rng.framework_seed(seed + net.salt, step, row)
    with undisturbed(backend, net.device), net.masks.functions():
        random.seed(number)
        np.random.seed(number % 2**32)
        for generator in backend.generators(net.device):
            generator.manual_seed(number)
        yield


@contextmanager
def undisturbed(backend: ModuleBackend, device: str) -> Iterator[None]:
    """Give the user's random state back after the block."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    generators = backend.generators(device) if backend.restores_generators else ()
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def random_state(backend: ModuleBackend, device: str) -> tuple[Any, ...]:
    """Return what changes when a number is drawn. OneFlow's state tells only the first draw after seeding."""
    own = [np.array(g.get_state().numpy(), copy=True).tobytes() for g in backend.generators(device)]
    numpy: Any = np.random.get_state(legacy=False)
    return own, random.getstate(), numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["has_gauss"]


def try_out(backend: ModuleBackend, net: Net, size: int) -> None:
    """Pass two images through a module as a run will, and note what a run should say; its values stay as they are.

    Raises BackendError where it cannot be trained as it is.
    """
    before = backend.dump_arrays(net)
    trains = [(param, param.requires_grad) for param in net.module.parameters()]
    batch = trial_batch(backend, net, size)
    try:
        try:
            notes = _trial(backend, net, batch)
        except BackendError as error:
            if not backend.lay_out_plainly(net):
                raise
            backend.load_arrays(net, before)
            notes = _trial(backend, net, batch)
            notes.append(f"its tensors are contiguous, a little slower than channels last, with which {error.problem}")
    finally:
        backend.load_arrays(net, before)
        for param, trained in trains:
            param.requires_grad_(trained)
            param.grad = None
        net.module.eval()
    net.trial = batch
    net.notes += notes


def trial_batch(backend: ModuleBackend, net: Net, size: int) -> DeviceBatch:
    """Two images of noise."""
    pixels = (rng.uniform(0, "trial", (IMAGES, 3, size, size)) * 4 - 2).astype(np.float32)
    images = backend.tensor(pixels, net.device).to(net.dtype)
    return DeviceBatch(images, backend.tensor(np.zeros(IMAGES, np.int64), net.device), None, IMAGES, EVALUATION, "")


def _trial(backend: ModuleBackend, net: Net, batch: DeviceBatch) -> list[str]:
    """Run a module in evaluation and in training, forward and backward; return what is to be noted."""
    notes = []
    net.module.eval()
    with backend.fw.no_grad(), seeded(backend, net, EVALUATION):
        start = random_state(backend, net.device)
        output = _outputs(backend, net, batch)
        if random_state(backend, net.device) != start:
            notes.append(
                "it draws random numbers in evaluation too (dropout without training=self.training?); "
                "each batch is seeded alike"
            )
        if not hasattr(output, "shape"):
            net.output = _choose(backend, net, batch, entries(output))
            notes.append(f"it returns {_described(output)}; the logits are {net.output!r}")
        logits = backend.array(checked(net, batch, output).to(backend.fw.float64))
    twice = replace(batch, images=backend.fw.cat([batch.images[:1]] * IMAGES))
    with backend.fw.no_grad(), seeded(backend, net, EVALUATION):
        again = backend.array(checked(net, twice, _outputs(backend, net, twice)).to(backend.fw.float64))
    net.mixes = not np.array_equal(again[0], logits[0], equal_nan=True)
    if net.mixes:
        notes.append("each image's outputs depend on the others of its batch (BatchNorm without running statistics?)")
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
        notes.append("its outputs look like probabilities, but the loss takes logits: leave its softmax out")
    first, second = (_train(backend, net, batch) for _ in range(2))
    if net.masks.together:  # which is known after the first pass
        first = _train(backend, net, batch)
    if not np.array_equal(first, second, equal_nan=True):
        notes.append(
            "two passes from one seed differ (a generator of its own, or a state that is no buffer?), "
            "so its run cannot be repeated bit for bit"
        )
    return notes


def _train(backend: ModuleBackend, net: Net, batch: DeviceBatch) -> Any:
    """Pass forward and backward in training; return the logits."""
    before = backend.dump_arrays(net)
    for param in net.module.parameters():
        param.requires_grad_(True)
    for module in net.training:
        module.training = True
    net.masks.begin(batch.key)
    with backend.fw.enable_grad(), seeded(backend, net, EVALUATION):
        able = (next(net.module.parameters()) * 1).requires_grad  # False in PyTorch's inference mode
        logits = checked(net, batch, _outputs(backend, net, batch))
        net.masks.end()
        if able and not logits.requires_grad:
            raise BackendError("The model cuts its gradients off (no_grad or detach in its forward pass?)")
        if able:
            try:
                logits.sum().backward()
            except RuntimeError as error:
                raise BackendError(backend.failure(net, batch, error)) from error
        values = backend.array(logits.to(backend.fw.float64))
    backend.load_arrays(net, before)
    return values


def _outputs(backend: ModuleBackend, net: Net, batch: DeviceBatch) -> Any:
    try:
        return backend.outputs(net, batch)
    except Exception as error:
        raise BackendError(backend.failure(net, batch, error)) from error


def _choose(backend: ModuleBackend, net: Net, batch: DeviceBatch, several: Mapping[Any, Any]) -> Any:
    """Return the key of the output that has the logits' shape and comes from the head."""
    wanted = (batch.size, net.classes)
    fitting = {k: backend.array(v.to(backend.fw.float64)) for k, v in several.items() if _shape(v) == wanted}
    head = dict(net.module.named_modules())[net.head]
    before = backend.dump_arrays(net)
    for param in head.parameters():
        param.add_(1.0)
    with seeded(backend, net, EVALUATION):
        moved = entries(_outputs(backend, net, batch))
    backend.load_arrays(net, before)
    of_head = [
        key
        for key, old in fitting.items()
        if not np.array_equal(backend.array(moved[key].to(backend.fw.float64)), old, equal_nan=True)
    ]
    if not of_head:
        raise BackendError(
            f"The model returns {_described(several)}; none of these are logits {list(wanted)} of its head {net.head!r}"
        )
    return next((name for name in NAMES if name in of_head), of_head[0])


def entries(output: Any) -> dict[Any, Any]:
    """Return the several things that a model returned, by their keys; {} where it is of no kind that is known."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, (tuple, list)):
        return dict(enumerate(output))
    if is_dataclass(output):
        return {f.name: getattr(output, f.name) for f in fields(output)}
    return {"logits": output.logits} if hasattr(output, "logits") else {}


def _described(output: Any) -> str:
    several = entries(output)
    shapes = ", ".join(
        f"{key!r}: {list(shape) if (shape := _shape(v)) else type(v).__name__}" for key, v in several.items()
    )
    return f"{{{shapes}}}" if several else f"a {type(output).__name__}"


def expression_of_logits(net: Net) -> str:
    """Return what follows a call of the module in code, such as ``["logits"]``, to be its logits; "" for a tensor."""
    if net.output is None:
        return ""
    keyed = isinstance(net.module(net.trial.images), (Mapping, tuple, list))
    return f"[{net.output!r}]" if keyed else f".{net.output}"


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def checked(net: Net, batch: DeviceBatch, output: Any) -> Any:
    """Return the logits, whose shape is checked: the loss of other shapes ends OneFlow's process."""
    logits = output
    if not hasattr(output, "shape") and (several := entries(output)):
        # In training GoogLeNet returns them among others.
        key = next((key for key in (net.output, *NAMES) if key in several), next(iter(several)))
        logits = several[key]
    shape = _shape(logits)
    if shape == (batch.size, net.classes):
        return logits
    fix = "is its head its last layer?"
    if len(shape) == 2 and shape[1] == net.classes:
        fix = "is image_size what its view(-1, ...) was written for?"
    raise BackendError(
        f"The model returns {list(shape) if shape else type(logits).__name__} instead of logits "
        f"[{batch.size}, {net.classes}]; {fix}"
    )


def same_in_training(backend: ModuleBackend, net: Net, acting: set[Any]) -> bool:
    """Whether the present phase trains as it evaluates, image by image, but for the layers in `acting`.

    If code of the module's own tells training from evaluation, or draws, what enters a layer is not the same in both.
    """
    if net.trial is None or net.mixes:
        return False
    before, fw = backend.dump_arrays(net), backend.fw
    try:
        with fw.no_grad(), seeded(backend, net, EVALUATION):
            net.module.eval()
            expected = backend.array(checked(net, net.trial, _outputs(backend, net, net.trial)).to(fw.float64))
        with fw.no_grad(), seeded(backend, net, EVALUATION):
            for module, training in net.training.items():
                plain = isinstance(module, backend.batch_norms) or not any(True for _ in module.children())
                module.training = training and not (module in acting and plain)
            start = random_state(backend, net.device)
            logits = backend.array(checked(net, net.trial, _outputs(backend, net, net.trial)).to(fw.float64))
            return random_state(backend, net.device) == start and np.array_equal(logits, expected)
    finally:
        backend.load_arrays(net, before)
        net.module.eval()
        net.mode = "eval"
