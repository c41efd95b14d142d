"""What the numbers should be: losses, layers and update rules in NumPy, with their gradients by hand.

Pure functions in the dtype of their arrays; in float64 they are the reference that every backend is tested against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Slots = Mapping[str, Array]


def sgd_step(
    p: Array, g: Array, state: Slots, *, lr: float, weight_decay: float, momentum: float = 0.0, nesterov: bool = False
) -> tuple[Array, dict[str, Array]]:
    """One step of SGD: the new parameter and its state, ``{}`` before the first step.

    g' = g + wd p;  m = mu m + g', with m = g' at first;  p - lr m, or p - lr (g' + mu m) for Nesterov. The rate is
    outside the momentum, unlike in Sutskever et al. 2013. Source: the pseudocode of torch.optim.SGD, dampening 0.
    """
    g = g + weight_decay * p
    if not momentum:
        return p - lr * g, {}
    m = momentum * state["momentum"] + g if state else g
    return p - lr * (g + momentum * m if nesterov else m), {"momentum": m}


def adam_step(
    p: Array, g: Array, state: Slots, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> tuple[Array, dict[str, Array]]:
    """One step of Adam: the new parameter and its state, ``{}`` before the first step.

    Kingma & Ba 2015, algorithm 1, with the decay added to the gradient and the step counted per parameter; eps is
    outside the root. Source: the pseudocode of torch.optim.Adam.
    """
    g = g + weight_decay * p
    zero = np.zeros_like(p)
    beta1, beta2 = betas
    step = int(state["step"]) + 1 if state else 1
    m = beta1 * state.get("exp_avg", zero) + (1 - beta1) * g
    v = beta2 * state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
    root = np.sqrt(v) / math.sqrt(1 - beta2**step) + eps
    slots = {"exp_avg": m, "exp_avg_sq": v, "step": np.array(step, np.float64)}
    return p - lr / (1 - beta1**step) * (m / root), slots


def adamw_step(
    p: Array, g: Array, state: Slots, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float
) -> tuple[Array, dict[str, Array]]:
    """One step of AdamW: the parameter shrinks by ``lr * weight_decay`` of itself, then Adam moves it without decay.

    Loshchilov & Hutter 2019, algorithm 2, the rate multiplying the decay as in the pseudocode of torch.optim.AdamW.
    """
    return adam_step(p * (1 - lr * weight_decay), g, state, lr=lr, weight_decay=0.0, betas=betas, eps=eps)


def rmsprop_step(
    p: Array, g: Array, state: Slots, *, lr: float, weight_decay: float, alpha: float, eps: float, momentum: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    """One step of RMSprop: the new parameter and its state, ``{}`` before the first step.

    v = alpha v + (1 - alpha) g^2;  u = g / (sqrt(v) + eps);  p - lr u, or with momentum m = mu m + u and p - lr m. The
    decay is added to the gradient. Source: the pseudocode of torch.optim.RMSprop, not centered (Graves 2013 without
    the mean, Tieleman & Hinton 2012).
    """
    g = g + weight_decay * p
    zero = np.zeros_like(p)
    v = alpha * state.get("square_avg", zero) + (1 - alpha) * g * g
    u = g / (np.sqrt(v) + eps)
    if not momentum:
        return p - lr * u, {"square_avg": v}
    m = momentum * state.get("momentum", zero) + u
    return p - lr * m, {"square_avg": v, "momentum": m}


def clip_by_norm(grads: Mapping[str, Array], max_norm: float) -> dict[str, Array]:
    """Scale gradients by ``max_norm / (norm + 1e-6)`` where that is below 1; the norm is the L2 norm of them all.

    Source: torch.nn.utils.clip_grad_norm_.
    """
    norm = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in grads.values()))
    scale = min(1.0, max_norm / (norm + 1e-6))
    return {name: scale * g for name, g in grads.items()}


def cross_entropy(logits: Array, labels: Array, targets: Array | None = None) -> tuple[float, Array]:
    """Mean cross-entropy of logits [N, K] to labels int64 [N], and its gradient [N, K] to the logits.

    Targets [N, K] replace the labels; a row's sum weighs its sample, as class weights do.
    """
    n, classes = logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    target = np.eye(classes, dtype=logits.dtype)[labels] if targets is None else targets.astype(logits.dtype)
    weight = target.sum(axis=1, keepdims=True)
    return float(-(target * log_p).sum() / n), (weight * np.exp(log_p) - target) / n


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """x [N, I], weight [O, I], bias [O] -> [N, O]."""
    return np.asarray(x @ weight.T + bias)


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Gradients to x, weight and bias from dy [N, O]."""
    return dy @ weight, dy.T @ x, dy.sum(axis=0)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def relu_backward(dy: Array, x: Array) -> Array:
    """The gradient at 0 is 0, as in every framework."""
    return np.where(x > 0, dy, 0)


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and *biased* variance of x [N, C] per channel: what a batch is normalised by."""
    return x.mean(axis=0), x.var(axis=0)


def normalise(x: Array, mean: Array, var: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) for x [N, C]: Ioffe & Szegedy 2015, algorithm 1, before the affine part."""
    return np.asarray((x - mean) / np.sqrt(var + eps))


def normalise_backward(dz: Array, z: Array, var: Array, eps: float, *, batch: bool) -> Array:
    """The gradient to x from dz, z = normalise(x, ...); with `batch` the moments were x's own and depend on it."""
    if batch:
        dz = dz - dz.mean(axis=0) - z * (dz * z).mean(axis=0)
    return np.asarray(dz / np.sqrt(var + eps))


def running(mean: Array, var: Array, x: Array, momentum: float) -> tuple[Array, Array]:
    """The running mean and variance after a batch x [N, C]; the variance that enters is the *unbiased* one.

    new = (1 - momentum) old + momentum batch. Source: torch.nn.BatchNorm1d.
    """
    batch_mean, biased = moments(x)
    unbiased = biased * (len(x) / (len(x) - 1))
    keep = 1 - momentum
    return keep * mean + momentum * batch_mean, keep * var + momentum * unbiased
