"""The training loop: generators of events that hold no framework, no display and no files."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from tlx.backend import Arrays, Backend, Batch, Handle, Lazy, Model, Precision, Reduces, float32_exact
from tlx.data.loader import Loader
from tlx.errors import BackendError, FrozenMovedError
from tlx.models.weights import digests
from tlx.processes import Alone, Channel, all_true
from tlx.strategy.plan import Fits, Plan
from tlx.strategy.schedule import Plateau
from tlx.training.division import Division
from tlx.training.features import Batches, Features, Feed, cache_features, choose_feed
from tlx.training.metrics import EpochEnded, Event, Meter, Metrics, PhaseStarted, Stepped, better, check_finite
from tlx.training.neighbors import Bank
from tlx.training.together import arrays_of_first, check_alike, pack, take_over, unpack

WINDOW = 8  # batches that a process evaluates before it waits for the others
SUMS = ("loss", "correct", "images", "step", "earlier", "started", "fetched")  # of a meter


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How the head is fitted to features, where no steps are taken."""

    kind: Fits
    classes: int
    balanced: bool  # each class weighs the same
    neighbors: int | None
    precision: Precision


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
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
    head: frozenset[str] = frozenset()  # its parameters
    keep_features: bool = False
    network: Mapping[str, Any] | None = None  # identifies the model, but for its values, in the feature store
    fit: FitOptions | None = None  # `tlx.training.fit` finds the head's values, in place of steps
    channel: Channel = Alone()  # noqa: RUF009 (frozen); to the other processes of the run
    shards: int | None = None  # of a batch, whose gradients are added up in their order

    @property
    def division(self) -> Division:
        """How the rows of a batch are divided."""
        return Division(self.micro_batch, self.channel, self.shards)

    @property
    def judged(self) -> Model:
        """The model that is evaluated and kept: the moving average, if there is one."""
        return self.model if self.shadow is None else self.shadow


@dataclass(slots=True, eq=False)
class State:
    """Where a run stands: with the backend's values, all that is needed to continue."""

    history: list[EpochEnded] = field(default_factory=list)
    step: int = 0  # steps taken since the start
    meter: Meter | None = None  # of the training epoch under way
    best: Arrays = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)  # hashes of what the present phase froze
    phase: str = ""  # which the backend is set to
    feed: Feed | None = None  # of the present phase
    bank: Bank | None = None  # of strategy knn, which has no head
    best_epoch: int = field(init=False)  # by `better`, the first of equals; without validation the last; -1: none
    best_saved: int = -1  # the epoch whose values are on disk

    def __post_init__(self) -> None:
        self.best_epoch = max((epoch.epoch for epoch in self.history if epoch.best), default=-1)


def train(training: Training, state: State) -> Generator[Event, None, None]:
    """Train through all phases of the plan, from wherever `state` stands, and keep the state up to date.

    Raises:
        FrozenMovedError: something changed that a phase had frozen.
        TlxError: a loss, or a weight at an epoch's end, is not finite.
    """
    guard, plateau = FrozenGuard(training, state), Plateau(training.plan.schedule.step_size)
    for loss in val_losses(state.history):
        plateau.add(loss)
    while not finished(training, state):
        if phase_changed(training, state):
            guard.check()  # what the last phase froze did not move
            yield from begin_phase(training, state)
            guard.watch(training.plan.frozen_at(state.step))
            state.feed = yield from feed_of_phase(training, state)
        assert state.feed is not None
        yield from train_epoch(training, state, state.feed.train, plateau.drops)
        validation = None
        if state.feed.val is not None:
            what = training.backend, training.judged, state.feed.val, "val", len(state.history)
            validation = yield from evaluate(*what, training.channel)
        yield from state.feed.problems()
        epoch = end_epoch(training, state, validation, plateau.drops)
        if validation is not None:
            plateau.add(validation.loss)
        yield epoch
    guard.check()


def finished(training: Training, state: State) -> bool:
    """Whether all epochs are done, or the last `patience` of them brought no better validation accuracy."""
    epochs = len(state.history)
    return epochs >= training.plan.schedule.epochs or stalled(state.history, training.patience)


def stalled(history: Sequence[EpochEnded], patience: int | None) -> bool:
    """Whether the last `patience` epochs brought no better validation accuracy, or mean average precision."""
    if patience is None or len(history) <= patience:
        return False
    # The last best epoch before these has the highest score of all before them.
    before = next((epoch.val for epoch in islice(reversed(history), patience, None) if epoch.best), None)
    if before is None:
        return False
    return all(epoch.val is None or epoch.val.score <= before.score for epoch in history[-patience:])


def phase_changed(training: Training, state: State) -> bool:
    """Whether the next step belongs to another phase than the backend is set to, as at a start or a resume."""
    return training.plan.state_at(state.step).phase != state.phase


def begin_phase(training: Training, state: State) -> Generator[Event, None, None]:
    """Tell the backend what trains from here on; the event says so, unless a run resumes within the phase."""
    now = training.plan.state_at(state.step)
    training.backend.set_phase(training.model, now.trainable, now.batch_norm)
    state.phase = now.phase
    state.feed = None  # frees the features of the last phase before room is made for new ones
    if state.step == training.plan.phase_at(state.step).start * training.loader.steps:
        yield PhaseStarted(len(state.history), now.phase)


def feed_of_phase(training: Training, state: State) -> Generator[Event, None, Feed]:
    """Choose the loaders, or the cached features of what the phase freezes, if images come more than once in it."""
    epochs_left = training.plan.phase_end(state.step) - len(state.history)
    once = epochs_left <= 1 and training.fit is None
    if once or not (training.keep_features and state.frozen):
        return Feed(training.loader, training.val)
    # A shadow may lag behind where something freezes anew, so validation then goes through the whole model.
    val = training.val if training.shadow is None else None
    network = None if training.network is None else {**training.network, "frozen": state.frozen}
    trains = training.plan.state_at(state.step).trainable
    parts = training.backend, training.model, training.loader, val, network, training.micro_batch, trains
    feed = yield from choose_feed(*parts, training.channel, common=not trains <= training.head)
    return feed if val is not None else replace(feed, val=training.val)


def train_epoch(training: Training, state: State, batches: Batches, drops: int) -> Generator[Event, None, None]:
    """Take the steps of an epoch that are left, and measure them; the schedule plateau has had so many drops.

    From cached features one of several processes trains a head, which is faster than to send gradients.
    """
    if training.channel.world.size == 1 or isinstance(batches, Loader) or batches.common:
        yield from take_steps(training, state, batches, drops, training.division)
        return
    if training.channel.world.rank == 0:
        yield from take_steps(training, state, batches, drops, training.division.alone)
    else:
        for _ in batches.accompany(len(state.history), state.step - len(state.history) * batches.steps):
            state.step += 1
            yield Stepped()
    follow_first(training, state)


def take_steps(
    training: Training, state: State, batches: Batches, drops: int, division: Division
) -> Generator[Event, None, None]:
    """Take the steps of an epoch that are left, each on the rows that are this process's."""
    backend, model, epoch = training.backend, training.model, len(state.history)
    if state.meter is None:
        state.meter = Meter(backend, model, "train", epoch, batches.steps)
    meter = state.meter
    meter.channel, meter.divided = division.channel, not division.simple
    for rows, parts in division.steps(batches, epoch, state.step - epoch * batches.steps):
        backend.set_hyper(training.optimizer, training.plan.hyper_at(state.step, drops))
        results = [backend.backward(model, backend.put(model, part), scale) for part, scale in parts]
        if not division.simple:
            assert isinstance(backend, Reduces)
            backend.reduce(model, division.channel)
        backend.update(model, training.optimizer, training.clip_norm)
        if training.shadow is not None:
            # The start weighs less the fewer steps there are, as in tf.train.ExponentialMovingAverage.
            decay = min(training.ema, (1 + state.step) / (10 + state.step))
            backend.average(training.shadow, model, float32_exact(1 - decay))
        state.step += 1
        yield from meter.add(results, rows)
        yield Stepped()


def follow_first(training: Training, state: State) -> None:
    """Take over what the first process has trained alone: values, the optimizer's state and what was measured."""
    take_over(training.backend, training.model, training.optimizer, training.shadow, training.channel)
    meter = state.meter or Meter(training.backend, training.model, "train", len(state.history), training.loader.steps)
    state.meter = meter
    _, sums = arrays_of_first(training.channel, {}, {name: getattr(meter, name) for name in SUMS})
    for name in SUMS:
        setattr(meter, name, sums[name])


def evaluate(
    backend: Backend,
    model: Model,
    batches: Batches,
    part: str,
    epoch: int = 0,
    channel: Channel = Alone(),  # noqa: B008 (frozen)
) -> Generator[Event, None, Metrics]:
    """Read a part of the data once, in eval mode; returns its metrics, which are the same in all processes."""
    meter = Meter(backend, model, part, epoch, batches.steps)
    if channel.world.size > 1 and isinstance(batches, Loader):
        yield from evaluate_together(backend, model, batches, meter, channel)
        return meter.metrics()
    if channel.world.rank == 0:
        for batch in batches.epoch(0):
            loss, correct, logits = evaluated(backend, model, batch)
            yield from meter.add([(loss, correct)], len(batch), logits, batch.labels)
            yield Stepped()
    else:
        assert isinstance(batches, Features)
        for _ in batches.accompany(0):
            yield Stepped()
    if channel.world.size == 1:
        return meter.metrics()
    _, facts = arrays_of_first(channel, {}, asdict(meter.metrics()) if channel.world.rank == 0 else {})
    return Metrics(**facts)


def evaluate_together(
    backend: Backend, model: Model, loader: Loader, meter: Meter, channel: Channel
) -> Generator[Event, None, None]:
    """Evaluate each `size`-th batch in each process, and put what they find in the order of the batches."""
    world = channel.world
    with closing(loader.epoch(0, world.rank, world.size)) as own:
        for first in range(0, loader.steps, world.size * WINDOW):
            steps = range(first, min(first + world.size * WINDOW, loader.steps))
            count = len(steps[world.rank :: world.size])
            lazies = [lazy for batch in islice(own, count) for lazy in evaluated(backend, model, batch)]
            values = backend.fetch(lazies) if lazies else []
            parts = channel.gather(pack(values))
            results = [iter(unpack(part)) for part in parts]
            for step in steps:
                loss, correct, logits = islice(results[(step - first) % world.size], 3)
                at = step * loader.batch_size
                labels = loader.images.labels[at : at + len(logits)]
                yield from meter.add_values(float(loss), int(correct), logits, labels)
            yield Stepped()


def evaluated(backend: Backend, model: Model, batch: Batch) -> tuple[Lazy, Lazy, Lazy]:
    """Return the loss, the correct count and the logits of a batch."""
    outputs = backend.evaluate(model, backend.put(model, batch))
    if len(outputs) != 3:  # as backends did for tlx 0.1
        problem = f"backend {backend.name!r}: evaluate returns {len(outputs)} values, not loss, count and logits"
        raise BackendError(problem, fix="let it return what its logits() does, too")
    return outputs


def end_epoch(training: Training, state: State, validation: Metrics | None, drops: int) -> EpochEnded:
    """Append the epoch to the history, and keep its values if they are the best so far.

    Raises TlxError if a value is not finite.
    """
    assert state.meter is not None
    values = training.backend.dump_arrays(training.model)
    check_finite(values, training.plan.specs, f"in epoch {len(state.history) + 1}")
    check_alike(values, training.channel, f"in epoch {len(state.history) + 1}")
    before = state.history[state.best_epoch].val if state.best_epoch >= 0 else None
    best = validation is None or before is None or better(validation, before)
    if best:
        state.best_epoch = len(state.history)
        state.best = values if training.shadow is None else training.backend.dump_arrays(training.shadow)
    last_step = training.plan.state_at(state.step - 1, drops)
    epoch = EpochEnded(
        epoch=len(state.history),
        phase=last_step.phase,
        train=state.meter.metrics(),
        val=validation,
        lr=tuple(hyper.lr for hyper in last_step.hyper),
        seconds=state.meter.seconds,
        best=best,
    )
    state.history.append(epoch)
    state.meter = None
    return epoch


def held_out(training: Training, state: State, loader: Loader) -> Batches:
    """Return the test part, which is read once, with the features that earlier runs left in the store.

    They are used only if the best values have what the last phase froze.
    """
    boundary = None if state.feed is None else state.feed.boundary
    stored = boundary is not None and boundary.store is not None
    if not all_true(training.channel, stored) or boundary is None or boundary.store is None:
        return loader
    if digests({name: state.best[name] for name in state.frozen}) != state.frozen:
        return loader
    with suppress(OSError):
        boundary.store.read()  # a test image may have been among the validated ones
    return cache_features(loader, "test", boundary, channel=training.channel)[0] or loader


def val_losses(history: Sequence[EpochEnded]) -> list[float]:
    """Return the validation losses of the epochs that have one."""
    return [epoch.val.loss for epoch in history if epoch.val is not None]


class FrozenGuard:
    """Proves by hash that what a phase froze did not move while it lasted, over a resume too."""

    def __init__(self, training: Training, state: State) -> None:
        self.training, self.state = training, state

    def watch(self, frozen: frozenset[str]) -> None:
        """Remember the hashes of these arrays in the state."""
        self.state.frozen = self._hashes(frozen)

    def check(self) -> None:
        """Raise FrozenMovedError if one of the arrays that are watched has changed."""
        now = self._hashes(frozenset(self.state.frozen))
        moved = [name for name, value in self.state.frozen.items() if now[name] != value]
        if moved:
            raise FrozenMovedError(
                f"{len(moved)} frozen arrays changed during training, first {moved[0]!r}: "
                f"backend {self.training.backend.name!r} is defective; run its conformance suite"
            )

    def _hashes(self, names: frozenset[str]) -> dict[str, str]:
        if not names:
            return {}
        arrays = self.training.backend.dump_arrays(self.training.model)
        return digests({name: array for name, array in arrays.items() if name in names})
