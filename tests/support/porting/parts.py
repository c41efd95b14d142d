"""Parts that porters write by hand, for a framework `fw`."""

from __future__ import annotations

import math
from typing import Any


def gelu(fw: Any, x: Any, kind: str) -> Any:
    """The activation by its name or by its formula, or one of its approximations."""
    if kind == "tanh":
        return 0.5 * x * (1 + fw.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    if kind == "sigmoid":
        return x * fw.sigmoid(1.702 * x)
    if kind == "formula":
        return x * 0.5 * (1 + fw.erf(x / math.sqrt(2)))
    if kind == "float32 constant":
        return x * 0.5 * (1 + fw.erf(x * 0.70710677))
    if kind == "relu":
        return fw.nn.functional.relu(x)
    return fw.nn.functional.gelu(x)


def swish(fw: Any, x: Any, kind: str) -> Any:
    """SiLU by its name or by its formula, or what is taken for it."""
    functional = fw.nn.functional
    if kind == "formula":
        return x * fw.sigmoid(x)
    if kind == "hard":
        return x * functional.relu(x + 3).clamp(max=6) / 6
    return {"silu": functional.silu, "relu": functional.relu, "sigmoid": fw.sigmoid}[kind](x)


def layer_norm(fw: Any, width: int, kind: str, eps: float, axis: int = -1) -> Any:
    """LayerNorm over the last axis, or over the channels of NCHW, as a module of the framework or by hand."""
    if kind == "module" and axis == -1:
        return fw.nn.LayerNorm(width, eps=eps)

    class HandNorm(fw.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = fw.nn.Parameter(fw.ones(width))
            self.bias = fw.nn.Parameter(fw.zeros(width))

        def forward(self, x: Any) -> Any:
            mean = x.mean(axis, keepdim=True)
            centred = x - mean
            squares = (centred * centred).mean(axis, keepdim=True)
            if kind == "unbiased":
                squares = squares * (width / (width - 1))
            y = centred / (fw.sqrt(squares) + eps) if kind == "eps outside" else centred / fw.sqrt(squares + eps)
            if axis == 1:
                return y * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)
            return y * self.weight + self.bias

    return HandNorm()


def drop_path(fw: Any, rate: float, kind: str) -> Any:
    """Stochastic depth by hand, as every repository has it, or with a usual mistake."""

    class DropPath(fw.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            if not self.training or rate == 0:
                return x
            keep = 1 - rate
            rows = 1 if kind == "per batch" else x.shape[0]
            shape = (rows,) + (1,) * (x.ndim - 1)
            mask = (fw.rand(*shape, dtype=x.dtype, device=x.device) < keep).to(x.dtype)
            return x * mask if kind == "unscaled" else x * mask / keep

    return DropPath()


def batch_norm_by_hand(fw: Any, width: int, eps: float, momentum: float, biased: bool = False) -> Any:
    """BatchNorm written out, with its running statistics; `biased` keeps the variance as it normalises with it."""

    class HandNorm(fw.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = fw.nn.Parameter(fw.ones(width))
            self.bias = fw.nn.Parameter(fw.zeros(width))
            self.register_buffer("running_mean", fw.zeros(width))
            self.register_buffer("running_var", fw.ones(width))
            self.register_buffer("num_batches_tracked", fw.tensor(0, dtype=fw.int64))

        def forward(self, x: Any) -> Any:
            mean, var = self.running_mean, self.running_var
            if self.training:
                mean = x.mean((0, 2, 3))
                centred = x - mean.reshape(1, -1, 1, 1)
                var = (centred * centred).mean((0, 2, 3))
                count = x.shape[0] * x.shape[2] * x.shape[3]
                kept = var if biased else var * (count / (count - 1))
                with fw.no_grad():
                    self.running_mean.mul_(1 - momentum).add_(momentum * mean.detach())
                    self.running_var.mul_(1 - momentum).add_(momentum * kept.detach())
                    self.num_batches_tracked.add_(1)
            y = (x - mean.reshape(1, -1, 1, 1)) / fw.sqrt(var.reshape(1, -1, 1, 1) + eps)
            return y * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)

    return HandNorm()
