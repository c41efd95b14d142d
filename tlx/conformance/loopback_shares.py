"""How the reference backend adds up over processes: over the channel, which any backend can do."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np

from tlx.backend import Array
from tlx.conformance.reference import Mean
from tlx.processes import Channel

Gradients = dict[str, Array]  # an absent name is a gradient of None


def mean_over(channel: Channel, whole: int, absent: bool) -> Mean:
    """Return what averages rows [N, C] over all processes, which share `whole` rows; those that are absent count not.

    The sums are float64, so that the order in which processes are added is lost in rounding to float32.
    """

    def mean(rows: Array) -> Array:
        own = rows[:0] if absent else rows
        parts = channel.gather(own.sum(axis=0, dtype=np.float64).tobytes())
        return np.asarray(sum(np.frombuffer(part) for part in parts) / whole, rows.dtype)

    return mean


def summed(shards: Mapping[int, Gradients], channel: Channel) -> Gradients:
    """Return the sums of gradients over all shards, in the order of their numbers, and over all processes, by rank."""
    file = io.BytesIO()
    np.savez(file, **{f"{shard}/{name}": array for shard, own in shards.items() for name, array in own.items()})
    found: list[tuple[int, str, Array]] = []
    for part in channel.gather(file.getvalue()):
        with np.load(io.BytesIO(part), allow_pickle=False) as arrays:
            for key in arrays:
                shard, _, name = key.partition("/")
                found.append((int(shard), name, arrays[key]))
    sums: Gradients = {}
    for _, name, array in sorted(found, key=lambda each: each[0]):
        sums[name] = sums[name] + array if name in sums else array
    return sums
