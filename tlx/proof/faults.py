"""Faults that people really make, each as a backend or a loader that has it: what `tlx parity selftest` must find."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tlx.backend import Array, Arrays, Backend, Batch, Handle, Hyper, Lazy, Model, OptimizerSpec
from tlx.conformance.loopback import Loopback
from tlx.conformance.mutants import BiasedRunningVariance
from tlx.proof.loop_faults import Added, Clipped, FromZero, Kept, LateAverage, LateWarmup, OtherDecay
from tlx.proof.module_faults import (
    Dampening,
    Edited,
    TransposedWeight,
    ZeroedGradients,
    biased_variance,
    late_residual,
    leaky,
    one_sided_pool,
    other_eps,
    other_momentum,
)
from tlx.proof.recorder import Proxy


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to plant: `plant` gives a backend that has it, or `feed` a loader; `optimizer` is the one it lies in."""

    name: str
    plant: Callable[[Backend], Any] | None = None
    feed: Callable[[Any], Any] = lambda loader: loader
    optimizer: str = "sgd"


def faults(backend: Backend) -> list[Fault]:
    """Return all faults that can be planted in a backend.

    Those inside modules need a framework; the reference backend has one of them, as a mutant of the conformance suite.
    """
    everywhere = [
        Fault("a weight is missing", MissingKey),
        Fault("one wrong label", feed=lambda loader: Fed(loader, wrong_label)),
        Fault("two batches are swapped", feed=lambda loader: Fed(loader, swapped)),
        Fault("a sample is dropped", feed=lambda loader: Fed(loader, dropped)),
        Fault("the random stream of another seed", feed=reseeded),
        Fault("channels are swapped (BGR)", SwappedChannels),
        Fault("images are enlarged by the nearest pixel", Nearest),
        Fault("images are enlarged bicubically", Bicubic),
        Fault("pixels are normalised by other numbers", Renormalised),
        Fault("label smoothing is forgotten", Unsmoothed),
        Fault("the loss is summed, not averaged", SummedLoss),
        Fault("gradients are not clipped", partial(Clipped, "clipped not at all")),
        Fault("gradients are clipped by value", partial(Clipped, "clipped by value")),
        Fault("gradients are clipped by group", partial(Clipped, "clipped by group")),
        Fault("each gradient is clipped by itself", partial(Clipped, "clipped by array")),
        Fault("micro-batches are added, not weighed", Added),
        Fault("gradients are kept from the step before", Kept),
        Fault("warm-up comes one step late", LateWarmup),
        Fault("the moving average has another decay", OtherDecay),
        Fault("the moving average begins at zero", FromZero),
        Fault("the moving average is a step late", LateAverage),
        Fault("a frozen BatchNorm adapts", FrozenNormAdapts),
        Fault("a frozen parameter moves", FrozenMoves),
        Fault("unfreezing comes one step late", LateUnfreeze),
        Fault("a drop of the rate comes one step late", LateRate),
        Fault("the rate is inside the momentum", RateInsideMomentum),
        Fault("momentum is lost where the phase changes", MomentumLost),
        Fault("weight decay acts on norms and biases", DecayOnAll),
        Fault("a NaN on one side", OneSidedNaN),
        Fault("Adam counts one step for all parameters", OneStepCount, optimizer="adamw"),
        Fault("Adam's decay under AdamW's name", CoupledDecay, optimizer="adamw"),
    ]
    if isinstance(backend, Loopback):
        return [*everywhere, Fault("BatchNorm keeps the biased variance", lambda _: BiasedRunningVariance())]
    if not hasattr(backend, "fw"):
        return everywhere
    return [
        *everywhere,
        Fault("a square weight is used transposed", TransposedWeight),
        Fault("dampening 0.1", Dampening),
        Fault("gradients are set to zero, not None", ZeroedGradients),
        *(
            Fault(name, partial(Edited, edit))
            for name, edit in {
                "BatchNorm's eps is 1e-3": other_eps,
                "BatchNorm's momentum is 0.01": other_momentum,
                "BatchNorm keeps the biased variance": biased_variance,
                "the pool pads on one side only": one_sided_pool,
                "an activation is swapped": leaky,
                "a residual is added after the activation": late_residual,
            }.items()
        ),
    ]


# In the data.


class Fed(Proxy):
    """A loader whose first epoch is changed."""

    def __init__(self, inner: Any, change: Callable[[Sequence[Batch]], Sequence[Batch]]) -> None:
        """Stand in front of a loader; `change` gets the batches of the first epoch."""
        super().__init__(inner)
        self.change = change

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        batches = list(self.inner.epoch(epoch, start))
        yield from self.change(batches) if epoch == 0 else batches


def wrong_label(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Change the first label of the second batch."""
    batch = batches[1]
    labels = batch.labels.copy()
    labels[0] = (labels[0] + 1) % 5
    targets = batch.targets
    if targets is not None:
        targets = targets.copy()
        targets[0] = np.roll(targets[0], 1)
    return [batches[0], replace(batch, labels=labels, targets=targets), *batches[2:]]


def swapped(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Swap the first two batches."""
    return [batches[1], batches[0], *batches[2:]]


def dropped(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Drop the first sample of the third batch."""
    batch = batches[2]
    fewer: dict[str, Any] = {name: getattr(batch, name)[1:] for name in ("images", "labels", "indices")}
    targets = None if batch.targets is None else batch.targets[1:]
    return [*batches[:2], replace(batch, **fewer, targets=targets), *batches[3:]]


def reseeded(loader: Any) -> Any:
    """Give the loader another seed."""
    other = copy.copy(loader)
    other.seed += 1
    return other


class SwappedChannels(Proxy):
    """Feeds blue, green, red where red, green, blue was meant."""

    def put(self, model: Model, batch: Batch) -> Handle:
        return self.inner.put(model, replace(batch, images=np.ascontiguousarray(batch.images[:, ::-1])))


class Nearest(Proxy):
    """Enlarges images by the nearest pixel, not bilinearly."""

    def put(self, model: Model, batch: Batch) -> Handle:
        size = batch.preprocess.size
        rows = np.arange(size) * batch.images.shape[2] // size
        columns = np.arange(size) * batch.images.shape[3] // size
        images = np.ascontiguousarray(batch.images[:, :, rows][:, :, :, columns])
        return self.inner.put(model, replace(batch, images=images))


class Bicubic(Proxy):
    """Enlarges images bicubically, not bilinearly."""

    def put(self, model: Model, batch: Batch) -> Handle:
        preprocess = replace(batch.preprocess, interpolation="bicubic")
        return self.inner.put(model, replace(batch, preprocess=preprocess))


class Renormalised(Proxy):
    """Normalises pixels to -1 .. 1, whatever the mean and the deviation of the model are."""

    def put(self, model: Model, batch: Batch) -> Handle:
        preprocess = replace(batch.preprocess, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return self.inner.put(model, replace(batch, preprocess=preprocess))


class Unsmoothed(Proxy):
    """Drops the soft targets."""

    def put(self, model: Model, batch: Batch) -> Handle:
        return self.inner.put(model, replace(batch, targets=None))


# In the loop, the optimizer and what trains.


class MissingKey(Proxy):
    """Does not list the first array once the weights are loaded."""

    loaded = False

    def load_arrays(self, model: Model, arrays: Arrays) -> None:
        self.inner.load_arrays(model, {**self.inner.dump_arrays(model), **arrays})
        self.loaded = True

    def dump_arrays(self, model: Model) -> dict[str, Array]:
        arrays: dict[str, Array] = self.inner.dump_arrays(model)
        return dict(list(arrays.items())[1:]) if self.loaded else arrays


class SummedLoss(Proxy):
    """Multiplies the gradients by four, as a loss that is summed and not averaged."""

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        metrics: tuple[Lazy, Lazy] = self.inner.backward(model, batch, scale * 4)
        return metrics


class FrozenNormAdapts(Proxy):
    """Lets every BatchNorm adapt, whatever is frozen."""

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        norms = frozenset(s.module for s in self.inner.param_specs(model) if s.role == "statistic")
        self.inner.set_phase(model, trainable, norms)


class FrozenMoves(Proxy):
    """Shrinks frozen parameters by a millionth at each update."""

    frozen: frozenset[str] = frozenset()

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        self.inner.set_phase(model, trainable, batch_norm)
        params = frozenset(s.name for s in self.inner.param_specs(model) if s.role != "statistic")
        self.frozen = params - trainable

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        self.inner.update(model, optimizer, max_norm)
        arrays = self.inner.dump_arrays(model)
        for name in self.frozen:
            arrays[name] = arrays[name] * (1 - 1e-6)
        self.inner.load_arrays(model, arrays)


class LateUnfreeze(Proxy):
    """Unfreezes only after the first update of a phase."""

    late: tuple[Any, ...] | None = None

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        known = getattr(self, "trainable", trainable)
        self.trainable = trainable
        if trainable > known:
            self.late = (model, trainable, batch_norm)
        else:
            self.inner.set_phase(model, trainable, batch_norm)

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        self.inner.update(model, optimizer, max_norm)
        if self.late is not None:
            self.inner.set_phase(*self.late)
            self.late = None


class LateRate(Proxy):
    """Applies a new rate only after the next update."""

    waiting: tuple[Any, ...] | None = None
    first = True

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        self.waiting, self.first = None, True
        return self.inner.optimizer(model, spec, groups)

    def set_hyper(self, optimizer: Handle, values: Sequence[Hyper]) -> None:
        if self.first:
            self.inner.set_hyper(optimizer, values)
        else:
            self.waiting = (optimizer, values)
        self.first = False

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        self.inner.update(model, optimizer, max_norm)
        if self.waiting is not None:
            self.inner.set_hyper(*self.waiting)
            self.waiting = None


class RateInsideMomentum(Proxy):
    """v = m v + lr g, as Sutskever and TensorFlow write it: the buffer remembers the rate it was filled at."""

    rate: float | None = None

    def set_hyper(self, optimizer: Handle, values: Sequence[Hyper]) -> None:
        rate = max(h.lr for h in values)
        if self.rate and rate and rate != self.rate:
            state = self.inner.dump_optimizer(optimizer)
            self.inner.load_optimizer(optimizer, {key: array * (self.rate / rate) for key, array in state.items()})
        self.rate = rate
        self.inner.set_hyper(optimizer, values)


class MomentumLost(Proxy):
    """Empties the optimizers' state at each change of the phase."""

    optimizers: tuple[Handle, ...] = ()

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        optimizer = self.inner.optimizer(model, spec, groups)
        self.optimizers = (*self.optimizers, optimizer)
        return optimizer

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        self.inner.set_phase(model, trainable, batch_norm)
        for optimizer in self.optimizers:
            self.inner.load_optimizer(optimizer, {})


class DecayOnAll(Proxy):
    """Decays norms and biases as it does weights."""

    def set_hyper(self, optimizer: Handle, values: Sequence[Hyper]) -> None:
        decay = max(h.weight_decay for h in values)
        self.inner.set_hyper(optimizer, [replace(h, weight_decay=decay) for h in values])


class OneSidedNaN(Proxy):
    """One logit of one sample is not a number, in evaluation only."""

    def logits(self, model: Model, batch: Handle) -> Lazy:
        (logits,) = self.inner.fetch([self.inner.logits(model, batch)])
        logits[0, 0] = np.nan
        return logits

    def fetch(self, lazies: Sequence[Lazy]) -> list[Array]:
        return [lazy if isinstance(lazy, np.ndarray) else self.inner.fetch([lazy])[0] for lazy in lazies]


class OneStepCount(Proxy):
    """A parameter unfrozen late gets the correction of the run's first steps no more."""

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        self.inner.update(model, optimizer, max_norm)
        state: dict[str, Array] = self.inner.dump_optimizer(optimizer)
        count = max((float(array) for key, array in state.items() if key.endswith("/step")), default=0.0)
        step = {key: np.full_like(array, count) for key, array in state.items() if key.endswith("/step")}
        self.inner.load_optimizer(optimizer, {**state, **step})


class CoupledDecay(Proxy):
    """Gives Adam, whose decay enters the gradient, where AdamW was asked for."""

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        return self.inner.optimizer(model, replace(spec, name="adam"), groups)
