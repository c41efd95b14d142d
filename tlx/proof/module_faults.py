"""Faults inside modules and optimizers of a framework, and the small network that they are planted in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tlx.backend import Array, Arrays, Handle, Model, ModelSpec, OptimizerSpec, Precision
from tlx.proof.recorder import Proxy


def network(fw: Any) -> Any:
    """A small residual network with BatchNorm, a pool and a square weight, in a framework's own modules."""
    nn = fw.nn

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.act = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.act(x + self.norm(self.conv(x)))

    class Network(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.act = nn.ReLU()
            self.pool = nn.MaxPool2d(3, 2, 1)
            self.block = Block()
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            x = self.block(self.pool(self.act(self.norm(self.stem(x)))))
            return self.fc(x.flatten(2).mean(2))

    return Network()


class Dampening(Proxy):
    """SGD with a dampening of 0.1, which tlx sets to 0 everywhere."""

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        optimizer = self.inner.optimizer(model, spec, groups)
        for group in optimizer.native.param_groups:
            group["dampening"] = 0.1
        return optimizer


class ZeroedGradients(Proxy):
    """What is frozen keeps a gradient of zero, so momentum and decay go on moving it."""

    def set_phase(self, model: Any, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        self.inner.set_phase(model, trainable, batch_norm)
        self._zero(model)

    def update(self, model: Any, optimizer: Handle, max_norm: float | None = None) -> None:
        self.inner.update(model, optimizer, max_norm)
        self._zero(model)

    def _zero(self, model: Any) -> None:
        for param in model.module.parameters():
            if not param.requires_grad:
                param.grad = self.inner.fw.zeros_like(param)


class TransposedWeight(Proxy):
    """The values are right wherever they are read, and used transposed."""

    loaded = False

    def _turned(self, arrays: Arrays) -> dict[str, Array]:
        name = "block.conv.weight"
        return {**arrays, name: np.ascontiguousarray(arrays[name].swapaxes(0, 1))}

    def load_arrays(self, model: Model, arrays: Arrays) -> None:
        self.inner.load_arrays(model, self._turned(arrays))
        self.loaded = True

    def dump_arrays(self, model: Model) -> dict[str, Array]:
        arrays: dict[str, Array] = self.inner.dump_arrays(model)
        return self._turned(arrays) if self.loaded else arrays


class Edited(Proxy):
    """A backend that builds another module than it was asked for."""

    def __init__(self, edit: Callable[[Any, Any], None], inner: Any) -> None:
        """Stand in front of a backend; `edit` gets its framework and each module that it builds."""
        super().__init__(inner)
        self.edit = edit

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Model:
        model: Any = self.inner.build(spec, device, precision)
        self.edit(self.inner.fw, model.module)
        return model


def other_eps(fw: Any, net: Any) -> None:
    """Set BatchNorm's eps to 1e-3."""
    net.norm.eps = 1e-3


def other_momentum(fw: Any, net: Any) -> None:
    """Set BatchNorm's momentum to 0.01."""
    net.norm.momentum = 0.01


def leaky(fw: Any, net: Any) -> None:
    """Replace a ReLU by a LeakyReLU."""
    net.block.act = fw.nn.LeakyReLU(0.01)


def biased_variance(fw: Any, net: Any) -> None:
    """Let BatchNorm keep the biased variance."""
    norm = net.norm
    forward = type(norm).forward

    def biased(x: Any) -> Any:
        before = norm.running_var.detach().clone()
        y = forward(norm, x)
        if norm.training:
            count = x.shape[0] * x.shape[2] * x.shape[3]
            old_share = before * (1 - norm.momentum)
            norm.running_var = old_share + (norm.running_var.detach() - old_share) * ((count - 1) / count)
        return y

    norm.forward = biased


def one_sided_pool(fw: Any, net: Any) -> None:
    """Pad the pool on the right and below only."""
    net.pool = fw.nn.MaxPool2d(3, 2, 0, ceil_mode=True)


def late_residual(fw: Any, net: Any) -> None:
    """Add the residual after the activation."""
    block = net.block
    block.forward = lambda x: x + block.act(block.norm(block.conv(x)))
