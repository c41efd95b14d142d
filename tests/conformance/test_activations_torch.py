"""On PyTorch an activation gives a number the same bits wherever in a tensor it stands."""

from __future__ import annotations

import pytest

from support.backends import skip_module_without

skip_module_without("torch")

import torch
from hypothesis import given
from hypothesis import strategies as st
from tlx_torch.activations import EVEN, GRAIN, WIDTH, improve, whole
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", EVEN, ids=lambda kind: kind.__name__)
def test_each_number_has_the_bits_that_it_has_among_others(kind: type[nn.Module], dtype: torch.dtype) -> None:
    """Alone, at the end of a tensor, and at the end of a thread's share of it."""
    native, improved = kind(), kind()
    improve(improved)
    x = torch.randn(2 * GRAIN + WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype) * 3
    expected = native(torch.cat([x, x.new_zeros(whole(len(x), 2) - len(x))]))[: len(x)]
    for count in (1, 7, 33, 1000, 1001, GRAIN - 1, GRAIN + 5, 2 * GRAIN + 13):
        for start in (0, 3):
            part = x[start : start + count].clone()
            assert torch.equal(improved(part), expected[start : start + count])


def test_maps_keep_their_shape_and_layout() -> None:
    act = nn.SiLU(inplace=True)
    improve(act)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 5, 1, 7).contiguous(memory_format=layout)
        y = act(x)
        assert y.shape == x.shape and y.stride() == x.stride() and torch.allclose(y, x * torch.sigmoid(x))


def test_what_trains_is_left_to_the_framework() -> None:
    act = nn.Sigmoid()
    improve(act)
    x = torch.randn(11, requires_grad=True)
    y = act(x)
    y.sum().backward()
    assert torch.equal(y, torch.sigmoid(x)) and x.grad is not None


@given(st.integers(1, 10 * GRAIN), st.integers(1, 64))
def test_each_share_is_whole_vectors(count: int, threads: int) -> None:
    size = whole(count, threads)
    shares = min(threads, -(-size // GRAIN))
    assert size >= count and size % WIDTH == 0 and -(-size // shares) % WIDTH == 0
    assert size < count + 2 * WIDTH * threads
