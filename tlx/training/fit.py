"""What a strategy does that takes no steps: features are extracted once, and the head is found from them.

Features are what enters the head, from one view of each image. A map [channels, h, w] counts as the mean over its
positions, which is what a convolution of 1 x 1 and an average pooling make of it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from tlx.backend import Array, Backend, Batch, Model, ParamSpec, Precision
from tlx.data.loader import Loader
from tlx.data.multilabel import is_multilabel
from tlx.errors import RecipeError, TlxError
from tlx.processes import Channel, of_first
from tlx.training.features import Batches, Feed
from tlx.training.features import Features as Cached
from tlx.training.logistic import Labels, Linear, fit_logistic, metrics_of
from tlx.training.loop import FrozenGuard, State, Training, begin_phase, evaluate, feed_of_phase
from tlx.training.metrics import FETCH_SECONDS, EpochEnded, Evaluated, Event, Extracted, Fit, Metrics, Stepped
from tlx.training.neighbors import Bank, choose_neighbors, unit
from tlx.training.together import arrays_of_first

# How far logits may lie from those of the fit, as a part of the sum of their terms' sizes.
ROUNDING: dict[Precision, float] = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 0.03}
T = TypeVar("T")
ROOM = 2.0  # how much further than in training a logit may fall below zero before a ReLU cuts it


@dataclass(frozen=True, slots=True)
class Head:
    """The layer that is fitted: a Linear, or a convolution of 1 x 1 over maps."""

    weight: ParamSpec
    bias: ParamSpec | None

    @property
    def width(self) -> int:
        """How many features enter it."""
        return self.weight.shape[1]

    def pooled(self, features: Array) -> Array:
        """Return what enters it, as one row of features for each image: [N, features]."""
        axes = tuple(range(2, features.ndim)) if len(self.weight.shape) == 4 else tuple(range(1, features.ndim - 1))
        return np.asarray(features.mean(axis=axes, dtype=np.float64).astype(features.dtype) if axes else features)

    def arrays(self, linear: Linear) -> dict[str, Array]:
        """Return its values, in their shapes and dtypes."""
        values = {self.weight.name: linear.weight.reshape(self.weight.shape).astype(self.weight.dtype)}
        if self.bias is not None:
            values[self.bias.name] = linear.bias.astype(self.bias.dtype)
        return values

    def rounded(self, linear: Linear) -> Linear:
        """Return the linear function that the layer computes, whose values are of its dtype."""
        values = [values.astype(self.weight.dtype).astype(np.float64) for values in (linear.weight, linear.bias)]
        return Linear(*values)

    def zeros(self) -> dict[str, Array]:
        """Return zeros in place of its values."""
        return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in (self.weight, self.bias) if spec is not None}


def find_head(specs: Sequence[ParamSpec], strategy: str) -> Head:
    """Return the layer that the head's parameters make up; RecipeError where they are not those of one linear layer."""
    weights = [spec for spec in specs if spec.name == f"{spec.module}.weight" and spec.role == "weight"]
    biases = [spec for spec in specs if spec.name == f"{spec.module}.bias"]
    shape = weights[0].shape if weights else ()
    linear = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    if len(weights) != 1 or not linear or len(weights + biases) != len(specs) or any(spec.aliases for spec in specs):
        listed = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        raise RecipeError(
            f"strategy {strategy!r} needs a head of one linear layer or 1 x 1 convolution with values of its own; the "
            f"head's are {listed}",
            fix="use strategy feature_extract",
        )
    return Head(weights[0], biases[0] if biases else None)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The features of a part's images [N, features], and their labels [N], or of several [N, classes]."""

    features: Array
    labels: Labels


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was chosen, and how good it is."""

    fit: Fit
    train: Metrics
    val: Metrics | None


def fit(training: Training, state: State) -> Generator[Event, None, None]:
    """Extract the features, find the head and give it to the model; the state then holds what the run leaves.

    With strategy knn the state holds the bank besides, and the model's head is zero and not among the values.

    Raises:
        FrozenMovedError: something changed that is frozen.
        TlxError: features are not finite, or the logits are not linear in what enters the head.
    """
    assert training.fit is not None
    kind, guard, now = training.fit.kind, FrozenGuard(training, state), training.plan.state_at(0)
    head = head_of(training)
    yield from begin_phase(training, state)
    guard.watch(training.plan.frozen_at(0))
    state.feed = feed = yield from feed_of_phase(training, state)
    if training.channel.world.rank > 0:
        yield from fit_elsewhere(training, state, feed)
        return
    began = time.perf_counter()
    train, val = (yield from extract(training, head, feed.train, "train")), None
    if feed.val is not None:
        val = yield from extract(training, head, feed.val, "val")
    yield from feed.problems()
    extracted = time.perf_counter()
    if kind == "probe":
        outcome = yield from _leading(training.channel, _probe(training, feed, head, train, val))
    else:
        outcome, state.bank = yield from _leading(training.channel, _bank(training, head, train, val))
    guard.check()
    values = training.backend.dump_arrays(training.model)
    state.best = {name: array for name, array in values.items() if kind == "probe" or name not in now.trainable}
    state.best_epoch, state.step = 0, training.loader.steps
    ended = EpochEnded(
        epoch=0,
        phase=now.phase,
        train=outcome.train,
        val=outcome.val,
        lr=(),
        seconds=time.perf_counter() - began,
        best=True,
        fit=replace(outcome.fit, seconds=time.perf_counter() - extracted),
    )
    state.history.append(ended)
    if training.channel.world.size > 1:
        arrays_of_first(
            training.channel, state.best, {"train": asdict(ended.train), "val": ended.val and asdict(ended.val)}
        )
    yield ended


def fit_elsewhere(training: Training, state: State, feed: Feed) -> Generator[Event, None, None]:
    """Compute features along with the first process, which fits, and take over what it found."""
    for batches in (feed.train, feed.val):
        if batches is not None:
            yield from accompany(batches)
    while of_first(training.channel):
        yield Stepped()
    state.best, facts = arrays_of_first(training.channel, {}, {})
    backend, model = training.backend, training.model
    backend.load_arrays(model, {**backend.dump_arrays(model), **state.best})
    state.best_epoch, state.step = 0, training.loader.steps
    val = None if facts["val"] is None else Metrics(**facts["val"])
    state.history.append(EpochEnded(0, training.plan.state_at(0).phase, Metrics(**facts["train"]), val, (), 1.0, True))
    yield state.history[-1]


def _leading(channel: Channel, events: Generator[Event, None, T]) -> Generator[Event, None, T]:
    """Pass events on, and tell the other processes of each step, so that all hear of a signal."""
    while True:
        try:
            event = next(events)
        except StopIteration as stop:
            of_first(channel)
            value: T = stop.value
            return value
        if isinstance(event, Stepped):
            of_first(channel, b"step")
        yield event


def accompany(batches: Batches) -> Generator[Event, None, None]:
    """Be there while the first process reads a part alone."""
    for _ in batches.accompany(0) if isinstance(batches, Cached) else range(batches.steps):
        yield Stepped()


def judge(
    training: Training, model: Model, bank: Bank | None, batches: Batches, part: str
) -> Generator[Event, None, Metrics]:
    """Read a part of the data once, and return the metrics of the model, or of the bank where there is one."""
    channel = training.channel
    if training.fit is None or training.fit.kind == "probe":
        return (yield from evaluate(training.backend, model, batches, part, channel=channel))
    if bank is None:  # the first process has it
        yield from accompany(batches)
        return Metrics(**arrays_of_first(channel, {}, {})[1])
    found = yield from extract(training, head_of(training), batches, part)
    logits = bank.logits(found.features)
    yield Evaluated(part, 0, logits)
    metrics = metrics_of(logits, found.labels)
    if channel.world.size > 1:
        arrays_of_first(channel, {}, asdict(metrics))
    return metrics


def head_of(training: Training) -> Head:
    """Return the layer that a plan fits."""
    assert training.plan.strategy.fits is not None
    named = training.plan.state_at(0).trainable
    return find_head([spec for spec in training.plan.specs if spec.name in named], training.plan.strategy.name)


def extract(training: Training, head: Head, batches: Batches, part: str) -> Generator[Event, None, Features]:
    """Return the features of a part's images, in their order; events say how far it has come."""
    rows, labels, images = list[Array](), list[Labels](), 0
    began = said = time.perf_counter()
    total = len((batches.images if isinstance(batches, Loader) else batches.loader.images).labels)
    for batch in batches.epoch(0):
        rows.append(head.pooled(entering(training.backend, training.model, batch, head.weight.module)))
        labels.append(batch.labels)
        images += len(batch)
        if (moment := time.perf_counter()) - said > FETCH_SECONDS:
            said = moment
            yield Extracted(part, images, total, moment - began)
        yield Stepped()
    features = np.concatenate(rows)
    if not np.isfinite(features).all():
        problem = f"features of {part} images, which enter {head.weight.module!r}, are not finite"
        raise TlxError(problem, fix="use precision float32 if it was bfloat16, or other weights")
    return Features(features, np.concatenate(labels))


def entering(backend: Backend, model: Model, batch: Batch, module: str) -> Array:
    """Return what enters a module for a batch, which may begin at a boundary before it."""
    if batch.boundary == module:
        return batch.images
    return backend.fetch([backend.features(model, backend.put(model, batch), module)])[0]


def _probe(
    training: Training, feed: Feed, head: Head, train: Features, val: Features | None
) -> Generator[Event, None, Outcome]:
    assert training.fit is not None
    options, backend, model = training.fit, training.backend, training.model
    probe = yield from fit_logistic(
        train.features,
        train.labels,
        options.classes,
        val=None if val is None else (val.features, val.labels),
        balanced=options.balanced,
        bias=head.bias is not None,
    )
    linear, notes = head.rounded(probe.linear), [*probe.notes]
    backend.load_arrays(model, {**backend.dump_arrays(model), **head.arrays(linear)})
    if not _agrees(training, feed, head, linear):
        if is_multilabel(train.labels):  # to raise all logits alike would change these probabilities
            raise RecipeError(
                f"strategy probe: the model's logits are not what its head {head.weight.module!r} gives on average, as "
                "where a ReLU follows it, but several labels need logits below zero",
                fix="use another model, or strategy knn",
            )
        linear, added = _above_zero(training, feed, head, linear)
        backend.load_arrays(model, {**backend.dump_arrays(model), **head.arrays(linear)})
        if not added or not _agrees(training, feed, head, linear):
            raise RecipeError(
                f"strategy probe: the model's logits are not what its head {head.weight.module!r} gives on average",
                fix="use strategy feature_extract",
            )
        notes.append(f"a ReLU follows the head, so {added:.3g} is added to each bias, which changes no probability")
    fit = Fit("C", probe.strength, probe.tried, 0.0, tuple(notes))
    of_train, of_val = metrics_of(linear.logits(train.features), train.labels), None
    if val is not None:
        logits = linear.logits(val.features)
        of_val = metrics_of(logits, val.labels)
        yield Evaluated("val", 0, logits)
    return Outcome(fit, of_train, of_val)


def _agrees(training: Training, feed: Feed, head: Head, linear: Linear) -> bool:
    """Whether the model's logits are those of the fit, as near as rounding allows; of one batch where none is kept."""
    assert training.fit is not None
    backend, model, tolerance = training.backend, training.model, ROUNDING[training.fit.precision]
    for batch in _again(feed.train, feed):
        features = head.pooled(entering(backend, model, batch, head.weight.module))
        logits = backend.fetch([backend.logits(model, backend.put(model, batch))])[0]
        sizes = Linear(np.abs(linear.weight), np.abs(linear.bias)).logits(np.abs(features))
        if (np.abs(logits - linear.logits(features)) > tolerance * sizes).any():
            return False
    return True


def _above_zero(training: Training, feed: Feed, head: Head, linear: Linear) -> tuple[Linear, float]:
    """Raise all biases alike, so that no output of the head is below zero at any position; and say by how much."""
    lowest = 0.0
    for batches in (feed.train, feed.val):
        for batch in () if batches is None else _again(batches, feed):
            features = entering(training.backend, training.model, batch, head.weight.module)
            rows = np.moveaxis(features, 1, -1) if features.ndim == 4 else features
            lowest = min(lowest, float(linear.logits(rows.reshape(-1, head.width)).min()))
    raised = head.rounded(Linear(linear.weight, linear.bias - ROOM * lowest))
    return raised, -ROOM * lowest if head.bias is not None else 0.0


def _again(batches: Batches, feed: Feed) -> Iterator[Batch]:
    """The batches once more where their features are kept, otherwise the first."""
    return iter(batches.epoch(0)) if feed.boundary is not None else islice(batches.epoch(0), 1)


def _bank(
    training: Training, head: Head, train: Features, val: Features | None
) -> Generator[Event, None, tuple[Outcome, Bank]]:
    assert training.fit is not None
    options, backend, model = training.fit, training.backend, training.model
    bank = Bank(unit(train.features), train.labels, options.classes, 1)
    held_out = None if val is None else (val.features, val.labels)
    choice = yield from choose_neighbors(bank, held_out, options.neighbors)
    backend.load_arrays(model, {**backend.dump_arrays(model), **head.zeros()})
    if choice.val_logits is not None:
        yield Evaluated("val", 0, choice.val_logits)
    fit = Fit("neighbors", choice.k, choice.tried, 0.0, choice.notes)
    return Outcome(fit, choice.train, choice.val), replace(bank, k=choice.k)
