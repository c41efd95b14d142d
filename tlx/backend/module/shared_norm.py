"""BatchNorm over a batch whose rows several processes share: all of them normalise by the statistics of the whole.

Two passes, first the mean, then the squares of what differs from it. An image's own sums are as wide as its values, and
those over images and processes are in float64, so that the order of the images is lost in rounding. The gradients of
weight and bias stay those of a process's own rows; `reduce` adds them up. Sources: Ioffe & Szegedy 2015, for one
process; the backward pass is theirs with sums over all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tlx.backend.module.boundary import replaced
from tlx.backend.module.net import DeviceBatch
from tlx.backend.module.sums import summed

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend

Normalise = Callable[..., Any]  # from what `SharedNorm` takes to what it returns
ONE_VALUE = "more than 1 value per channel"  # of a normalisation layer's ValueError
AT_ONCE = 2**20  # numbers that fit a processor's cache: three times as fast as whole tensors of 100 MB


def together(backend: ModuleBackend, batch: DeviceBatch) -> AbstractContextManager[None]:
    """While the block runs, normalise by the statistics of the whole batch wherever a module does so by its own."""
    return replaced(backend.batch_norm_functions(SharedNorm(backend, batch))) if batch.shared else nullcontext()


class SharedNorm:
    """The function that normalises the rows of one batch, of which this process has a share."""

    def __init__(self, backend: ModuleBackend, batch: DeviceBatch) -> None:
        self.backend, self.fw, self.batch = backend, backend.fw, batch
        self.normalise = _function(self.fw, self.sum)

    def sum(self, *sums: Any) -> tuple[Any, ...]:
        """Add up float64 vectors [C] over all processes; what an absent row gives counts nothing."""
        assert self.batch.among is not None
        joined = self.fw.stack(sums)
        joined = summed(self.backend, self.fw.zeros_like(joined) if self.batch.absent else joined, self.batch.among)
        return tuple(joined[i] for i in range(len(sums)))

    def __call__(
        self, x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, momentum: float, eps: float
    ) -> Any:
        """Normalise x [N, C, ...] and move the running statistics, if there are any, by `momentum`.

        Raises:
            ValueError: the whole batch has one value per channel.
        """
        fw, batch = self.fw, self.batch
        values = x.numel() // x.shape[1]  # for each channel
        if batch.whole * values == batch.size:
            raise ValueError(f"Expected {ONE_VALUE} when training")
        with fw.no_grad():
            count = fw.full((x.shape[1],), float(values), dtype=fw.float64, device=x.device)
            total, count = self.sum(_by_channel(_wide(fw, x[rows]) for rows in _parts(x)), count)
            mean = total / count
            (squares,) = self.sum(_by_channel(_centred(fw, x[rows], mean) ** 2 for rows in _parts(x)))
            inverse = 1 / (squares / count + eps).sqrt()
            if running_mean is not None:
                for running, now in ((running_mean, mean), (running_var, squares / (count - 1))):
                    running.copy_(running.double() * (1 - momentum) + now * momentum)
        scale, shift = (
            fw.full((x.shape[1],), neutral).to(mean) if given is None else given
            for given, neutral in ((weight, 1.0), (bias, 0.0))
        )
        return self.normalise(x, scale, shift, mean, inverse, count)


def _function(fw: Any, total: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    class Normalise(fw.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, mean: Any, inverse: Any, count: Any) -> Any:
            ctx.save_for_backward(x, weight, mean, inverse, count)
            scale, y = inverse * weight.double(), fw.empty_like(x)
            for rows in _parts(x):
                normal = _centred(fw, x[rows], mean)
                y[rows] = (normal * _spread(scale, normal) + _spread(bias, normal)).to(x.dtype)
            return y

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
            x, weight, mean, inverse, count = ctx.saved_tensors
            by_bias = _by_channel(_wide(fw, grad[rows]) for rows in _parts(x))
            by_weight = inverse * _by_channel(_wide(fw, grad[rows]) * _centred(fw, x[rows], mean) for rows in _parts(x))
            shift, slope = (each / count for each in total(by_bias, by_weight))
            scale, slope, by_x = inverse * weight.double(), slope * inverse, fw.empty_like(x)
            for rows in _parts(x):
                centred = _centred(fw, x[rows], mean)
                left = _wide(fw, grad[rows]) - _spread(shift, centred) - centred * _spread(slope, centred)
                by_x[rows] = (left * _spread(scale, left)).to(x.dtype)
            return by_x, by_weight.to(weight.dtype), by_bias.to(weight.dtype), None, None, None

    normalise: Callable[..., Any] = Normalise.apply
    return normalise


def _parts(x: Any) -> list[slice]:
    """Divide the rows of x [N, C, ...] into parts of about `AT_ONCE` numbers."""
    rows = max(1, AT_ONCE // x[0].numel())
    return [slice(first, first + rows) for first in range(0, x.shape[0], rows)]


def _wide(fw: Any, x: Any) -> Any:
    """Return x in float32, or in float64 if it is."""
    return x if x.dtype == fw.float64 else x.float()


def _centred(fw: Any, x: Any, mean: Any) -> Any:
    """Return x [N, C, ...] less its mean [C], no narrower than float32."""
    wide = _wide(fw, x)
    return wide - _spread(mean, wide)


def _by_channel(parts: Iterable[Any]) -> Any:
    """Sum parts [n, C, ...] over all but the channels: float64 [C]."""
    return sum((part.sum([*range(2, part.ndim)]) if part.ndim > 2 else part).double().sum(0) for part in parts)


def _spread(vector: Any, x: Any) -> Any:
    """Shape a vector [C] so that it meets the channels of x [N, C, ...], in its dtype."""
    return vector.to(x.dtype).reshape([-1 if axis == 1 else 1 for axis in range(x.ndim)])
