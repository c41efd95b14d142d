"""How the rows of a batch are divided: into parts of `micro_batch`, and each part over processes or shards.

The division is by rows of the whole batch, so that what a step computes does not depend on how many processes there
are: each reads its own rows, and no row is read twice or left out.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from tlx.backend import Batch
from tlx.backend.protocol import divided
from tlx.data.loader import Loader, Rows
from tlx.processes import Alone, Channel, World
from tlx.training.features import Features


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a batch that one process computes at once."""

    start: int
    end: int
    whole: int  # rows of the part that it belongs to
    shard: int | None = None
    absent: bool = False  # it counts nowhere


Step = tuple[int, list[tuple[Batch, float]]]  # rows of the whole batch; what is computed, and its part of the loss


@dataclass(frozen=True, slots=True)
class Division:
    """How a batch is divided. Without other processes and shards, its parts are whole."""

    micro_batch: int | None = None
    channel: Channel = Alone()  # noqa: RUF009 (frozen)
    shards: int | None = None

    @property
    def alone(self) -> Division:
        """The division where this process computes all rows."""
        return Division(self.micro_batch, shards=self.shards)

    @property
    def simple(self) -> bool:
        """Whether all gradients come from this process and need no order."""
        return self.channel.world.size == 1 and self.shards is None

    def stretches(self, rows: int) -> list[Stretch]:
        """Return what this process computes of a batch of so many rows, part by part.

        A process, or a shard, for which a part has no row gets one that is absent: it joins what all do together.
        """
        world, stretches, at = self.channel.world, list[Stretch](), 0
        for whole in divided(rows, self.micro_batch):
            own: list[tuple[tuple[int, int], int | None]] = []
            if self.shards is None:
                own = [(world.share(whole), None)]
            else:
                of = self.shards
                own = [(World(n, of).share(whole), n) for n in range(*world.share(of))]
            for (start, end), shard in own:
                absent = start == end
                start = min(start, whole - 1)
                stretches.append(Stretch(at + start, at + (start + 1 if absent else end), whole, shard, absent))
            at += whole
        return stretches

    def rows(self, count: int) -> Rows:
        """Return the rows that this process needs of a batch of so many, int64 [n], ascending."""
        return np.unique(np.array([row for s in self.stretches(count) for row in range(s.start, s.end)], np.int64))

    def steps(self, batches: Loader | Features, epoch: int, start: int) -> Generator[Step, None, None]:
        """Yield what this process computes of each batch of an epoch, from step `start` on."""
        if self.channel.world.size == 1:
            for batch in batches.epoch(epoch, start):
                yield len(batch), self.shared_out(batch, np.arange(len(batch)), len(batch))
            return
        for step, (batch, rows) in enumerate(batches.rows(epoch, start, self.rows), start):
            count = batches.count(step)
            yield count, self.shared_out(batch, rows, count)

    def shared_out(self, batch: Batch, rows: Rows, count: int) -> list[tuple[Batch, float]]:
        """Return what this process computes of a batch of `count` rows, and each one's part of the loss.

        Args:
            batch: some of its rows, or all.
            rows: their numbers, int64 [n], ascending.
            count: how many the whole batch has.
        """
        if self.simple:
            return [(part, len(part) / count) for part in batch.parts(self.micro_batch)]
        parts, (seed, step, _) = list[tuple[Batch, float]](), batch.key
        for s in self.stretches(count):
            at = int(np.searchsorted(rows, s.start))
            part = batch.between(
                at,
                at + s.end - s.start,
                key=(seed, step, s.start),
                among=self.channel if self.channel.world.size > 1 else None,
                whole=s.whole,
                absent=s.absent,
                shard=s.shard,
            )
            parts.append((part, 0.0 if s.absent else len(part) / count))
        return parts
