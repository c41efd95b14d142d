"""Every optimizer that a recipe can name: what it keeps for each parameter, and one step of it in NumPy.

`RULES` is the one table. The recipe's choices, the slots that a checkpoint holds, the reference backend, the
conformance suite and stage P5 of the parity report all read it. To add an optimizer, write its step and its row here (a
new scalar becomes a field of `OptimizerSpec`), and how each framework makes it: `optimizers` in tlx_torch/adapter.py
and in tlx_oneflow/adapter.py, with a class in tlx_oneflow/optim.py where OneFlow's own one differs.

The steps are pure functions in the dtype of their arrays, with the semantics of PyTorch's optimizers. In float64 they
are the reference that every backend is tested against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Slots = Mapping[str, Array]
Step = tuple[Array, dict[str, Array]]  # the new parameter and its new slots


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """An optimizer by its name in `RULES` and its scalars, which are all exact in float32."""

    name: str
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = field(default=(float(np.float32(0.9)), float(np.float32(0.999))))
    eps: float = float(np.float32(1e-8))
    alpha: float = float(np.float32(0.99))  # how slowly RMSprop forgets

    @property
    def slots(self) -> tuple[str, ...]:
        """The arrays that the optimizer keeps for each parameter it has moved; empty if the name is unknown."""
        return RULES[self.name].slots(self) if self.name in RULES else ()


@dataclass(frozen=True, slots=True)
class Hyper:
    """What a group's update uses at one step."""

    lr: float
    weight_decay: float


def sgd_step(
    p: Array, g: Array, slots: Slots, *, lr: float, weight_decay: float, momentum: float = 0.0, nesterov: bool = False
) -> Step:
    """Take one step of SGD; `slots` are ``{}`` before a parameter's first step.

    g' = g + wd p;  m = mu m + g', with m = g' at first;  p - lr m, or p - lr (g' + mu m) for Nesterov. The rate is
    outside the momentum, unlike in Sutskever et al. 2013. Source: the pseudocode of torch.optim.SGD, dampening 0.
    """
    g = g + weight_decay * p
    if not momentum:
        return p - lr * g, {}
    m = momentum * slots["momentum"] + g if slots else g
    return p - lr * (g + momentum * m if nesterov else m), {"momentum": m}


def adam_step(
    p: Array, g: Array, slots: Slots, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> Step:
    """Take one step of Adam; `slots` are ``{}`` before a parameter's first step.

    Kingma & Ba 2015, algorithm 1, with the decay added to the gradient and the step counted per parameter; eps is
    outside the root. Source: the pseudocode of torch.optim.Adam.
    """
    g = g + weight_decay * p
    zero = np.zeros_like(p)
    beta1, beta2 = betas
    step = int(slots["step"]) + 1 if slots else 1
    m = beta1 * slots.get("exp_avg", zero) + (1 - beta1) * g
    v = beta2 * slots.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    root = np.sqrt(v) / math.sqrt(1 - beta2**step) + eps
    new_slots = {"exp_avg": m, "exp_avg_sq": v, "step": np.array(step, np.float64)}
    return p - lr / (1 - beta1**step) * (m / root), new_slots


def adamw_step(
    p: Array, g: Array, slots: Slots, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> Step:
    """Take one step of AdamW: the parameter shrinks by ``lr * weight_decay`` of itself, then Adam moves it undecayed.

    Loshchilov & Hutter 2019, algorithm 2, the rate multiplying the decay as in the pseudocode of torch.optim.AdamW.
    """
    return adam_step(p * (1 - lr * weight_decay), g, slots, lr=lr, weight_decay=0.0, betas=betas, eps=eps)


def rmsprop_step(
    p: Array, g: Array, slots: Slots, *, lr: float, weight_decay: float, alpha: float, eps: float, momentum: float = 0.0
) -> Step:
    """Take one step of RMSprop; `slots` are ``{}`` before a parameter's first step.

    v = alpha v + (1 - alpha) g^2;  u = g / (sqrt(v) + eps);  p - lr u, or with momentum m = mu m + u and p - lr m. The
    decay is added to the gradient. Source: the pseudocode of torch.optim.RMSprop, not centered (Graves 2013 without
    the mean, Tieleman & Hinton 2012).
    """
    g = g + weight_decay * p
    zero = np.zeros_like(p)
    v = alpha * slots.get("square_avg", zero) + (1 - alpha) * g * g
    u = g / (np.sqrt(v) + eps)
    if not momentum:
        return p - lr * u, {"square_avg": v}
    m = momentum * slots.get("momentum", zero) + u
    return p - lr * m, {"square_avg": v, "momentum": m}


@dataclass(frozen=True, slots=True)
class Rule:
    """An update rule: what it keeps for each parameter, and one step of it in NumPy.

    Called with a spec, a parameter, its gradient, its slots (``{}`` before its first step) and the group's values, it
    returns the new parameter and the new slots.
    """

    slots: Callable[[OptimizerSpec], tuple[str, ...]]
    step: Callable[..., Step]
    scalars: tuple[str, ...]  # fields of OptimizerSpec that `step` takes, beside lr and weight_decay

    def __call__(self, spec: OptimizerSpec, p: Array, g: Array, slots: Slots, hyper: Hyper) -> Step:
        """Take one step with a group's rate and weight decay."""
        scalars = {name: getattr(spec, name) for name in self.scalars}
        return self.step(p, g, slots, lr=hyper.lr, weight_decay=hyper.weight_decay, **scalars)


def _adam_slots(spec: OptimizerSpec) -> tuple[str, ...]:
    return ("exp_avg", "exp_avg_sq", "step")


def _rmsprop_slots(spec: OptimizerSpec) -> tuple[str, ...]:
    return ("square_avg", "momentum") if spec.momentum else ("square_avg",)


OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]  # a test holds it equal to RULES
RULES: Mapping[str, Rule] = {
    "sgd": Rule(lambda spec: ("momentum",), sgd_step, ("momentum", "nesterov")),
    "adam": Rule(_adam_slots, adam_step, ("betas", "eps")),
    "adamw": Rule(_adam_slots, adamw_step, ("betas", "eps")),
    "rmsprop": Rule(_rmsprop_slots, rmsprop_step, ("alpha", "eps", "momentum")),
}
