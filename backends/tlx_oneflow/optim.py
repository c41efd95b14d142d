"""Adam with PyTorch's semantics in tensor operations.

OneFlow's own keeps one step count for all parameters, so a parameter that is unfrozen late moves wrongly.
"""

from __future__ import annotations

from typing import Any

from tlx_oneflow.bootstrap import flow


class Adam:
    """Kingma & Ba 2015, algorithm 1, with L2 decay added to the gradient and a step count per parameter."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        self.param_groups = [{"weight_decay": 0.0, **group} for group in groups]
        self.betas, self.eps = betas, eps
        self.state: dict[Any, dict[str, Any]] = {}

    def step(self) -> None:
        beta1, beta2 = self.betas
        with flow.no_grad():
            for group in self.param_groups:
                lr, decay = group["lr"], group["weight_decay"]
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    if p not in self.state:
                        self.state[p] = {"exp_avg": flow.zeros_like(p), "exp_avg_sq": flow.zeros_like(p), "step": 0.0}
                    s = self.state[p]
                    s["step"] += 1
                    grad = p.grad + decay * p if decay else p.grad
                    s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * grad
                    s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * grad * grad
                    root = (s["exp_avg_sq"] / (1 - beta2 ** s["step"])).sqrt() + self.eps
                    p.copy_(p - lr / (1 - beta1 ** s["step"]) * (s["exp_avg"] / root))
