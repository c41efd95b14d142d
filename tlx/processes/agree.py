"""What processes decide together, out of what each of them gives."""

from __future__ import annotations

from tlx.processes.world import Channel


def of_first(channel: Channel, part: bytes = b"") -> bytes:
    """Return what rank 0 gives; what the others give is not sent."""
    return channel.gather(part if channel.world.rank == 0 else b"")[0]


def highest(channel: Channel, number: int) -> int:
    """Return the largest of the numbers that the processes give, which are at least 0."""
    if channel.world.size == 1:
        return number
    return max(int.from_bytes(part, "big") for part in channel.gather(number.to_bytes(8, "big")))


def all_true(channel: Channel, holds: bool) -> bool:
    """Return whether something holds in every process."""
    return not highest(channel, int(not holds))
