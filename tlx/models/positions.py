"""Position embeddings of a Vision Transformer at another image size than its weights were trained at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tlx.backend import Array, Arrays, ParamSpec
from tlx.models.architecture import Architecture

_A = -0.75  # of cubic convolution (Keys 1981), as torchvision's bicubic interpolation has it


def fit_positions(arrays: Arrays, specs: Sequence[ParamSpec], arch: Architecture) -> tuple[Arrays, list[str]]:
    """Return a checkpoint whose position embedding is for the model's image size, and a note where it was resampled.

    What cannot be resampled stays as it is, so that the strict match of shapes names it.
    """
    spec = next((spec for spec in specs if spec.name == arch.positions), None)
    old = arrays.get(arch.positions)
    if spec is None or old is None or old.shape == spec.shape or old.dtype.kind != "f":
        return arrays, []
    if old.ndim != 3 or old.shape[::2] != spec.shape[::2] or not _side(old):
        return arrays, []
    side, new = _side(old), math.isqrt(spec.shape[1] - 1)
    note = f"{arch.positions}, of {side} x {side} patches, is resampled for the {new} x {new} of this image_size"
    return {**arrays, arch.positions: resampled(old, new)}, [note]


def _side(embedding: Array) -> int:
    """Return how many patches an image has in a row; 0: their number is no square."""
    side = math.isqrt(max(embedding.shape[1] - 1, 0))
    return side if side * side == embedding.shape[1] - 1 else 0


def resampled(embedding: Array, side: int) -> Array:
    """Return a position embedding [1, 1 + n * n, width] for `side` x `side` patches: [1, 1 + side * side, width].

    The first row, of the class token, is kept. The others are resampled bicubically between the outermost patches, as
    torchvision's `interpolate_embeddings` does (Dosovitskiy et al. 2021, section 3.2). Computed in float64.
    """
    (token, patches), width = np.split(embedding[0], [1]), embedding.shape[2]
    old = _side(embedding)
    weights = cubic(old, side)
    grid = np.einsum("ai,bj,ijw->abw", weights, weights, patches.reshape(old, old, width), optimize=True)
    return np.asarray(np.concatenate([token, grid.reshape(-1, width).astype(embedding.dtype)])[None])


def cubic(old: int, new: int) -> Array:
    """Return the matrix [new, old] of cubic convolution that maps ends to ends; edges are repeated."""
    place = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    low = np.minimum(place.astype(int), old - 1)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(place - low - tap)
        near = ((_A + 2) * x - (_A + 3)) * x * x + 1
        far = _A * (((x - 5) * x + 8) * x - 4)
        np.add.at(matrix, (np.arange(new), np.clip(low + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return matrix
