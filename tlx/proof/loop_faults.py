"""Faults of hand-written loops: clipping, micro-batches, warm-up and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.backend import Array, Handle, Hyper, Lazy, Model, OptimizerSpec
from tlx.proof.recorder import Proxy
from tlx.proof.result import Clipping
from tlx.proof.updates import MISTAKES


class Clipped(Proxy):
    """Clips gradients in one of the ways that people take for clipping their joint norm."""

    groups: Sequence[tuple[str, ...]] = ()

    def __init__(self, mistake: Clipping, inner: Any) -> None:
        """Stand in front of a backend."""
        super().__init__(inner)
        self.mistake = mistake

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        self.groups = groups
        return self.inner.optimizer(model, spec, groups)

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        if max_norm is not None:
            probe = self.inner.probe(model)
            probe.set_gradients(MISTAKES[self.mistake](probe.gradients(), max_norm, self.groups))
        self.inner.update(model, optimizer, None)


class Added(Proxy):
    """Adds up the gradients of micro-batches without weights."""

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        metrics: tuple[Lazy, Lazy] = self.inner.backward(model, batch, 1.0)
        return metrics


class Kept(Proxy):
    """Adds the gradients of a step to those of the next one, as where they are not set back."""

    kept: Mapping[str, Array] | None = None

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        self.kept = None
        return self.inner.optimizer(model, spec, groups)

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        metrics: tuple[Lazy, Lazy] = self.inner.backward(model, batch, scale)
        if self.kept is not None:
            probe, kept, self.kept = self.inner.probe(model), self.kept, None
            probe.set_gradients({name: g + kept.get(name, 0.0) for name, g in probe.gradients().items()})
        return metrics

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        self.kept = self.inner.probe(model).gradients()
        self.inner.update(model, optimizer, max_norm)


class LateWarmup(Proxy):
    """Gives a step the rate of the step before, as long as rates rise."""

    last: tuple[Hyper, ...] = ()

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        self.last = ()
        return self.inner.optimizer(model, spec, groups)

    def set_hyper(self, optimizer: Handle, values: Sequence[Hyper]) -> None:
        rises = bool(self.last) and sum(h.lr for h in values) > sum(h.lr for h in self.last)
        self.inner.set_hyper(optimizer, self.last if rises else values)
        self.last = tuple(values)


class OtherDecay(Proxy):
    """Moves the average half as far."""

    def average(self, shadow: Model, model: Model, weight: float) -> None:
        self.inner.average(shadow, model, weight / 2)


class FromZero(Proxy):
    """Lets the moving average begin at zero, not at the first weights."""

    seen: Any = None

    def average(self, shadow: Model, model: Model, weight: float) -> None:
        if self.seen is not shadow:
            self.seen = shadow
            arrays = self.inner.dump_arrays(shadow)
            self.inner.load_arrays(
                shadow, {n: np.zeros_like(a) if a.dtype.kind == "f" else a for n, a in arrays.items()}
            )
        self.inner.average(shadow, model, weight)


class LateAverage(Proxy):
    """Averages the weights from before the update."""

    before: Mapping[str, Array]

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        self.before = self.inner.dump_arrays(model)
        self.inner.update(model, optimizer, max_norm)

    def average(self, shadow: Model, model: Model, weight: float) -> None:
        after = self.inner.dump_arrays(model)
        self.inner.load_arrays(model, self.before)
        self.inner.average(shadow, model, weight)
        self.inner.load_arrays(model, after)
