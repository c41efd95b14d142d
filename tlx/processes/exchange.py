"""What processes ask of each other, as pure functions over `Channel.gather`; all call them in the same order."""

from __future__ import annotations

from tlx.processes.world import Channel


def broadcast(channel: Channel, part: bytes = b"", source: int = 0) -> bytes:
    """Return what one process gives, by default the first; the others' parts are not sent."""
    return channel.gather(part if channel.world.rank == source else b"")[source]


def barrier(channel: Channel) -> None:
    """Wait until all processes have come here."""
    channel.gather(b"")


def flags(channel: Channel, flag: int) -> list[int]:
    """Return the number that each process gives, 0 to 255, in the order of ranks: such as the signal that it got."""
    return [part[0] for part in channel.gather(bytes([flag]))]
