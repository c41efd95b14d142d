"""Any number of images through the model of a finished run: decoded in threads, ahead of the device."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from tlx.backend import Array, Backend, Batch, Lazy, Preprocess
from tlx.data.framing import Framing
from tlx.data.loader import ahead
from tlx.errors import DataError, DataNotFound, TlxError, closest, shown
from tlx.recipe import Recipe
from tlx.runs.display import Display
from tlx.runs.inputs import Input

LISTED = 10  # bad images that an error spells out before it counts

Tta = Literal["none", "hflip"]
Pixels = NDArray[np.uint8]
Logits = NDArray[np.float64]
Outcome = tuple[Input, Logits | DataError]  # the logits [classes] of an image, or why it cannot be read


class Network(Protocol):
    """What images pass through: a finished run, or what gives their embeddings."""

    @property
    def run_dir(self) -> Path:
        """Names it in errors."""

    @property
    def recipe(self) -> Recipe:
        """The size of a batch, and how many threads decode."""

    @property
    def backend(self) -> Backend:
        """Where it computes."""

    @property
    def preprocess(self) -> Preprocess:
        """What the device does to the pixels."""

    @property
    def framing(self) -> Framing:
        """What the host does to them."""

    def outputs(self, batch: Batch) -> Lazy:
        """Start a batch on the device."""

    def logits(self, outputs: Array) -> Array:
        """Return a row for each image of fetched outputs."""


def check_tta(tta: Any) -> Tta:
    """Return a kind of test-time augmentation; raises TlxError where there is none of that name."""
    known: tuple[Tta, ...] = get_args(Tta)
    if not isinstance(tta, str) or tta not in known:
        raise TlxError(f"Unknown tta {shown(tta)}.{closest(str(tta), known)}")
    return next(name for name in known if name == tta)


def classify(
    run: Network, inputs: Iterable[Input], tta: Tta = "none", *, several: bool = False
) -> Generator[list[Outcome], None, None]:
    """Return the logits of images in their order, batch by batch, from the very pixels that evaluation sees.

    With test-time augmentation "hflip" they are those of the mean of two probabilities: those of the image, and those
    of its mirror image, left to right. Softmax of them is that mean, or sigmoid where an image may have `several`
    labels.

    Raises:
        TlxError: the model's outputs are not finite.
    """

    def read(item: Input) -> tuple[Input, Pixels | DataError]:
        try:
            return item, run.framing.pixels(item.open)
        except DataError as error:
            return item, error

    rest = iter(inputs)
    chunks = iter(lambda: list(islice(rest, run.recipe.batch_size)), [])
    before: _Started | None = None
    with closing(ahead(read, chunks, run.recipe.workers)) as decoded:
        for chunk in decoded:
            started = _Started(run, chunk, tta, several)
            if before is not None:  # the device computes the next batch while the caller uses this one
                yield before.outcomes()
            before = started
    if before is not None:
        yield before.outcomes()


class _Started:
    """A chunk on the device: one batch of all images that are equal in size, which they are after resizing."""

    def __init__(self, run: Network, chunk: list[tuple[Input, Pixels | DataError]], tta: Tta, several: bool) -> None:
        self.run, self.chunk, self.mean = run, chunk, averaged_of_several if several else averaged
        self.places: list[list[int]] = []
        lazies: list[tuple[Lazy, ...]] = []  # of each size: the logits of the images, and of what tta makes of them
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, (_, pixels) in enumerate(chunk):
            if not isinstance(pixels, DataError):
                by_size.setdefault(pixels.shape, []).append(place)
        for places in by_size.values():
            images = np.ascontiguousarray(np.stack([np.asarray(chunk[place][1]) for place in places]))
            mirrored = (np.ascontiguousarray(images[..., ::-1]),) if tta == "hflip" else ()
            lazies.append(tuple(self._outputs(views, places) for views in (images, *mirrored)))
            self.places.append(places)
        self.lazies = lazies

    def _outputs(self, images: Pixels, places: list[int]) -> Lazy:
        labels = np.zeros(len(places), dtype=np.int64)
        return self.run.outputs(Batch(images, labels, np.array(places, dtype=np.int64), self.run.preprocess))

    def outcomes(self) -> list[Outcome]:
        """Wait for the device."""
        rows: dict[int, Logits] = {}
        fetched = iter(self.run.backend.fetch([lazy for views in self.lazies for lazy in views]))
        for places, views in zip(self.places, self.lazies, strict=True):
            names = [self.chunk[place][0].name for place in places]
            logits = [finite(self.run.logits(next(fetched)), self.run, names) for _ in views]
            rows.update(zip(places, logits[0] if len(logits) == 1 else self.mean(*logits), strict=True))
        return [
            (item, pixels if isinstance(pixels, DataError) else rows[place])
            for place, (item, pixels) in enumerate(self.chunk)
        ]


def finite(logits: NDArray[Any], run: Network, names: Sequence[str]) -> Logits:
    """Return a row for each of the images `names` in float64; raises TlxError, which names one, if not all are finite.

    Args:
        logits: what was fetched, [N, classes].
        run: what computed it.
        names: of the images.
    """
    good = np.isfinite(logits).all(axis=1)
    if not good.all():
        raise TlxError(f"{run.run_dir}: the model's outputs are not finite for {names[int(good.argmin())]}")
    return logits.astype(np.float64)


def averaged(first: Logits, second: Logits) -> Logits:
    """Return the logarithm of the mean of two probabilities, from their logits [N, classes]."""
    return np.asarray(np.logaddexp(_log_softmax(first), _log_softmax(second)) - np.log(2.0))


def averaged_of_several(first: Logits, second: Logits) -> Logits:
    """Return the logits whose sigmoid is the mean of those of two logits, [N, classes]."""
    applies, not_so = (np.logaddexp(-_softplus(-s * first), -_softplus(-s * second)) for s in (1, -1))
    return np.asarray(applies - not_so)


def _softplus(values: Logits) -> Logits:
    return np.asarray(np.logaddexp(0.0, values))


def _log_softmax(logits: Logits) -> Logits:
    above = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(above - np.log(np.exp(above).sum(axis=1, keepdims=True)))


class BadImages:
    """Counts the images that cannot be read, and says which: one by one, or in the error where none can."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.count = self.missing = 0
        self.names: list[str] = []  # of the first
        self.problems: list[str] = []
        self.unsaid: list[str] = []

    def add(self, item: Input, error: DataError) -> None:
        """Count one. It is said once another image could be read, or there are many."""
        self.count += 1
        self.missing += isinstance(error, DataNotFound)
        problem = error.problem.rstrip(".")
        if self.count <= LISTED:
            self.names.append(item.name)
            self.problems.append(problem)
        self.unsaid.append(problem)
        if self.count > LISTED:
            self.say()

    def say(self) -> None:
        """Say which cannot be read, and why."""
        for problem in self.unsaid:
            self.display.say(f"not read: {problem}")
        self.unsaid = []

    def conclude(self, images: int, allowed: bool = True) -> None:
        """Say how many of the images cannot be read; DataError where that is all of them, or none is `allowed`."""
        if not self.count:
            return
        more = f"; and {self.count - LISTED} more" if self.count > LISTED else ""
        if self.missing == images == 1:
            raise DataNotFound(self.problems[0])
        if self.missing == images:
            raise DataNotFound(f"{images} of the images do not exist: {', '.join(self.names)}{more}")
        if self.count == images or not allowed:
            listed = "; ".join(self.problems)
            raise DataError(
                f"{self.count} of {images} images cannot be read: {listed}{more}", fix="replace or remove them"
            )
        self.say()
        self.display.say(f"{self.count} of {images} images cannot be read")
