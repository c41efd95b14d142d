"""How far apart two arrays are, and the sketch that stands for a large one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from tlx import rng
from tlx.backend import Array, Arrays
from tlx.errors import TlxError

Sketch: TypeAlias = tuple[tuple[int, ...], Array]  # the array's shape, and the numbers that stand for it
Sketches: TypeAlias = dict[str, Sketch]

BUCKETS = 1024
# An array whose norm is below this part of the largest of its kind is measured against that part: the gradient of a
# bias before BatchNorm is zero in exact arithmetic, and its rounding errors have no relation to each other.
FLOOR = 1e-3


def relative(reference: Array | None, candidate: Array | None, floor: float = 0.0) -> float:
    """Return the relative L2 distance of two arrays: the norm of their difference over that of the reference.

    Args:
        reference: any shape and dtype; compared in float64.
        candidate: the same.
        floor: divides instead where the reference's norm is smaller. Where both are 0, the distance is absolute.

    Returns:
        The distance; infinity where one is missing or empty, shapes differ, different elements are not finite, or all
        are and some no numbers.
    """
    if reference is None or candidate is None or reference.shape != candidate.shape or not reference.size:
        return math.inf
    a, b = (np.asarray(x, dtype=np.float64).ravel() for x in (reference, candidate))
    finite = np.isfinite(a)
    if not np.array_equal(np.where(finite, 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True):
        return math.inf
    if not finite.any():
        return math.inf if np.isnan(a).any() else 0.0
    a, b = a[finite], b[finite]
    return float(np.linalg.norm(a - b) / (max(float(np.linalg.norm(a)), floor) or 1.0))


def floor_of(arrays: Sequence[Array]) -> float:
    """Return the floor for arrays of one kind, such as all gradients of a step: a thousandth of the largest norm."""
    flat = [np.asarray(a, dtype=np.float64).ravel() for a in arrays]
    norms = [float(np.linalg.norm(a[np.isfinite(a)])) for a in flat]
    return FLOOR * max(norms, default=0.0)


def flips(reference: Array, candidate: Array) -> int:
    """Return the number of elements that a ReLU would let through on one side only."""
    return int(np.count_nonzero((reference > 0) != (candidate > 0)))


def sketch(array: Array) -> Array:
    """Stand for an array by at most 1024 numbers whose relative L2 distance is that of the arrays, within about 5 %.

    Every element is given a random sign and added to one of the buckets; arrays that fit are kept as they are.
    Source: the count sketch of Charikar, Chen & Farach-Colton 2002; the error follows from its variance, 2 / buckets.
    """
    flat = np.asarray(array, dtype=np.float64).ravel()
    if flat.size <= BUCKETS:
        return flat.copy()
    signs = _signs(1 << (flat.size - 1).bit_length())[: flat.size]
    whole = flat.size - flat.size % BUCKETS
    # One pass over memory, without temporary arrays: this runs at every step on all parameters.
    buckets = np.einsum("ij,ij->j", flat[:whole].reshape(-1, BUCKETS), signs[:whole].reshape(-1, BUCKETS))
    with np.errstate(invalid="ignore"):
        buckets[: flat.size - whole] += flat[whole:] * signs[whole:]
    if np.isnan(buckets).any() and not np.isnan(flat).any():  # infinities met, as those of a mask
        where = np.flatnonzero(np.isinf(flat))
        buckets[where % BUCKETS] = np.inf
    return np.asarray(buckets)


@cache
def _signs(n: int) -> Array:
    bits = np.unpackbits(rng.words(0, "sketch", 0, -(-n // 32), 1).view(np.uint8).ravel(), count=n)
    return 2 * bits.astype(np.float64) - 1


def bundle(arrays: Arrays) -> tuple[list[list[Any]], Array]:
    """Lay the sketches of named arrays end to end; return ``[[name, shape, length], ...]`` and float64 numbers."""
    parts = {name: sketch(array) for name, array in arrays.items()}
    layout = [[name, list(arrays[name].shape), len(part)] for name, part in parts.items()]
    return layout, np.concatenate([*parts.values(), np.zeros(0)])


def unbundle(layout: Sequence[Sequence[Any]], numbers: Array | None) -> Sketches:
    """Take apart what `bundle` made: name -> shape of the array, and its sketch, which is empty without numbers."""
    sketches, start = {}, 0
    if numbers is not None and (numbers.ndim != 1 or len(numbers) < sum(length for _, _, length in layout)):
        raise TlxError("a capture is damaged: an array of sketches does not fit its layout", fix="capture anew")
    numbers = np.zeros(0) if numbers is None else numbers
    for name, shape, length in layout:
        part = numbers[start : start + length]
        # A writer that makes no sketches gives the whole array.
        sketches[str(name)] = tuple(shape), sketch(part) if length == math.prod(shape) else part
        start += length
    return sketches


def distances(reference: Mapping[str, Sketch], candidate: Mapping[str, Sketch]) -> dict[str, float]:
    """Return the distance of each named sketch, in the reference's order, then of what only the candidate has."""
    floor = floor_of([part for _, part in reference.values()])
    errors = {}
    for name in [*reference, *(n for n in candidate if n not in reference)]:
        a, b = reference.get(name), candidate.get(name)
        errors[name] = math.inf if a is None or b is None or a[0] != b[0] else relative(a[1], b[1], floor)
    return errors


def sha256(array: Array) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
