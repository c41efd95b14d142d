"""BatchNorm over a batch whose rows several processes share: all of them normalise by the statistics of the whole.

Two passes, first the mean, then the squares of what differs from it, with sums in float64, so that the order in which
processes are added is lost in rounding. The gradients of weight and bias stay those of a process's own rows; `reduce`
adds them up. Sources: Ioffe & Szegedy 2015, for one process; the backward pass is theirs with sums over all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tlx.backend.module.boundary import replaced
from tlx.backend.module.net import DeviceBatch
from tlx.backend.module.sums import summed

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend

Normalise = Callable[..., Any]  # from what `SharedNorm` takes to what it returns
ONE_VALUE = "more than 1 value per channel"  # of a normalisation layer's ValueError


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
            wide = x.detach().double()
            total, count = self.sum(_by_channel(wide), fw.full((x.shape[1],), float(values)).to(wide))
            mean = total / count
            centred = wide - _spread(mean, wide)
            (squares,) = self.sum(_by_channel(centred * centred))
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
            scale = inverse * weight.double()
            y = (x.double() - _spread(mean, x)) * _spread(scale, x) + _spread(bias.double(), x)
            return y.to(x.dtype)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
            x, weight, mean, inverse, count = ctx.saved_tensors
            grad = grad.double()
            normal = (x.double() - _spread(mean, x)) * _spread(inverse, x)
            own = _by_channel(grad), _by_channel(grad * normal)
            by_shift, by_scale = (_spread(each / count, x) for each in total(*own))
            by_x = (grad - by_shift - normal * by_scale) * _spread(inverse * weight.double(), x)
            return by_x.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None, None

    normalise: Callable[..., Any] = Normalise.apply
    return normalise


def _by_channel(x: Any) -> Any:
    """Sum x [N, C, ...] over all but the channels: [C]."""
    return x.sum([axis for axis in range(x.ndim) if axis != 1])


def _spread(vector: Any, x: Any) -> Any:
    """Shape a vector [C] so that it meets the channels of x [N, C, ...]."""
    return vector.reshape([-1 if axis == 1 else 1 for axis in range(x.ndim)])
