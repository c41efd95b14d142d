"""Activations that give a number the same bits wherever in a batch it stands.

On a CPU PyTorch computes them by vectors, and what is left at the end of a tensor, or of a thread's share of it, one by
one. The two take their exponentials from different libraries, so the last bits of an image's features would depend on
its place in the batch and on the batch's size. Where no gradient is asked for, as in a frozen part, a tensor is
therefore filled up to whole vectors; most are whole already. Seen in EfficientNet and RegNet, whose squeeze-and-excite
layers are small.
"""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 64  # numbers that make whole vectors in every dtype: an iteration takes two of 512 bits
GRAIN = 32768  # numbers from which PyTorch divides a tensor among threads (at::internal::GRAIN_SIZE)


def improve(module: nn.Module) -> None:
    """Exchange the class of an activation for the one below, if there is one."""
    module.__class__ = EVEN.get(type(module), module.__class__)


def whole(count: int, threads: int) -> int:
    """Return the least count of numbers, from `count` on, of which each thread's share is whole vectors."""
    shares = min(threads, -(-count // GRAIN))
    while (more := -(-count // (WIDTH * shares)) * WIDTH * shares) > count:
        count, shares = more, min(threads, -(-more // GRAIN))
    return count


class _Even(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.numel()
        dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
        if x.requires_grad or x.is_cuda or not dense or not count:
            return super().forward(x)  # type: ignore[no-any-return]
        size = whole(count, torch.get_num_threads())
        if size == count:
            return super().forward(x)  # type: ignore[no-any-return]
        filled = x.new_zeros(size)
        filled[:count] = x.as_strided((count,), (1,))
        return super().forward(filled).as_strided(x.shape, x.stride())  # type: ignore[no-any-return]


class Sigmoid(_Even, nn.Sigmoid):
    """A sigmoid."""


class SiLU(_Even, nn.SiLU):
    """A sigmoid linear unit."""


class GELU(_Even, nn.GELU):
    """A Gaussian error linear unit."""


class Tanh(_Even, nn.Tanh):
    """A hyperbolic tangent."""


EVEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sigmoid: Sigmoid,
    nn.SiLU: SiLU,
    nn.GELU: GELU,
    nn.Tanh: Tanh,
}


def plain(module: nn.Module) -> nn.Module:
    """Give activations of a module, in place, PyTorch's own classes back: what it exports tells no sizes apart."""
    own = {even: native for native, even in EVEN.items()}
    for part in module.modules():
        part.__class__ = own.get(type(part), part.__class__)
    return module
