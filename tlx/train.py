"""The training loop: generators of events that hold no framework, no display and no files."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from tlx.backend import Arrays, Backend, Handle, Lazy, Model
from tlx.checkpoint import digests
from tlx.data.loader import Loader
from tlx.errors import FrozenMovedError, TlxError
from tlx.strategy import Plan

FETCH_SECONDS = 1.0  # how often the loop waits for the device to report, at most


@dataclass(frozen=True, slots=True)
class Metrics:
    """Over `images` images: mean loss, and the part that was classified rightly."""

    loss: float
    accuracy: float
    images: int


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    epoch: int
    phase: str


@dataclass(frozen=True, slots=True)
class Progress:
    """`part` is train, val or test; the metrics run from the start of this pass to the last fetch."""

    part: str
    epoch: int
    step: int
    steps: int
    metrics: Metrics
    seconds: float


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """`best` says that these are the best values so far; `seconds` counts training alone."""

    epoch: int
    phase: str
    train: Metrics
    val: Metrics | None
    lr: tuple[float, ...]
    seconds: float
    best: bool


Event = PhaseStarted | Progress | EpochEnded


class Meter:
    """Sums lazy losses and counts, and waits for the device at most once every `FETCH_SECONDS`."""

    def __init__(self, backend: Backend, part: str, epoch: int, steps: int) -> None:
        self.backend, self.part, self.epoch, self.steps = backend, part, epoch, steps
        self.lazies: list[Lazy] = []
        self.loss, self.correct, self.images, self.step = 0.0, 0, 0, 0
        self.started = self.fetched = time.perf_counter()

    def add(self, lazies: tuple[Lazy, Lazy], images: int) -> Iterator[Progress]:
        """Take one step's results; yields progress when it is time to look."""
        self.lazies += lazies
        self.images += images
        self.step += 1
        if self.step == self.steps or time.perf_counter() - self.fetched > FETCH_SECONDS:
            yield self.progress()

    def progress(self) -> Progress:
        values = self.backend.fetch(self.lazies)
        first = self.step - len(values) // 2
        for number, (loss, correct) in enumerate(zip(values[::2], values[1::2], strict=True), first + 1):
            if not math.isfinite(float(loss)):
                raise TlxError(
                    f"The {self.part} loss is {float(loss)} in epoch {self.epoch + 1}, step {number} of {self.steps}. "
                    "Lower lr, or add warmup; with precision float32 if it was bfloat16."
                )
            self.loss += float(loss)
            self.correct += int(correct)
        self.lazies = []
        self.fetched = time.perf_counter()
        return Progress(self.part, self.epoch, self.step, self.steps, self.metrics(), self.fetched - self.started)

    def metrics(self) -> Metrics:
        return Metrics(self.loss / self.images, self.correct / self.images, self.images)


def evaluate(
    backend: Backend, model: Model, loader: Loader, part: str, epoch: int = 0
) -> Generator[Progress, None, Metrics]:
    """Read a part of the data once, in eval mode; returns its metrics."""
    meter = Meter(backend, part, epoch, loader.steps)
    for batch in loader.epoch(0):
        yield from meter.add(backend.evaluate(model, backend.put(model, batch)), len(batch))
    return meter.metrics()


def train(
    backend: Backend, model: Model, optimizer: Handle, plan: Plan, loader: Loader, val: Loader | None
) -> Generator[Event, None, tuple[int, Arrays]]:
    """Train through all phases of the plan; returns the best epoch and its values.

    The best epoch is the first with the highest validation accuracy; without a validation part it is the last.
    Raises FrozenMovedError if anything changed that a phase had frozen.
    """
    guard = FrozenGuard(backend, model)
    phase = ""
    best_epoch, best_accuracy = -1, -1.0
    best: Arrays = {}
    for epoch in range(plan.schedule.epochs):
        meter = Meter(backend, "train", epoch, loader.steps)
        for number, batch in enumerate(loader.epoch(epoch)):
            step = epoch * loader.steps + number
            state = plan.state_at(step)
            if state.phase != phase:
                guard.check()
                backend.set_phase(model, state.trainable, state.batch_norm)
                guard.watch(plan.frozen_at(step))
                phase = state.phase
                yield PhaseStarted(epoch, phase)
            backend.set_hyper(optimizer, state.hyper)
            lazies = backend.backward(model, backend.put(model, batch))
            backend.update(model, optimizer)
            yield from meter.add(lazies, len(batch))
        seconds = meter.fetched - meter.started
        validated = None
        if val is not None:
            validated = yield from evaluate(backend, model, val, "val", epoch)
        improved = validated is None or validated.accuracy > best_accuracy
        if improved:
            best_epoch, best = epoch, backend.dump_arrays(model)
            best_accuracy = validated.accuracy if validated else best_accuracy
        lr = tuple(hyper.lr for hyper in state.hyper)
        yield EpochEnded(epoch, phase, meter.metrics(), validated, lr, seconds, improved)
    guard.check()
    return best_epoch, best


class FrozenGuard:
    """Proves by hash that what a phase froze did not move while it lasted."""

    def __init__(self, backend: Backend, model: Model) -> None:
        self.backend, self.model = backend, model
        self.hashes: dict[str, str] = {}

    def watch(self, frozen: frozenset[str]) -> None:
        self.hashes = self._hashes(frozen)

    def check(self) -> None:
        now = self._hashes(frozenset(self.hashes))
        moved = [name for name, value in self.hashes.items() if now[name] != value]
        if moved:
            raise FrozenMovedError(
                f"{len(moved)} frozen arrays changed during training, first {moved[0]!r}: "
                f"backend {self.backend.name!r} is defective; run its conformance suite"
            )

    def _hashes(self, names: frozenset[str]) -> dict[str, str]:
        if not names:
            return {}
        return digests({name: array for name, array in self.backend.dump_arrays(self.model).items() if name in names})
