"""What the numbers should be: losses, layers and clipping in NumPy, with their gradients by hand.

Pure functions in the dtype of their arrays; in float64 they are the reference that every backend is tested against. The
optimizers' update rules are in `tlx.backend.optimizers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mean = Callable[[Array], Array]  # from the rows [N, C] of one process to the mean [C] over those of all


def clip_by_norm(grads: Mapping[str, Array], max_norm: float) -> dict[str, Array]:
    """Scale gradients by ``max_norm / (norm + 1e-6)`` if that is below 1; the norm is the L2 norm of them all.

    Source: torch.nn.utils.clip_grad_norm_.
    """
    norm = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in grads.values()))
    scale = min(1.0, max_norm / (norm + 1e-6))
    return {name: scale * g for name, g in grads.items()}


def cross_entropy(logits: Array, labels: Array, targets: Array | None = None) -> tuple[float, Array]:
    """Return the mean cross-entropy of logits [N, K] to labels int64 [N], and its gradient [N, K] to the logits.

    Targets [N, K] replace the labels; a row's sum weighs its sample, as class weights do.
    """
    n, classes = logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    target = np.eye(classes, dtype=logits.dtype)[labels] if targets is None else targets.astype(logits.dtype)
    weight = target.sum(axis=1, keepdims=True)
    return float(-(target * log_p).sum() / n), (weight * np.exp(log_p) - target) / n


def binary_cross_entropy(logits: Array, labels: Array, targets: Array | None = None) -> tuple[float, Array]:
    """Return the mean over samples and classes of the binary cross-entropy of logits [N, K], and its gradient [N, K].

    Labels are int64 [N, K] of 0 and 1; targets float64 [N, K], of any value, replace them. Source: BCEWithLogitsLoss.
    """
    target = (labels if targets is None else targets).astype(logits.dtype)
    shrunk = np.exp(-np.abs(logits))  # never overflows
    losses = np.maximum(logits, 0) - target * logits + np.log1p(shrunk)
    sigmoid = np.where(logits >= 0, 1, shrunk) / (1 + shrunk)
    return float(losses.mean()), (sigmoid - target) / logits.size


def loss_of(logits: Array, labels: Array, targets: Array | None = None) -> tuple[float, Array]:
    """Return the loss that the labels ask for, of one class [N] or of several [N, K], and its gradient [N, K]."""
    return (cross_entropy if labels.ndim == 1 else binary_cross_entropy)(logits, labels, targets)


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """Return x weight^T + bias [N, O] for x [N, I], weight [O, I] and bias [O].

    Each row by itself: on some processors the last bits of a product of many rows depend on their number and places.
    """
    return np.asarray((x[:, None] @ weight.T)[:, 0] + bias)


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Return the gradients to x, weight and bias from dy [N, O]."""
    return dy @ weight, dy.T @ x, dy.sum(axis=0)


def relu(x: Array) -> Array:
    """Return max(x, 0)."""
    return np.maximum(x, 0)


def relu_backward(dy: Array, x: Array) -> Array:
    """Return the gradient to x from dy; at 0 it is 0, as in every framework."""
    return np.where(x > 0, dy, 0)


def moments(x: Array, mean: Mean | None = None) -> tuple[Array, Array]:
    """Return the mean and *biased* variance of x [N, C] per channel: what a batch is normalised by.

    With `mean`, which averages over all rows of a batch that several processes share, x are the rows of one of them.
    """
    if mean is None:
        return x.mean(axis=0), x.var(axis=0)
    centre = mean(x)
    return centre, mean(np.square(x - centre))


def normalise(x: Array, mean: Array, var: Array, eps: float) -> Array:
    """Return (x - mean) / sqrt(var + eps) for x [N, C]: Ioffe & Szegedy 2015, algorithm 1, before the affine part."""
    return np.asarray((x - mean) / np.sqrt(var + eps))


def normalise_backward(dz: Array, z: Array, var: Array, eps: float, *, batch: bool, mean: Mean | None = None) -> Array:
    """Return the gradient to x from dz, z = normalise(x, ...); with `batch` the moments are those of x itself.

    With `mean` they are those of all rows, as in `moments`, and dz is the gradient of a loss that all of them make up.
    """
    if batch:
        mean = mean or (lambda rows: np.asarray(rows.mean(axis=0)))
        dz = dz - mean(dz) - z * mean(dz * z)
    return np.asarray(dz / np.sqrt(var + eps))


def running(mean: Array, var: Array, batch: tuple[Array, Array], count: int, momentum: float) -> tuple[Array, Array]:
    """Return the running mean and variance after a batch of `count` rows with these `moments`.

    The variance that enters is the *unbiased* one: new = (1 - momentum) old + momentum batch. Source:
    torch.nn.BatchNorm1d.
    """
    batch_mean, biased = batch
    unbiased = biased * (count / (count - 1))
    keep = 1 - momentum
    return keep * mean + momentum * batch_mean, keep * var + momentum * unbiased


def averaging(size: int, cells: int) -> Array:
    """Return the matrix [cells, size] that averages over equal stretches, pixels counted by their share in each."""
    edge, pixel = np.arange(cells)[:, None] * size / cells, np.arange(size)[None, :]
    overlap = np.minimum(edge + size / cells, pixel + 1) - np.maximum(edge, pixel)
    return np.asarray(np.maximum(overlap, 0) * cells / size)
