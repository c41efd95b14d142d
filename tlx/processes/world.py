"""Which process of a run this is, and what it can ask of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class World:
    """One process among those that take part in a run. A run's result does not depend on it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine
    local_size: int = 1
    host: str = ""  # where rank 0 can be reached by the others
    port: int = 0

    def share(self, rows: int) -> tuple[int, int]:
        """Return the first row of this process and the one after its last; perhaps none, where rows are fewer."""
        return rows * self.rank // self.size, rows * (self.rank + 1) // self.size


ALONE = World()


class Channel(Protocol):
    """Connects the processes of a run. All of them make the same calls in the same order."""

    @property
    def world(self) -> World:
        """Which of them this process is."""

    def gather(self, part: bytes) -> list[bytes]:
        """Return what each process gives here, in the order of ranks; the same in all of them.

        Raises:
            ProcessLostError: a process has ended or cannot be reached.
        """


@dataclass(frozen=True, slots=True)
class Alone:
    """The channel of a process that has no others."""

    world: World = ALONE

    def gather(self, part: bytes) -> list[bytes]:
        """Return what is given."""
        return [part]
