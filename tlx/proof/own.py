"""Inputs and losses of the user's own, `batch=` and `loss=` of `tlx.parity`, on the framework's `ModuleBackend`.

The loop, the optimizer and what is recorded stay as they are; only what enters the model, and what is made of its
outputs, is the user's.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from tlx import rng
from tlx.backend import Array, Batch, Lazy, ModelSpec, Precision
from tlx.backend.module.base import ModuleBackend
from tlx.backend.module.net import DeviceBatch, Net
from tlx.errors import BackendError, RecipeError, one_line, shown
from tlx.proof.measure import sha256

Inputs: TypeAlias = Any  # an array, a tuple of arrays (positional), or a dictionary of them (by keyword)
Loss: TypeAlias = Callable[[Any, Any], Any]  # (outputs, batch) -> scalar tensor
# What a recipe may say where its images are the user's own inputs.
FIELDS = (
    *("optimizer", "lr", "momentum", "weight_decay", "decay_on", "clip_norm", "ema"),
    *("schedule", "step_size", "gamma", "warmup", "epochs", "seed", "device", "strategy"),
)
# The loop counts images, so it is given some that nobody looks at.
UNSEEN: Mapping[str, Any] = {
    **{"batch_size": 2, "image_size": 8, "augment": "none", "weights": "own", "head": "outputs"},
    "data": {
        "train": (np.zeros((160, 8, 8, 3), np.uint8), np.arange(160) % 2),
        "test": (np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 2),
        "classes": ["0", "1"],
    },
}


def batches_of(batch: object) -> list[Inputs]:
    """Check `batch=` and return its batches: the members of a list, or the one that it is.

    Raises:
        RecipeError: something in it is no array of numbers, or its batches are of different kinds.
    """
    batches = list(batch) if isinstance(batch, list) else [batch]
    if not batches:
        raise RecipeError("batch is an empty list; expected a NumPy array, a tuple or a dictionary of them")
    checked = [_checked(inputs) for inputs in batches]
    kinds = [list(_named(inputs)) for inputs in checked]
    if any(kind != kinds[0] for kind in kinds):
        raise RecipeError(f"batch: its batches hold {shown(kinds[0])} and others; expected the same names in each")
    return checked


def _checked(inputs: object) -> Inputs:
    if isinstance(inputs, Mapping):
        if not inputs or not all(isinstance(name, str) for name in inputs):
            raise RecipeError(f"batch has the keys {shown(list(inputs))}; expected the names of inputs")
        return {name: _array(f"batch[{name!r}]", value) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        if not inputs:
            raise RecipeError("batch is an empty tuple; expected the arrays that the model takes")
        return tuple(_array(f"batch[{number}]", value) for number, value in enumerate(inputs))
    return _array("batch", inputs)


def _array(where: str, value: object) -> Array:
    if not isinstance(value, np.ndarray):
        fix = "; pass tensor.numpy()" if hasattr(value, "detach") else ""
        kind = type(value).__name__
        raise RecipeError(f"{where} is of type {kind}; expected a NumPy array, or a tuple or dictionary of them{fix}")
    if value.dtype.kind not in "fiub":
        raise RecipeError(f"{where} holds {value.dtype}; expected floating-point or whole numbers, or bool")
    if not value.size:
        raise RecipeError(f"{where} is empty: {list(value.shape)}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise RecipeError(f"{where} holds numbers that are not finite")
    if value.dtype.kind in "iu" and value.dtype != np.uint8:
        return value.astype(np.int64)
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _named(inputs: Inputs) -> dict[str, Any]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return {str(number): array for number, array in enumerate(inputs if isinstance(inputs, tuple) else (inputs,))}


def losses_of(loss: object) -> tuple[Loss | None, Loss | None]:
    """Check `loss=` and return that of each side; None: the one that the core draws."""
    pair = loss if isinstance(loss, (tuple, list)) else (loss, loss)
    if len(pair) != 2 or not all(one is None or callable(one) for one in pair) or (None in pair and pair[0] != pair[1]):
        raise RecipeError(
            f"loss is {shown(loss)}; expected a function (outputs, batch) -> scalar tensor, or one for each side: "
            "loss=(for_reference, for_candidate)"
        )
    return pair[0], pair[1]


def check_fields(given: Iterable[str], strategy: Any, schedule: Any) -> None:
    """Raise RecipeError where a recipe speaks of what a user's own inputs do not have, such as images and a head."""
    for name in given:
        if name not in FIELDS:
            known = f"with batch= a recipe says only {', '.join(sorted(FIELDS))}"
            raise RecipeError(f"{name} says nothing about inputs of your own: {known}", fix=f"leave out {name}")
    if strategy not in (None, "full"):
        raise RecipeError(f"strategy is {shown(strategy)}; with batch= there is no head, so only 'full' can train")
    if schedule == "plateau":
        raise RecipeError("schedule 'plateau' reads a validation part, which batch= does not have; use another")


def with_inputs(backend: Any, batches: list[Inputs], loss: Loss | None) -> OwnInputs:
    """Return a backend that feeds these batches.

    Args:
        backend: of the module's framework, a `ModuleBackend`.
        batches: as `batches_of` returns them.
        loss: None: the one that the core draws.
    """
    own: Any = copy.copy(backend)
    own.__class__ = type("OwnInputs", (OwnInputs, type(backend)), {})
    own.batches, own.loss = batches, loss
    return own  # type: ignore[no-any-return]


class OwnInputs(ModuleBackend):
    """A framework's backend, but for what enters a model and what is made of its outputs; see `with_inputs`."""

    batches: list[Inputs]
    loss: Loss | None
    axes: tuple[int, ...] | None = None  # where outputs have another layout: from the reference's order of axes
    order: tuple[str, ...] = ()  # the names of the reference's outputs

    def like(self, axes: tuple[int, ...] | None, order: tuple[str, ...]) -> OwnInputs:
        """Return the same for a model that gives its outputs in this layout, to be taken in this order."""
        other = copy.copy(self)
        other.axes, other.order = axes, order
        return other

    @property
    def unseen(self) -> Iterable[str]:
        """The fields of a recipe that say nothing here."""
        return (*UNSEEN, "mean", "std", "interpolation", "antialias")

    @property
    def must_agree(self) -> dict[str, Any]:
        """What both captures must have been given alike."""
        arrays = [{name: sha256(array) for name, array in _named(inputs).items()} for inputs in self.batches]
        return {"batch": arrays, "loss": "drawn" if self.loss is None else "your own"}

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Net:
        """Build the module as it is: no head is replaced, and no images are tried."""
        return super().build(replace(spec, head="", image_size=0), device, precision)

    def put(self, model: Net, batch: Batch) -> DeviceBatch:
        """Copy the user's batch of this step to the device; floating-point numbers in the model's dtype."""
        if batch.preprocess.size != UNSEEN["image_size"]:
            raise BackendError("a batch of your own has one size")
        inputs = self.batches[batch.key[1] % len(self.batches)]

        def moved(array: Array) -> Any:
            tensor = self.tensor(array, model.device)
            return tensor.to(model.dtype) if array.dtype.kind == "f" else tensor

        tensors: Any = {name: moved(array) for name, array in _named(inputs).items()}
        if not isinstance(inputs, Mapping):
            tensors = tuple(tensors.values())
        return DeviceBatch(tensors, None, None, 1, batch.key, "")

    def described(self, batch: DeviceBatch) -> str:
        """Write the shapes of the inputs."""
        named = _named(batch.images).items()
        return ", ".join(f"{name} {list(t.shape)}" if name.isidentifier() else str(list(t.shape)) for name, t in named)

    def outputs(self, model: Net, batch: DeviceBatch) -> Any:
        """Return whatever the module returns on its inputs."""
        with self.autocast(model):
            if not isinstance(batch.images, Mapping):
                return model.module(*batch.images)
            known = accepted(model.module, batch.images)
            if self.loss is None and len(known) < len(batch.images):
                name = next(name for name in batch.images if name not in known)
                raise BackendError(f"batch: forward takes no {name!r}, and there is no loss= to read it")
            return model.module(**{name: batch.images[name] for name in known})

    def _run(self, model: Net, batch: DeviceBatch) -> Any:
        try:
            return self.outputs(model, batch)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(self.failure(model, batch, error)) from error

    def backward(self, model: Net, batch: DeviceBatch, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        """As the framework's; an error in the backward pass is one line."""
        try:
            return super().backward(model, batch, scale)
        except RuntimeError as error:
            raise BackendError(f"{self.name}: the backward pass failed: {one_line(str(error))}") from error

    def _loss(self, logits: Any, batch: DeviceBatch) -> Any:
        return self._drawn_loss(logits) if self.loss is None else self._given_loss(logits, batch)

    def _given_loss(self, outputs: Any, batch: DeviceBatch) -> Any:
        assert self.loss is not None
        given = batch.images if isinstance(batch.images, Mapping) or len(batch.images) > 1 else batch.images[0]
        try:
            value = self.loss(outputs, given)
        except Exception as error:
            raise BackendError(
                f"loss= failed on {self.name}: {one_line(f'{type(error).__name__}: {error}')}"
            ) from error
        if tuple(getattr(value, "shape", (0,))) != () or not hasattr(value, "backward"):
            found = list(value.shape) if hasattr(value, "shape") else type(value).__name__
            raise BackendError(f"loss= returns {found} on {self.name}; expected a tensor that is one number")
        if self.fw.is_grad_enabled() and not value.requires_grad:
            raise BackendError(f"loss= has no gradient on {self.name} (detach, item or no_grad in it?)")
        return value

    def _drawn_loss(self, outputs: Any) -> Any:
        """The mean of each output's numbers, each multiplied by one between -1 and 1 that the core draws; summed."""
        terms = []
        for number, (_, tensor) in enumerate(self._entries(outputs)):
            if tensor.is_floating_point():
                drawn = 2 * rng.uniform(0, f"parity/projection/{number}", tuple(tensor.shape)) - 1
                weights = self.tensor(np.asarray(drawn, np.float32), str(tensor.device)).to(tensor.dtype)
                terms.append((tensor * weights).mean())
        if not terms:
            raise BackendError(f"The model returns no floating-point tensor on {self.name}; pass a loss= of your own")
        return sum(terms[1:], terms[0])

    def _correct(self, logits: Any, labels: Any) -> Any:
        _, tensor = self._entries(logits)[0]
        return self.tensor(np.zeros((), np.int64), str(tensor.device))

    def logits(self, model: Net, batch: DeviceBatch) -> Lazy:
        """Return all numbers that the model gives in eval mode, one output after another, [numbers]."""
        with self.fw.no_grad():
            entries = self._entries(self._forward(model, batch))
            return self.fw.cat([tensor.to(model.dtype).reshape(-1) for _, tensor in entries])

    def listed(self, model: Net, batch: DeviceBatch) -> tuple[str, ...]:
        """Return the names of what the model gives in eval mode; numbers where it gives a tuple."""
        with self.fw.no_grad():
            return tuple(name for name, _ in self._entries(self._forward(model, batch)))

    def _entries(self, outputs: Any) -> list[tuple[str, Any]]:
        """Return the tensors in what a model gives, by name, in the reference's order and layout."""
        entries = list(tensors_in(outputs))
        if not entries:
            raise BackendError(f"The model returns a {type(outputs).__name__} without a tensor on {self.name}")
        if {name for name, _ in entries} == set(self.order):
            entries.sort(key=lambda entry: self.order.index(entry[0]))
        if self.axes is None:
            return entries
        back = tuple(int(axis) for axis in np.argsort(self.axes))
        return [(name, t.permute(*back) if t.ndim == len(back) else t) for name, t in entries]


def accepted(module: Any, names: Iterable[str]) -> list[str]:
    """Return the names that a module's forward takes as keywords."""
    parameters = inspect.signature(module.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return list(names)
    keywords = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return [name for name in names if name in keywords]


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested tuples, dictionaries and dataclasses, by name, in their order."""
    if hasattr(value, "detach"):
        yield name or "output", value
        return
    parts: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        parts = value
    elif isinstance(value, (tuple, list)):
        parts = dict(enumerate(value))
    elif is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
    for key, part in parts.items():
        yield from tensors_in(part, f"{name}.{key}".lstrip("."))
