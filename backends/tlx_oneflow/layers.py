"""Some of OneFlow's layers, done better by its own operations (0.9.0).

On a CPU its convolution gathers the patches of an image by a virtual call for each number. Here they are a view, copied
at once, and each image's product with the weights is the same, so outputs are equal to the bit whatever the batch.
Gradients are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from tlx.backend.module.shared_norm import ONE_VALUE
from tlx.errors import BackendError
from tlx_oneflow import activations
from tlx_oneflow.bootstrap import flow

AT_ONCE = 2**22  # numbers of patches: more gain nothing and cost memory
WORTH_IT = 32  # pixels of an output: with fewer, to turn the weights for the gradient costs more than the patches

BATCH_NORMS = (flow.nn.BatchNorm1d, flow.nn.BatchNorm2d, flow.nn.BatchNorm3d)
# In place they derive at what they wrote, not at what they read: a saturated unit gets a gradient.
WRONG_IN_PLACE = (flow.nn.CELU, flow.nn.Hardsigmoid)
Pair = tuple[int, int]


def improve(module: Any) -> None:
    """Exchange the class of a layer for the better one, if there is one, or keep it from working in place."""
    if isinstance(module, BATCH_NORMS):
        if module.momentum is None:
            raise BackendError("oneflow: BatchNorm with momentum=None (cumulative average) is not supported")
        if module.affine and module.track_running_stats:
            module.__class__ = _accurate(module.__class__)
    elif isinstance(module, WRONG_IN_PLACE):
        module.inplace = False
    elif type(module) in activations.BETTER:
        module.__class__ = activations.BETTER[type(module)]
    elif type(module) is flow.nn.Conv2d and module.stride == (1, 1):
        reach = zip(module.dilation, module.kernel_size, module.padding, strict=True)
        if all(p <= d * (k - 1) for d, k, p in reach):  # else the gradient would need a negative padding
            module.__class__ = Conv2d


class Conv2d(flow.nn.Conv2d):
    """A convolution with stride 1."""

    def forward(self, x: Any) -> Any:
        """Convolve images (N, C, H, W); on a GPU and for tiny outputs as OneFlow does."""
        if x.is_cuda or x.shape[1] != self.in_channels:
            return super().forward(x)
        size = _size(x, self.weight, self.padding, self.dilation)
        if min(size) < 1:
            tall, wide = x.shape[2:]
            raise ValueError(f"Expected images larger than the kernel: {tall} x {wide} pixels come to {self}")
        if size[0] * size[1] < WORTH_IT:
            return super().forward(x)
        y = _convolution(self.groups, self.padding, self.dilation).apply(x, self.weight)
        return y if self.bias is None else flow._C.bias_add(y, self.bias, axis=1)


@cache
def _convolution(groups: int, padding: Pair, dilation: Pair) -> Any:
    class Convolution(flow.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:
            ctx.save_for_backward(x, weight)
            return convolve(x, weight, groups, padding, dilation)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, Any]:
            x, weight = ctx.saved_tensors
            by_x = by_weight = None
            if x.requires_grad:
                opposite = tuple(d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True))
                by_x = convolve(grad, _turned(weight, groups), groups, opposite, dilation)
            if weight.requires_grad:
                by_weight = weight_gradient(x, grad, weight, groups, padding, dilation)
            return by_x, by_weight

    return Convolution


def convolve(x: Any, weight: Any, groups: int, padding: Any, dilation: Pair) -> Any:
    """Images (N, C, H, W) by weights (O, C / groups, h, w) with stride 1: (N, O, H', W'), a product for each image."""
    out = weight.shape[0]
    matrix = weight.reshape(groups, out // groups, -1)
    results = []
    for part, patches in _parts(x, weight, padding, dilation):
        columns = patches.permute(3, 0, 1, 2, 4, 5).reshape(part.shape[0], groups, matrix.shape[2], -1)
        results.append(flow._C.matmul(matrix, columns).reshape(part.shape[0], out, *patches.shape[4:]))
    return results[0] if len(results) == 1 else flow.cat(results, 0)


def weight_gradient(x: Any, grad: Any, weight: Any, groups: int, padding: Pair, dilation: Pair) -> Any:
    """The gradient by the weights: of each group, (O, N H' W') of the outputs by (N H' W', C h w) of the patches."""
    total: Any = 0
    start = 0
    for part, patches in _parts(x, weight, padding, dilation):
        stop = start + part.shape[0]
        rows = grad[start:stop].permute(1, 0, 2, 3).reshape(groups, weight.shape[0] // groups, -1)
        columns = patches.reshape(groups, -1, rows.shape[2])
        total = flow._C.matmul(rows, columns, transpose_b=True) + total
        start = stop
    return total.reshape(weight.shape)


def _turned(weight: Any, groups: int) -> Any:
    """The weights by which a gradient goes back through them: (C, O / groups, h, w), turned by half a turn."""
    out, channels, *kernel = weight.shape
    back = weight.flip((2, 3)).reshape(groups, out // groups, channels, *kernel).transpose(1, 2)
    return back.reshape(groups * channels, out // groups, *kernel)


def _size(x: Any, weight: Any, padding: Any, dilation: Pair) -> list[int]:
    sides = zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    return [n + 2 * p - d * (k - 1) for n, k, p, d in sides]


def _parts(x: Any, weight: Any, padding: Any, dilation: Pair) -> Iterator[tuple[Any, Any]]:
    """Some images at a time, with the patches that each weight meets: a view (C, h, w, N, H', W')."""
    images, channels, height, width = x.shape
    top, left = padding
    tall, wide = _size(x, weight, padding, dilation)
    step = max(1, AT_ONCE // (channels * weight[0, 0].numel() * tall * wide))
    for start in range(0, images, step):
        part = padded = x[start : start + step]
        if top or left:  # three times faster than its own padding
            padded = flow.zeros(*part.shape[:2], height + 2 * top, width + 2 * left, dtype=x.dtype)
            padded[:, :, top : top + height, left : left + width] = part
        for axis, k, d in zip((2, 3), weight.shape[2:], dilation, strict=True):
            padded = padded.unfold(axis, d * (k - 1) + 1, 1)
        yield part, padded[..., :: dilation[0], :: dilation[1]].permute(1, 4, 5, 0, 2, 3)


@cache
def _accurate(base: type) -> type:
    """Derive a BatchNorm that trains in float64; a class of the user's own keeps what it does around that."""
    native = next(kind for kind in BATCH_NORMS if issubclass(base, kind))
    if base is native:
        return type(base.__name__, (_Float64Training, base), {})
    return type(base.__name__, (base, _accurate(native)), {})


class _Float64Training:
    """The CPU kernel sums in float32, and ReLU amplifies that: conv1's gradient is 1.7 % off."""

    def forward(self: Any, x: Any) -> Any:
        self._check_input_dim(x)
        scalars = {"axis": self.channel_axis, "epsilon": self.eps, "momentum": self.momentum}
        statistics = (self.running_mean, self.running_var)
        if not self.training:
            return flow._C.normalization(x, *statistics, self.weight, self.bias, is_training=False, **scalars)
        y = normalised(x, *statistics, self.weight, self.bias, **scalars)
        self.num_batches_tracked.add_(1)
        return y


def normalised(
    x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, axis: int, epsilon: float, momentum: float
) -> Any:
    """Normalise by the batch, in float64, and move the running statistics."""
    if x.numel() == x.shape[axis]:
        raise ValueError(f"Expected {ONE_VALUE} when training")  # else the variance becomes NaN
    mean, var = running_mean.double(), running_var.double()
    wide = x.double()
    if x.dtype == flow.float64:
        # Its variance is a difference of squares, which loses the digits by which a mean exceeds the deviation.
        with flow.no_grad():
            shape = [-1 if a == axis else 1 for a in range(x.ndim)]
            centre = x.mean([a for a in range(x.ndim) if a != axis])
            mean = mean - centre
        wide = x - centre.reshape(shape)
    y = flow._C.normalization(
        wide,
        mean,
        var,
        weight.double(),
        bias.double(),
        axis=axis,
        epsilon=epsilon,
        momentum=momentum,
        is_training=True,
    )
    with flow.no_grad():
        if x.dtype == flow.float64:
            running_mean.copy_(mean + centre)  # `var` is the buffer itself
        else:
            running_mean.copy_(mean.to(x.dtype))
            running_var.copy_(var.to(x.dtype))
    return y.to(x.dtype)
