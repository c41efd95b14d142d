"""What is measured on the way, and the events that tell of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tlx.backend import Backend, Lazy
from tlx.errors import TlxError

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
class Stepped:
    """A step was taken, or a batch evaluated. Between two events the state is whole: a run can be saved here."""


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


@dataclass(frozen=True, slots=True)
class FeaturesKept:
    """What enters the part that trains is computed once and kept, or would not fit (`where` is empty)."""

    part: str
    cut: str
    images: int
    versions: int
    size: int  # bytes, when all versions have come up
    where: str  # "memory", "disk" or ""
    earlier: int = 0  # rows of this network that earlier runs left

    def __str__(self) -> str:
        size = f"{self.size / 1e9:.1f} GB" if self.size >= 1e9 else f"{self.size / 1e6:.1f} MB"
        each = f"{self.images} {self.part} images" + (f" in {self.versions} versions" if self.versions > 1 else "")
        if not self.where:
            return f"what enters {self.cut} is not kept: {size} for {each} is more than half of the free disk"
        earlier = f"; earlier runs left {self.earlier:,}" if self.earlier else ""
        return f"what enters {self.cut} is computed once and kept: {each}, {size} ({self.where}){earlier}"


Event = PhaseStarted | FeaturesKept | Progress | Stepped | EpochEnded


class Meter:
    """Sums lazy losses and counts, and waits for the device at most once every `FETCH_SECONDS`."""

    def __init__(self, backend: Backend, part: str, epoch: int, steps: int) -> None:
        self.backend, self.part, self.epoch, self.steps = backend, part, epoch, steps
        self.pending: list[tuple[int, list[Lazy]]] = []  # step -> loss and count of each of its parts
        self.loss, self.correct, self.images, self.step = 0.0, 0, 0, 0
        self.earlier = 0.0  # seconds of this pass before the process that runs now
        self.started = self.fetched = time.perf_counter()

    def add(self, lazies: list[Lazy], images: int) -> Iterator[Progress]:
        """Take one step's results; yields progress when it is time to look."""
        self.step += 1
        self.images += images
        self.pending.append((self.step, lazies))
        if self.step == self.steps or time.perf_counter() - self.fetched > FETCH_SECONDS:
            yield self.progress()

    def progress(self) -> Progress:
        self.fetch()
        return Progress(self.part, self.epoch, self.step, self.steps, self.metrics(), self.seconds)

    def fetch(self) -> None:
        """Wait for the device; TlxError names the step whose loss is not finite."""
        values = iter(self.backend.fetch([lazy for _, lazies in self.pending for lazy in lazies]))
        for step, lazies in self.pending:
            for _ in lazies[::2]:
                loss = float(next(values))
                if not math.isfinite(loss):
                    raise TlxError(
                        f"The {self.part} loss is {loss} in epoch {self.epoch + 1}, step {step} of {self.steps}. "
                        "Lower lr, or add warmup or clip_norm; with precision float32 if it was bfloat16."
                    )
                self.loss += loss
                self.correct += int(next(values))
        self.pending = []
        self.fetched = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.earlier + self.fetched - self.started

    def metrics(self) -> Metrics:
        return Metrics(self.loss / self.images, self.correct / self.images, self.images)
