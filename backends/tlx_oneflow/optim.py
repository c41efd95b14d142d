"""Optimizers with PyTorch's semantics in tensor operations.

OneFlow's own Adam keeps one step count for all parameters, so a parameter that is unfrozen late moves wrongly; its
RMSprop has eps inside the root and no momentum.
"""

from __future__ import annotations

from typing import Any

from tlx_oneflow.bootstrap import flow


class TensorOptimizer:
    """Walks through the groups; `state` holds each moved parameter's slots."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = [{"weight_decay": 0.0, **group} for group in groups]
        self.state: dict[Any, dict[str, Any]] = {}

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        with flow.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.move(p, group["lr"], group["weight_decay"])

    def move(self, p: Any, lr: float, decay: float) -> None:
        """Take one step of a parameter in place, by its gradient and its slots."""
        raise NotImplementedError


class Adam(TensorOptimizer):
    """Kingma & Ba 2015, algorithm 1, with L2 decay added to the gradient and a step count per parameter.

    With `decoupled` decay it is AdamW: Loshchilov & Hutter 2019, algorithm 2.
    """

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float, *, decoupled: bool = False
    ) -> None:
        super().__init__(groups)
        self.betas, self.eps, self.decoupled = betas, eps, decoupled

    def move(self, p: Any, lr: float, decay: float) -> None:
        """Take one step of a parameter in place."""
        beta1, beta2 = self.betas
        if p not in self.state:
            self.state[p] = {"exp_avg": flow.zeros_like(p), "exp_avg_sq": flow.zeros_like(p), "step": 0.0}
        s = self.state[p]
        s["step"] += 1
        if self.decoupled:
            p.mul_(1 - lr * decay)
        grad = p.grad + decay * p if decay and not self.decoupled else p.grad
        s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * grad
        s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * grad * grad
        root = (s["exp_avg_sq"] / (1 - beta2 ** s["step"])).sqrt() + self.eps
        p.copy_(p - lr / (1 - beta1 ** s["step"]) * (s["exp_avg"] / root))


class RMSprop(TensorOptimizer):
    """Tieleman & Hinton 2012, eps outside the root, with momentum as in PyTorch."""

    def __init__(self, groups: list[dict[str, Any]], alpha: float, eps: float, momentum: float) -> None:
        super().__init__(groups)
        self.alpha, self.eps, self.momentum = alpha, eps, momentum

    def move(self, p: Any, lr: float, decay: float) -> None:
        """Take one step of a parameter in place."""
        if p not in self.state:
            self.state[p] = {"square_avg": flow.zeros_like(p)}
            if self.momentum:
                self.state[p]["momentum"] = flow.zeros_like(p)
        s = self.state[p]
        grad = p.grad + decay * p if decay else p.grad
        s["square_avg"] = self.alpha * s["square_avg"] + (1 - self.alpha) * grad * grad
        way = grad / (s["square_avg"].sqrt() + self.eps)
        if self.momentum:
            way = s["momentum"] = self.momentum * s["momentum"] + way
        p.copy_(p - lr * way)
