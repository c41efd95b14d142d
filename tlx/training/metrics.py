"""What is measured during a run, and the events that report it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tlx.backend import Array, Arrays, Backend, Lazy, Model, ParamSpec
from tlx.errors import TlxError
from tlx.models.weights import first_not_finite
from tlx.processes import Alone, Channel, highest
from tlx.training.multilabel import mean_average_precision

FETCH_SECONDS = 1.0  # how often the loop waits for the device to report, at most
WAITING = 1 << 14  # images whose logits may wait on the device: 64 MB of them with 1,000 classes


@dataclass(frozen=True, slots=True)
class Metrics:
    """Over `images` images: the mean loss, and the fraction that was classified correctly, with all of its labels."""

    loss: float
    accuracy: float
    images: int
    average_precision: float | None = None  # the mean over the classes (mAP), where several may apply to an image

    @property
    def score(self) -> float:
        """What tells a better model: the mean average precision where there is one, otherwise the accuracy."""
        return self.accuracy if self.average_precision is None else self.average_precision


def better(one: Metrics, other: Metrics) -> bool:
    """Whether a validation is better than another: by its score, and where that is the same by its loss."""
    return (one.score, -one.loss) > (other.score, -other.loss)


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase of the strategy begins with this epoch, counted from 0."""

    epoch: int
    phase: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass over a part of the data has come; the metrics run from its start to the last fetch."""

    part: str  # "train", "val" or "test"
    epoch: int
    step: int
    steps: int
    metrics: Metrics
    seconds: float


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step was taken, or a batch evaluated. Between two events the state is whole: a run can be saved here."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """What the model made of images of a part that follow each other, as it was judged."""

    part: str  # "val" or "test"
    first: int  # the place of the first image in its part; 0: the part is read from its start
    logits: Array  # [n, classes], in the precision of the run, or float64 where a head was fitted


@dataclass(frozen=True, slots=True)
class Extracted:
    """How many images of a part the features were taken of, for a fit."""

    part: str
    images: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Tried:
    """A value that a fit tried, with the metrics of the validation part where there is one."""

    value: float
    val: Metrics | None = None
    iterations: int | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """What was chosen in place of training by steps: C of a logistic regression, or the number of neighbours."""

    name: str  # "C" or "neighbors"
    value: float
    tried: tuple[Tried, ...]
    seconds: float  # without the extraction of the features
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} = {self.value:.3g}"


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """An epoch was trained and, if there is a validation part, evaluated; or the head was fitted in its place."""

    epoch: int  # counted from 0
    phase: str
    train: Metrics
    val: Metrics | None
    lr: tuple[float, ...]  # of each group, at the last step
    seconds: float  # of training alone
    best: bool  # these are the best values so far
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class FeaturesKept:
    """The output of the frozen part is computed once and cached; or it has no room, and `where` is empty."""

    part: str
    boundary: str  # the module that it enters
    images: int
    variants: int  # of each image, by augmentation
    size: int  # bytes, once all variants have come up
    where: str  # "memory", "disk" or ""
    earlier: int = 0  # rows of this network that earlier runs left

    def __str__(self) -> str:
        size = f"{self.size / 1e9:.1f} GB" if self.size >= 1e9 else f"{self.size / 1e6:.1f} MB"
        images = f"{self.images} {self.part} images" + (f" in {self.variants} variants" if self.variants > 1 else "")
        if not self.where:
            return f"what enters {self.boundary} is not cached: {images} take {size}, more than half of the free disk"
        earlier = f"; earlier runs left {self.earlier:,} rows" if self.earlier else ""
        return f"what enters {self.boundary} is computed once and cached: {images}, {size} ({self.where}){earlier}"


@dataclass(frozen=True, slots=True)
class FeaturesNotKept:
    """The output of the frozen part is not cached, though it could be where images come again."""

    why: str
    later: bool = False  # it is cached for this run, and not kept for later ones

    def __str__(self) -> str:
        return f"features are not {'kept for later runs' if self.later else 'cached'}: {self.why}"


Event = PhaseStarted | FeaturesKept | FeaturesNotKept | Extracted | Progress | Evaluated | Stepped | EpochEnded


class Meter:
    """Sums lazy losses and counts, and waits for the device at most once every `FETCH_SECONDS`.

    With a channel to other processes, of which each adds what it computed of a step, the sums are over all of them.
    """

    def __init__(
        self,
        backend: Backend,
        model: Model,
        part: str,
        epoch: int,
        steps: int,
        channel: Channel = Alone(),  # noqa: B008
    ) -> None:
        self.backend, self.model, self.part, self.epoch, self.steps = backend, model, part, epoch, steps
        self.channel, self.divided = channel, False  # whether a step's losses come in an order that may be another
        self.pending: list[tuple[int, Lazy, Lazy]] = []  # step, loss and correct count of each part of a batch
        self.waiting: list[Lazy] = []  # logits of an evaluation
        self.outputs: list[Array] = []  # those that came, until they are `taken`
        self.reported = 0  # images whose logits were taken
        self.judged: list[tuple[Array, Array]] = []  # logits and labels, where several may apply
        self.labels: list[Array] = []  # of logits that are not fetched yet
        self.loss, self.correct, self.images, self.step = 0.0, 0, 0, 0
        self.earlier = 0.0  # seconds of this pass before the process that runs now
        self.started = self.fetched = time.perf_counter()

    def add(
        self,
        results: list[tuple[Lazy, Lazy]],
        images: int,
        logits: Lazy | None = None,
        labels: Array | None = None,
    ) -> Iterator[Progress | Evaluated]:
        """Take one step's losses and counts, one pair for each part of its batch; yields progress from time to time.

        With the logits of an evaluation, also these, as they come from the device. Several labels, [n, classes], are
        kept with them, because average precision is of all images of a part.
        """
        self.step += 1
        self.images += images
        self.pending += [(self.step, loss, correct) for loss, correct in results]
        self.waiting += [] if logits is None else [logits]
        if labels is not None and labels.ndim == 2:
            self.labels.append(labels)
        full = bool(self.waiting) and self.images - self.reported >= WAITING
        due = full or self.step == self.steps or time.perf_counter() - self.fetched > FETCH_SECONDS
        if highest(self.channel, int(due)):
            yield self.progress()
            yield from self._taken()

    def add_values(self, loss: float, correct: int, logits: Array, labels: Array) -> Iterator[Progress | Evaluated]:
        """Take a batch of an evaluation that was fetched already."""
        self.step += 1
        self.images += len(logits)
        self._count(self.step, [loss], correct)
        self.outputs.append(logits)
        if labels.ndim == 2:
            self.judged.append((logits, labels))
        if self.step == self.steps or time.perf_counter() - self.fetched > FETCH_SECONDS:
            yield self.progress()
            yield from self._taken()

    def progress(self) -> Progress:
        """Wait for the device, and report how far this pass has come."""
        self.fetch()
        return Progress(self.part, self.epoch, self.step, self.steps, self.metrics(), self.seconds)

    def fetch(self) -> None:
        """Wait for the device; TlxError names the step whose loss is not finite, and the parameter that may be why."""
        values = self.backend.fetch([lazy for _, loss, correct in self.pending for lazy in (loss, correct)])
        rows = [(step, float(values[2 * i]), int(values[2 * i + 1])) for i, (step, _, _) in enumerate(self.pending)]
        for step, (losses, correct) in _by_step(self.channel, rows).items():
            self._count(step, losses, correct)
        fetched = self.backend.fetch(self.waiting) if self.waiting else []
        self.outputs += fetched
        if self.labels:
            self.judged += zip(fetched, self.labels, strict=True)
            self.labels = []
        self.pending, self.waiting = [], []
        self.fetched = time.perf_counter()

    def _count(self, step: int, losses: list[float], correct: int) -> None:
        for loss in losses:
            if not math.isfinite(loss):
                where = f"in epoch {self.epoch + 1}, step {step} of {self.steps}"
                arrays, specs = self.backend.dump_arrays(self.model), self.backend.param_specs(self.model)
                raise not_finite(f"The {self.part} loss is {loss} {where}", arrays, specs)
            self.loss += 0.0 if self.divided else loss
        self.loss += math.fsum(losses) if self.divided else 0.0  # which is the same in any order
        self.correct += correct

    def _taken(self) -> Iterator[Evaluated]:
        outputs, self.outputs = self.outputs, []
        for logits in outputs:
            yield Evaluated(self.part, self.reported, logits)
            self.reported += len(logits)

    @property
    def seconds(self) -> float:
        """Seconds that this pass has taken, also in an earlier process of the same run."""
        return self.earlier + self.fetched - self.started

    def metrics(self) -> Metrics:
        """Return the metrics over all images up to the last fetch."""
        ranked = None
        if self.judged and self.step == self.steps:
            logits, labels = (np.concatenate(column) for column in zip(*self.judged, strict=True))
            ranked = mean_average_precision(logits, labels)
        return Metrics(self.loss / self.images, self.correct / self.images, self.images, ranked)


def _by_step(channel: Channel, rows: list[tuple[int, float, int]]) -> dict[int, tuple[list[float], int]]:
    """Return the losses and the correct count of each step, over all processes."""
    parts = channel.gather(np.array(rows, "<f8").tobytes())  # float64 holds these numbers exactly
    steps: dict[int, tuple[list[float], int]] = {}
    for step, loss, correct in (row for part in parts for row in np.frombuffer(part, "<f8").reshape(-1, 3)):
        losses, count = steps.get(int(step), ([], 0))
        steps[int(step)] = [*losses, float(loss)], count + int(correct)
    return steps


def check_finite(arrays: Arrays, specs: Sequence[ParamSpec], when: str) -> None:
    """Raise TlxError, naming the first of some arrays that holds a NaN or an infinity; see `first_not_finite`."""
    if first_not_finite(arrays, specs) is not None:
        raise not_finite(f"Training has gone wrong {when}", arrays, specs)


def not_finite(problem: str, arrays: Arrays, specs: Sequence[ParamSpec]) -> TlxError:
    """Return the error for numbers that are not finite; it names the first of the model's arrays that holds such."""
    if (name := first_not_finite(arrays, specs)) is not None:
        cause = f"{name!r} holds numbers that are not finite"
    else:
        finite = {name: array[np.isfinite(array)] for name, array in arrays.items()}  # without the bounds of a mask
        largest = {name: float(np.abs(array).max()) for name, array in finite.items() if array.size}
        name = max(largest, key=lambda name: largest[name])
        cause = f"all weights are finite, the largest is {largest[name]:.3g} in {name!r}"
    return TlxError(
        f"{problem}: {cause}", fix="lower lr, or add warmup or clip_norm; use precision float32 if it was bfloat16"
    )
