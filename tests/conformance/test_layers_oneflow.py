"""OneFlow's layers as tlx improves them: convolutions by a copy and products, and what may work in place."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from support.backends import skip_module_without
from tlx.backend import Array

skip_module_without("oneflow")

from tlx_oneflow import layers
from tlx_oneflow.bootstrap import flow

SHAPES = [  # channels in and out, side, kernel, padding, dilation, groups, bias
    (64, 64, 28, 3, 1, 1, 1, False),  # the images of a batch in parts
    (16, 8, 14, 1, 0, 1, 1, False),
    (3, 8, (9, 15), (3, 5), (1, 2), 1, 1, True),
    (8, 6, 15, 3, 2, 2, 1, False),
    (8, 6, 15, 3, 0, (1, 2), 1, True),
    (4, 6, 7, 2, 1, 1, 1, True),
    (16, 5, 1, 1, 0, 1, 1, True),
    (12, 8, 9, 3, 1, 1, 4, False),
    (8, 16, 9, 5, 2, 1, 8, True),  # each channel alone, twice
]
COUNT = 30


def pair(*arguments: Any, dtype: Any, **options: Any) -> list[Any]:
    """The same convolution twice: OneFlow's and the better one."""
    both = [flow.nn.Conv2d(*arguments, **options).to(dtype) for _ in range(2)]
    both[1].load_state_dict(both[0].state_dict())
    layers.improve(both[1])
    assert [type(each) for each in both] == [flow.nn.Conv2d, layers.Conv2d]
    return both


def images(channels: int, side: Any) -> Array:
    height, width = side if isinstance(side, tuple) else (side, side)
    return np.random.default_rng(0).standard_normal((COUNT, channels, height, width))


@pytest.mark.parametrize("channels, out, side, kernel, padding, dilation, groups, bias", SHAPES)
def test_outputs_are_equal_to_the_bit(
    channels: int, out: int, side: Any, kernel: Any, padding: Any, dilation: Any, groups: int, bias: bool
) -> None:
    options = {"padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    own, better = pair(channels, out, kernel, dtype=flow.float32, **options)
    x = flow.tensor(images(channels, side), dtype=flow.float32)
    expected = own(x).numpy()
    np.testing.assert_array_equal(better(x).numpy(), expected)
    for few in (1, 7):  # whatever else the batch holds
        np.testing.assert_array_equal(better(x[:few]).numpy(), expected[:few])


@pytest.mark.parametrize("trains", ["all", "input", "weight"])
@pytest.mark.parametrize("channels, out, side, kernel, padding, dilation, groups, bias", SHAPES)
def test_gradients_are_equal_up_to_rounding(
    channels: int, out: int, side: Any, kernel: Any, padding: Any, dilation: Any, groups: int, bias: bool, trains: str
) -> None:
    found = []
    options = {"padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    for conv in pair(channels, out, kernel, dtype=flow.float64, **options):
        x = flow.tensor(images(channels, side), dtype=flow.float64)
        leaf = x.requires_grad_(trains != "weight")
        conv.weight.requires_grad_(trains != "input")
        y = conv(leaf * 2.0)  # so that its input is no leaf
        y.backward(flow.tensor(np.random.default_rng(1).standard_normal(y.shape)))
        found.append([None if t is None or t.grad is None else t.grad.numpy() for t in (x, conv.weight, conv.bias)])
    assert [g is not None for g in found[0]] == [trains != "weight", trains != "input", bias]
    for expected, got in zip(*found, strict=True):
        assert (expected is None) == (got is None)
        if expected is not None:
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 3}], ids=["stride", "padding beyond the kernel"])
def test_what_it_cannot_do_stays_with_oneflow(options: dict[str, int]) -> None:
    conv = flow.nn.Conv2d(8, 8, 3, **options)
    layers.improve(conv)
    assert type(conv) is flow.nn.Conv2d


def test_a_class_of_the_users_own_is_left_alone() -> None:
    class Conv2d(flow.nn.Conv2d):  # type: ignore[misc]
        pass

    conv = Conv2d(8, 8, 3)
    layers.improve(conv)
    assert type(conv) is Conv2d


def test_a_batch_norm_of_the_users_own_keeps_what_it_does_around_the_better_one() -> None:
    class ChannelsLast(flow.nn.BatchNorm2d):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    x = flow.tensor(images(4, 5))
    found = []
    for norm, order, back in (
        (flow.nn.BatchNorm2d(4), (0, 1, 2, 3), (0, 1, 2, 3)),
        (ChannelsLast(4), (0, 2, 3, 1), (0, 3, 1, 2)),
    ):
        layers.improve(norm.double())
        found.append(norm(x.permute(*order).contiguous()).permute(*back).numpy())
        assert isinstance(norm, layers._Float64Training)
    np.testing.assert_array_equal(*found)


def test_an_image_smaller_than_the_kernel_is_refused_where_oneflow_would_end_the_process() -> None:
    conv = pair(8, 8, 3, dtype=flow.float32)[1]
    with pytest.raises(ValueError, match="images larger than the kernel: 2 x 9 pixels come to Conv2d"):
        conv(flow.zeros(2, 8, 2, 9))


def test_wrong_channels_are_refused_as_oneflow_does() -> None:
    conv = pair(8, 8, 3, dtype=flow.float32)[1]
    with pytest.raises(ValueError, match="input channels 4"):
        conv(flow.zeros(2, 4, 9, 9))


ACTIVATIONS = [
    name
    for name, kind in vars(flow.nn).items()
    if inspect.isclass(kind)
    and issubclass(kind, flow.nn.Module)
    and "inplace" in inspect.signature(kind).parameters
    and "Dropout" not in name
]


def slopes(name: str, inplace: bool, improved: bool) -> Array:
    """The gradient of an activation between -8 and 8."""
    module = getattr(flow.nn, name)(**{"threshold": 0.1, "value": 20.0} if name == "Threshold" else {})
    module.inplace = inplace
    if improved:
        layers.improve(module)
    x = flow.tensor(np.linspace(-8, 8, 321), requires_grad=True)
    module(x * 1.0).sum().backward()
    slope: Array = x.grad.numpy()
    return slope


@pytest.mark.filterwarnings("ignore:.* do not support inplace now")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_works_in_place_has_the_gradient_of_one_that_does_not(name: str) -> None:
    np.testing.assert_array_equal(slopes(name, inplace=True, improved=True), slopes(name, False, improved=True))
    wrong = np.abs(slopes(name, inplace=True, improved=False) - slopes(name, False, improved=False)).max()
    assert (wrong > 0) == (name in ("CELU", "Hardsigmoid")), "OneFlow is not as layers.py says"


BENT: dict[str, tuple[Any, ...]] = {"Hardtanh": (-0.3, 0.7), "Mish": (), "LogSigmoid": ()}


def everywhere(name: str, dtype: Any, improved: bool) -> tuple[Array, Array]:
    """What an activation gives for numbers near zero and far away, and its gradient."""
    module = getattr(flow.nn, name)(*BENT[name])
    if improved:
        layers.improve(module)
    far = np.logspace(0, 4, 41)
    x = flow.tensor(np.concatenate([np.linspace(-3, 3, 61), far, -far]), dtype=dtype, requires_grad=True)
    y = module(x)
    y.sum().backward()
    return y.detach().double().numpy(), x.grad.double().numpy()


@pytest.mark.parametrize(("dtype", "limit"), [(flow.float64, 1e-14), (flow.float32, 3e-6)])
@pytest.mark.parametrize("name", BENT)
def test_an_activation_and_its_gradient_are_right_everywhere(name: str, dtype: Any, limit: float) -> None:
    x = np.concatenate([np.linspace(-3, 3, 61), (far := np.logspace(0, 4, 41)), -far])
    softplus, sigmoid = np.logaddexp(0, x), np.exp(-np.logaddexp(0, -x))
    tanh = np.tanh(softplus)
    inside = (x > -0.3) & (x < 0.7)
    value, slope = {
        "Hardtanh": (np.clip(x, -0.3, 0.7), inside * 1.0),
        "Mish": (x * tanh, tanh + x * (1 - tanh**2) * sigmoid),
        "LogSigmoid": (-np.logaddexp(0, -x), 1 - sigmoid),
    }[name]
    edge = (abs(x + 0.3) > 1e-6) & (abs(x - 0.7) > 1e-6)  # where float32 may be on the other side
    for found, expected in zip(everywhere(name, dtype, improved=True), (value, slope), strict=True):
        apart = np.abs(found - expected) / np.maximum(np.abs(expected), 1)
        assert apart[edge].max() <= limit
    if dtype == flow.float64:
        own = everywhere(name, dtype, improved=False)
        assert not all(np.abs(a - b)[edge].max() < 1e-6 for a, b in zip(own, (value, slope), strict=True))
