"""All randomness of a run: Philox streams keyed by (seed, purpose), placed by counters such as epoch or step.

Only raw words and exact integer or IEEE operations are used, because NumPy fixes the raw words of a bit generator for
good, but neither `Generator`'s algorithms nor the last bit of `log` and `exp`.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray


def stream(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """The generator of one purpose at up to three counters (absent ones are 0), such as an epoch and a layer.

    The counters are the upper words of Philox's 256-bit counter; the lowest, which drawing advances, starts at 0, so
    two streams share no word until one of them has drawn 2**66 of them.
    """
    if len(counters) > 3:
        raise ValueError(f"stream takes at most 3 counters, got {len(counters)}")
    digest = hashlib.sha256(f"tlx\0{seed}\0{purpose}".encode()).digest()
    start = np.array([0, *counters] + [0] * (3 - len(counters)), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"), counter=start))


def _raw(seed: int, purpose: str, counters: tuple[int, ...], count: int) -> NDArray[np.uint64]:
    """`count` 64-bit words, little-endian in memory so that narrower views are the same everywhere."""
    raw = stream(seed, purpose, *counters).bit_generator.random_raw(count)
    return np.asarray(raw, dtype="<u8")


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order of an epoch: int64 [n], each of ``0 .. n - 1`` once."""
    return np.argsort(_raw(seed, "order", (epoch,), n), kind="stable").astype(np.int64)


def words(seed: int, purpose: str, epoch: int, n: int, per_sample: int) -> NDArray[np.uint32]:
    """One epoch's random words, uint32 [n, per_sample]. Row i is the same for every `n`."""
    count = n * per_sample
    return _raw(seed, purpose, (epoch,), -(-count // 2)).view("<u4")[:count].reshape(n, per_sample)


def keep_mask(
    seed: int, step: int, row: int, layer: int, shape: tuple[int, ...], p: float, call: int = 0
) -> NDArray[np.bool_]:
    """Dropout's mask: True where a unit is kept. Each is dropped with probability `p`, rounded to 1/65536.

    `row` is the place of the first sample in its step, so that the parts of a batch get the whole batch's mask. `call`
    counts the calls of the layer in a pass, from 0.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability must be in 0..1, got {p}")
    skipped = row * math.prod(shape[1:])
    count = skipped + math.prod(shape)
    drawn = _raw(seed, "dropout", (step, layer, call), -(-count // 4)).view("<u2")[skipped:count]
    return np.asarray(drawn >= round(p * 65536)).reshape(shape)


def framework_seed(seed: int, step: int, row: int) -> int:
    """Return what a framework's own generator is seeded with: 63 bits. `row` is as in `keep_mask`."""
    return int(stream(seed, "framework", step, row).bit_generator.random_raw() >> 1)


def uniform(seed: int, purpose: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Uniform float64 in [0, 1), multiples of 2**-53. For initial values: `purpose` holds the parameter's name."""
    raw = _raw(seed, purpose, (), math.prod(shape))
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


SLICE = 1 << 16  # values drawn at a time, which a processor's cache holds


def within(seed: int, purpose: str, shape: tuple[int, ...], bound: float) -> NDArray[np.float32]:
    """Uniform float32 in [-bound, bound): ``(2 * uniform - 1) * bound`` in float64, then rounded."""
    words, drawn = stream(seed, purpose).bit_generator, np.empty(math.prod(shape), np.float32)
    for begin in range(0, drawn.size, SLICE):
        part = drawn[begin : begin + SLICE]
        unit = (words.random_raw(part.size) >> np.uint64(11)).astype(np.float64)
        unit *= 2.0**-53
        unit *= 2.0
        unit -= 1.0
        unit *= bound
        part[:] = unit
    return drawn.reshape(shape)
