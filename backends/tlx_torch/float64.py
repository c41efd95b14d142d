"""Activations in float64: PyTorch's own take a constant of their gradients in float32, which is 3e-8 off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

_hardsigmoid, _celu = functional.hardsigmoid, functional.celu


def hardsigmoid(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Do what `torch.nn.functional.hardsigmoid` does."""
    if input.dtype is not torch.float64 or inplace:
        return _hardsigmoid(input, inplace)
    return (input + 3).clamp(0, 6) / 6


def celu(input: torch.Tensor, alpha: float = 1.0, inplace: bool = False) -> torch.Tensor:
    """Do what `torch.nn.functional.celu` does."""
    if input.dtype is not torch.float64 or inplace:
        return _celu(input, alpha, inplace)
    return torch.where(input > 0, input, alpha * torch.expm1(input.clamp(max=0) / alpha))


class Hardsigmoid(torch.nn.Hardsigmoid):
    """The module, out of place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take the gradient in float64."""
        return hardsigmoid(x)


FUNCTIONS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (functional, "hardsigmoid", hardsigmoid),
    (functional, "celu", celu),
)
