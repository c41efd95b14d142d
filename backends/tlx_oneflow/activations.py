"""Activations that OneFlow 0.9.0 computes wrongly, by other operations of its own.

In float64 it rounds slopes and limits to float32: LeakyReLU is 1e-8 off, and Hardtanh, whose gradient compares outputs
with limits that none of them has, passes one on beyond its limits too. Mish is not a number beyond 44 in float32, and
LogSigmoid minus infinity below -88.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlx.backend import float32_exact
from tlx_oneflow.bootstrap import flow

STEEP = 40  # beyond it softplus is the identity to the last bit of float64
_leaky_relu, _hardtanh = flow._C.leaky_relu, flow._C.hardtanh


def leaky_relu(x: Any, alpha: float = 0.01, inplace: bool = False) -> Any:
    """Do what `oneflow.nn.functional.leaky_relu` does."""
    if x.dtype != flow.float64 or inplace or float32_exact(alpha) == alpha:
        return _leaky_relu(x, alpha=alpha, inplace=inplace)
    return flow.where(x > 0, x, x * alpha)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """Do what `oneflow.nn.functional.hardtanh` does."""
    if x.dtype != flow.float64 or all(float32_exact(limit) == limit for limit in (min_val, max_val)):
        return _hardtanh(x, min_val=min_val, max_val=max_val)
    return flow.where((x > min_val) & (x < max_val), x, flow.clamp(x, min_val, max_val).detach())


def mish(x: Any) -> Any:
    """Misra 2019: ``x * tanh(softplus(x))``."""
    return x * flow.tanh(flow._C.softplus(x, beta=1.0, threshold=STEEP))


def logsigmoid(x: Any) -> Any:
    """The logarithm of the sigmoid: ``-softplus(-x)``."""
    return -flow._C.softplus(-x, beta=1.0, threshold=STEEP)


class Hardtanh(flow.nn.Hardtanh):
    """The module."""

    def forward(self, x: Any) -> Any:
        """Pass a gradient on between the limits alone."""
        return hardtanh(x, self.min_val, self.max_val)


class Mish(flow.nn.Mish):
    """The module."""

    def forward(self, x: Any) -> Any:
        """Be finite for any number."""
        return mish(x)


class LogSigmoid(flow.nn.LogSigmoid):
    """The module."""

    def forward(self, x: Any) -> Any:
        """Be finite for any number."""
        return logsigmoid(x)


BETTER = {flow.nn.Hardtanh: Hardtanh, flow.nn.Mish: Mish, flow.nn.LogSigmoid: LogSigmoid}
FUNCTIONS: tuple[tuple[Any, str, Callable[..., Any]], ...] = tuple(
    (owner, function.__name__, function)
    for owner in (flow.nn.functional, flow._C)  # its modules call the latter
    for function in (leaky_relu, hardtanh, mish, logsigmoid)
    if hasattr(owner, function.__name__)
)
