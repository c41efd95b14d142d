"""One process against several: a backend whose every batch is shared out, so that a capture of it is as any other's.

What several processes compute together is then judged as another framework would be: each step from the reference's
own state against the reference's scatter, and the free run within its envelope.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array, Backend, Batch, Handle, Lazy, Model
from tlx.errors import BackendError
from tlx.processes import Channel
from tlx.processes.start import start_all
from tlx.proof.recorder import Proxy
from tlx.training.division import Division

STAGES = ("P1", "P2", "P6", "P7")  # P3 to P5 and P8 look into one pass, of which a process has a share only


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A batch, and the handle of the whole."""

    batch: Batch
    whole: Handle


class Spread(Proxy):
    """Passes every call on, and computes each gradient over all processes of a channel."""

    def __init__(self, inner: Backend, channel: Channel) -> None:
        if not hasattr(inner, "reduce"):
            raise BackendError(f"backend {inner.name!r} has no method reduce, and works in one process")
        super().__init__(inner)
        self.channel, self.division, self.apart = channel, Division(channel=channel), False

    @property
    def spread(self) -> dict[str, int]:
        """What the manifest says of it."""
        return {"processes": self.channel.world.size}

    def put(self, model: Model, batch: Batch) -> Held:
        """Keep the batch, to be shared out."""
        return Held(batch, self.inner.put(model, batch))

    def backward(self, model: Model, held: Held, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        """Compute the gradients of this process's rows; the loss and the count are those of all."""
        rows, sums = np.arange(len(held.batch)), np.zeros(2)
        for part, own in self.division.shared_out(held.batch, rows, len(rows)):
            results = self.inner.backward(model, self.inner.put(model, part), scale * own)
            sums += np.array([float(value) for value in self.inner.fetch(list(results))])
        self.apart = True
        loss, correct = np.sum([np.frombuffer(part) for part in self.channel.gather(sums.tobytes())], axis=0)
        return np.array(loss), np.array(correct)

    def probe(self, model: Model) -> Any:
        """Look into a model whose gradients are those of all processes."""
        self._reduce(model)
        return self.inner.probe(model)

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        """Take a step with the gradients of all processes."""
        self._reduce(model)
        self.inner.update(model, optimizer, max_norm)

    def _reduce(self, model: Model) -> None:
        if self.apart:
            self.inner.reduce(model, self.channel)
            self.apart = False

    def evaluate(self, model: Model, held: Held) -> tuple[Lazy, Lazy, Lazy]:
        """Evaluate the whole batch."""
        result: tuple[Lazy, Lazy, Lazy] = self.inner.evaluate(model, held.whole)
        return result

    def logits(self, model: Model, held: Held) -> Lazy:
        """Return the logits of the whole batch."""
        return self.inner.logits(model, held.whole)

    def fetch(self, lazies: Sequence[Lazy]) -> list[Array]:
        """Fetch what is lazy; sums over processes are there already."""
        there = all(isinstance(lazy, np.ndarray) for lazy in lazies)
        fetched: list[Array] = list(lazies) if there else self.inner.fetch(lazies)
        return fetched


def capture_spread(backend: str, out: Path, reference: Path, processes: int, quick: bool) -> Path:
    """Capture in so many processes of this machine what a capture of one holds, and return the folder `out`.

    Raises:
        BackendError: a process failed; it has said why.
    """
    options: Mapping[str, str] = {"--backend": backend, "--reference": str(reference), "--output": str(out)}
    words = [word for pair in options.items() for word in pair]
    if start_all(processes, ["parity", "capture", *words, *(["--quick"] if quick else [])], inner=True):
        raise BackendError(f"backend {backend!r} did not come through the comparison in {processes} processes")
    return out


def folder_of(out: Path, channel: Channel) -> Path:
    """Return where a process writes its capture; that of the first one is kept."""
    return out if channel.world.rank == 0 else Path(tempfile.mkdtemp(prefix="tlx-parity-")) / "capture"
