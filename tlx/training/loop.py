"""The training loop: generators of events that hold no framework, no display and no files."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tlx.backend import Arrays, Backend, Handle, Lazy, Model
from tlx.data.loader import Loader
from tlx.errors import FrozenMovedError
from tlx.models.weights import digests
from tlx.strategy.plan import Plan
from tlx.strategy.schedule import float32_exact
from tlx.training.features import Cut, Features, find_cut, keep
from tlx.training.metrics import EpochEnded, Event, Meter, Metrics, PhaseStarted, Stepped

Batches = Loader | Features


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What trains, by which plan, on what: all that does not change during a run."""

    backend: Backend
    model: Model
    optimizer: Handle
    plan: Plan
    loader: Loader
    val: Loader | None = None
    micro_batch: int | None = None
    clip_norm: float | None = None
    shadow: Model | None = None  # holds the moving average of the weights, which is then what is evaluated
    ema: float = 0.0
    patience: int | None = None
    keep_features: bool = False
    network: Mapping[str, Any] | None = None  # what identifies it beside its values, to find features of earlier runs

    @property
    def judged(self) -> Model:
        return self.model if self.shadow is None else self.shadow


@dataclass(slots=True, eq=False)
class State:
    """Where a run stands: with the backend's values, all that is needed to go on."""

    history: list[EpochEnded] = field(default_factory=list)
    step: int = 0  # steps taken since the start
    meter: Meter | None = None  # of the training epoch under way
    best: Arrays = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)  # hashes of what the present phase froze
    phase: str = ""  # that the backend was told
    cut: Cut | None = None  # where features of the present phase are taken
    best_saved: int = -1  # the epoch whose values are on disk

    @property
    def best_epoch(self) -> int:
        """The first with the highest validation accuracy; the last where there is no validation part; -1: none."""
        return max((epoch.epoch for epoch in self.history if epoch.best), default=-1)


@dataclass(slots=True)
class Feed:
    """Where batches come from: the loaders, or what was kept of them at the boundary of the frozen part."""

    loader: Batches
    val: Batches | None


def evaluate(
    backend: Backend, model: Model, loader: Batches, part: str, epoch: int = 0
) -> Generator[Event, None, Metrics]:
    """Read a part of the data once, in eval mode; returns its metrics."""
    meter = Meter(backend, part, epoch, loader.steps)
    for batch in loader.epoch(0):
        yield from meter.add([*backend.evaluate(model, backend.put(model, batch))], len(batch))
        yield Stepped()
    return meter.metrics()


def train(job: Training, state: State) -> Generator[Event, None, None]:
    """Train through all phases of the plan, from wherever `state` stands, and keep the state up to date.

    Raises FrozenMovedError if anything changed that a phase had frozen, TlxError if a loss is not finite.
    """
    guard, feed = FrozenGuard(job, state), Feed(job.loader, job.val)
    while len(state.history) < job.plan.schedule.epochs and not stalled(state.history, job.patience):
        yield from _enter_phase(job, state, guard, feed)
        yield from _train_epoch(job, state, feed.loader)
        assert state.meter is not None
        validated = None
        epoch = len(state.history)
        if feed.val is not None:
            validated = yield from evaluate(job.backend, job.judged, feed.val, "val", epoch)
        best = validated is None or all(e.val is None or validated.accuracy > e.val.accuracy for e in state.history)
        if best:
            state.best = job.backend.dump_arrays(job.judged)
        last = job.plan.state_at(state.step - 1, val_losses(state.history))
        lr = tuple(hyper.lr for hyper in last.hyper)
        ended = EpochEnded(epoch, last.phase, state.meter.metrics(), validated, lr, state.meter.seconds, best)
        state.history.append(ended)
        state.meter = None
        yield ended
    guard.check()


def _enter_phase(job: Training, state: State, guard: FrozenGuard, feed: Feed) -> Generator[Event, None, None]:
    """Where a phase begins, or a run goes on: tell the backend, watch what is frozen, keep what it gives."""
    epoch, now = len(state.history), job.plan.state_at(state.step)
    if now.phase == state.phase:
        return
    guard.check()
    job.backend.set_phase(job.model, now.trainable, now.batch_norm)
    frozen = job.plan.frozen_at(state.step)
    guard.watch(frozen)
    state.phase = now.phase
    if state.step == job.plan.phase_at(state.step).start * job.loader.steps:
        yield PhaseStarted(epoch, now.phase)
    feed.loader, feed.val, state.cut = job.loader, job.val, None
    if not (job.keep_features and frozen and job.plan.phase_end(state.step) - epoch > 1):
        return
    # A shadow may lag behind where something freezes anew.
    parts = {"train": job.loader, "val": job.val if job.shadow is None else None}
    bounded = {part: loader for part, loader in parts.items() if loader is not None and loader.variants is not None}
    if not bounded:
        return
    network = None if job.network is None else {**job.network, "frozen": state.frozen}
    state.cut = find_cut(job.backend, job.model, next(iter(bounded.values())), network)
    if state.cut is None:
        return
    for part, loader in bounded.items():
        kept, told = keep(job.backend, job.model, loader, part, state.cut)
        if kept and part == "train":
            feed.loader = kept
        elif kept:
            feed.val = kept
        yield told


def held_out(job: Training, state: State, loader: Loader) -> Batches:
    """The test part, read once: with features that the shelf has, where the best values have what a phase froze."""
    if state.cut is None or state.cut.shelf is None:
        return loader
    if digests({name: state.best[name] for name in state.frozen}) != state.frozen:
        return loader
    with suppress(OSError):
        state.cut.shelf.read()  # a test image may have been among the validated ones
    return keep(job.backend, job.model, loader, "test", state.cut)[0] or loader


def _train_epoch(job: Training, state: State, loader: Batches) -> Generator[Event, None, None]:
    backend, model, epoch = job.backend, job.model, len(state.history)
    losses = val_losses(state.history)
    if state.meter is None:
        state.meter = Meter(backend, "train", epoch, loader.steps)
    meter = state.meter
    for batch in loader.epoch(epoch, state.step - epoch * loader.steps):
        backend.set_hyper(job.optimizer, job.plan.hyper_at(state.step, losses))
        lazies: list[Lazy] = []
        for part in batch.parts(job.micro_batch):
            lazies += backend.backward(model, backend.put(model, part), len(part) / len(batch))
        backend.update(model, job.optimizer, job.clip_norm)
        if job.shadow is not None:
            # The start weighs less the fewer steps there are, as in tf.train.ExponentialMovingAverage.
            decay = min(job.ema, (1 + state.step) / (10 + state.step))
            backend.average(job.shadow, model, float32_exact(1 - decay))
        state.step += 1
        yield from meter.add(lazies, len(batch))
        yield Stepped()


def val_losses(history: Sequence[EpochEnded]) -> list[float]:
    return [epoch.val.loss for epoch in history if epoch.val is not None]


def stalled(history: Sequence[EpochEnded], patience: int | None) -> bool:
    """Whether the last `patience` epochs brought no better validation accuracy."""
    return patience is not None and len(history) > patience and not any(e.best for e in history[-patience:])


class FrozenGuard:
    """Proves by hash that what a phase froze did not move while it lasted, over a resume too."""

    def __init__(self, job: Training, state: State) -> None:
        self.job, self.state = job, state

    def watch(self, frozen: frozenset[str]) -> None:
        self.state.frozen = self._hashes(frozen)

    def check(self) -> None:
        now = self._hashes(frozenset(self.state.frozen))
        moved = [name for name, value in self.state.frozen.items() if now[name] != value]
        if moved:
            raise FrozenMovedError(
                f"{len(moved)} frozen arrays changed during training, first {moved[0]!r}: "
                f"backend {self.job.backend.name!r} is defective; run its conformance suite"
            )

    def _hashes(self, names: frozenset[str]) -> dict[str, str]:
        if not names:
            return {}
        arrays = self.job.backend.dump_arrays(self.job.model)
        return digests({name: array for name, array in arrays.items() if name in names})
