"""Recorders around the production step: a backend and a loader that pass everything on and write down what passed."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tlx.backend import Array, Arrays, Batch, Handle, Hyper, Lazy, Model, Preprocess
from tlx.errors import TlxError
from tlx.proof.artifact import Capture, Writer
from tlx.proof.measure import bundle, sha256
from tlx.recipe import Recipe


class Proxy:
    """Passes every call on to another backend or loader; what a subclass defines comes first."""

    def __init__(self, inner: Any) -> None:
        """Stand in front of `inner`."""
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """Return what the inner one has."""
        if name == "inner":  # not there yet, as while it is copied
            raise AttributeError(name)
        return getattr(self.inner, name)


class Recorder(Proxy):
    """Writes one record a step: loss, count, scalars, events, and sketches of model and optimizer.

    The production loop runs through it from beginning to end. Steps that are not selected are not taken: the loop goes
    on with the last metrics, and with what an earlier run measured on the validation part.
    """

    def __init__(
        self,
        inner: Any,
        writer: Writer,
        stage: str,
        *,
        values: Container[int] | None = None,
        gradients: bool = False,
        averaged: bool = False,
        selected: Container[int] | None = None,
        before: Callable[[int], Mapping[str, Any]] = lambda step: {},
        validated: Sequence[tuple[Array, Array]] | None = None,
    ) -> None:
        """Record what `inner` does below the key `stage`.

        Args:
            inner: the backend.
            writer: of the capture.
            stage: such as "P6".
            values: the steps after which sketches of what model and optimizer hold are written; None: all.
            gradients: also of the gradients that the step adds up, before they are clipped.
            averaged: a moving average follows each update, and is part of the step.
            selected: the steps that are taken; None: all.
            before: is called with the number of each selected step before anything of it happens, also a change of the
                phase. The facts that it returns belong to the step's record.
            validated: what an earlier run measured on the validation part, in its order; None: measure it.
        """
        super().__init__(inner)
        self.writer, self.stage, self.values, self.with_gradients = writer, stage, values, gradients
        self.averaged, self.selected, self.before = averaged, selected, before
        self.validated = None if validated is None else iter(validated)
        self.measured: list[Lazy] = []  # on the validation part: loss and count of each batch
        self.step, self.begun = 0, -1
        self.events: list[str] = []
        self.metrics: tuple[Lazy, Lazy]
        self.facts: dict[str, Any] = {}  # of the step under way
        self.arrays: dict[str, Array] = {}
        self.lazies: list[Lazy] = []
        self.hyper: Sequence[Hyper] = ()
        self.phase: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())

    @property
    def taken(self) -> bool:
        """Whether the step under way is one of the selected."""
        return self.selected is None or self.step in self.selected

    @property
    def sketched(self) -> bool:
        """Whether values are written after the step under way."""
        return self.values is None or self.step in self.values

    def _begin(self) -> None:
        if self.taken and self.begun != self.step:
            self.begun = self.step
            self.facts, self.arrays, self.lazies = {"scales": [], **self.before(self.step)}, {}, []

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        """Note how many arrays and norm layers change, unless this is the first phase."""
        self._begin()
        before, norms = self.phase
        self.inner.set_phase(model, trainable, batch_norm)
        self.phase = (trainable, batch_norm)
        for names, one, several in (
            (trainable - before, "array unfreezes", "arrays unfreeze"),
            (before - trainable, "array freezes", "arrays freeze"),
            (batch_norm - norms, "norm layer begins to adapt", "norm layers begin to adapt"),
            (norms - batch_norm, "norm layer stops adapting", "norm layers stop adapting"),
        ):
            if names and self.step:
                self.events.append(f"{len(names)} {one if len(names) == 1 else several}")

    def set_hyper(self, optimizer: Handle, values: Sequence[Hyper]) -> None:
        """Note a change of the learning rate, and the values for the next step's record."""
        self._begin()
        if self.hyper and [h.lr for h in values] != [h.lr for h in self.hyper]:
            self.events.append("the learning rate changes")
        self.inner.set_hyper(optimizer, values)
        self.hyper = tuple(values)

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        """Keep loss, count and scale for the step's record."""
        if self.taken:
            self.metrics = self.inner.backward(model, batch, scale)
            self.lazies += self.metrics
            self.facts["scales"].append(float(scale).hex())
        return self.metrics

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        """Write the step's record, unless a moving average is still to follow."""
        if self.taken:
            self.facts["max_norm"] = None if max_norm is None else float(max_norm).hex()
            if self.with_gradients:
                self._sketch("gradients", self.inner.probe(model).gradients())
            self.inner.update(model, optimizer, max_norm)
            if self.sketched:
                self._sketch("values", self.inner.dump_arrays(model))
                self._sketch("slots", self.inner.dump_optimizer(optimizer))
        if not self.averaged:
            self._end()

    def average(self, shadow: Model, model: Model, weight: float) -> None:
        """Write the step's record, with the moving average."""
        if self.taken:
            self.inner.average(shadow, model, weight)
            if self.sketched:
                self._sketch("average", self.inner.dump_arrays(shadow))
        self._end()

    def evaluate(self, model: Model, batch: Handle) -> tuple[Lazy, Lazy, Lazy]:
        """Measure on the validation part, or return what was measured before, which is without the logits."""
        if self.validated is not None and (before := next(self.validated, None)) is not None:
            return (*before, np.zeros((0, 0)))
        loss, correct, logits = self.inner.evaluate(model, batch)
        self.measured += [loss, correct]
        return loss, correct, logits

    def fetch(self, lazies: Sequence[Lazy]) -> list[Array]:
        """Fetch what is lazy; what was measured before is there already."""
        there = all(isinstance(lazy, np.ndarray) for lazy in lazies)
        fetched: list[Array] = list(lazies) if there else self.inner.fetch(lazies)
        return fetched

    def _sketch(self, kind: str, arrays: Arrays) -> None:
        self.facts[kind], self.arrays[kind] = bundle(arrays)

    def _end(self) -> None:
        if self.taken:
            fetched = self.inner.fetch(self.lazies)
            facts: dict[str, Any] = {
                "step": self.step,
                "loss": float(sum(float(x) for x in fetched[::2])).hex(),
                "correct": sum(int(x) for x in fetched[1::2]),
                "hyper": [[h.lr.hex(), h.weight_decay.hex()] for h in self.hyper],
                "events": self.events,
                **self.facts,
            }
            self.writer.add(f"{self.stage}/{self.step:04d}", facts, self.arrays)
            self.arrays = {}
        self.step, self.events = self.step + 1, []


class RecordedLoader(Proxy):
    """Writes every batch down: what it held, by hash, and its pixels, so that another backend can be fed the same."""

    def __init__(self, inner: Any, writer: Writer, part: str = "train") -> None:
        """Record what `inner` yields; `part` is "train", "val" or "test"."""
        super().__init__(inner)
        self.writer, self.part = writer, part

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from the batch `start` on."""
        for number, batch in enumerate(self.inner.epoch(epoch, start), start):
            facts = {
                "epoch": epoch,
                "batch": number,
                "indices": batch.indices.tolist(),
                "labels": batch.labels.tolist(),
                "stream": list(batch.key),
                "pixels": sha256(batch.images),
                "targets": None if batch.targets is None else sha256(batch.targets),
                **asdict(batch.preprocess),
            }
            arrays = {"images": batch.images}
            if batch.targets is not None:
                arrays["targets"] = batch.targets
            self.writer.add(f"P2/{self.part}/{epoch:04d}/{number:04d}", facts, arrays)
            yield batch


def check_served(reference: Capture, recipe: Recipe) -> None:
    """Raise TlxError unless a capture holds a recipe's batches, as long as it trains and as large as its images."""
    epochs = {record.key.split("/")[2] for record in reference.stage("P2/train")}
    expected = {f"{epoch:04d}" for epoch in range(min(recipe.epochs, len(epochs) + 1))}
    if epochs != expected or not reference.stage("P2/test/0000"):
        raise TlxError(f"{reference.folder}: lacks batches of some of its {recipe.epochs} epochs", fix="capture anew")
    for record in reference.stage("P2"):
        images, labels = record.array("images"), record.facts["labels"]
        fits = images is not None and images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] == 3
        if not (fits and images is not None and len(images) == len(labels) == len(record.facts["indices"]) > 0):
            raise TlxError(f"{reference.folder}: {record.key}: images do not fit their labels", fix="capture anew")
        last = len(reference.manifest["must"]["classes"]) - 1
        unknown = len(labels[0]) != last + 1 if isinstance(labels[0], list) else max(labels) > last
        if record.facts["size"] != recipe.pixels.size or unknown:
            problem = f"{reference.folder}: {record.key}: another size than the recipe's, or an unknown label"
            raise TlxError(problem, fix="capture anew")


def _preprocess(facts: Mapping[str, Any]) -> Preprocess:
    """How a batch that was written down enters the network; to an earlier tlx all did as ImageNet's, bilinearly."""
    given = {name: facts[name] for name in ("mean", "std", "interpolation") if name in facts}
    return Preprocess(facts["size"], **given)


class ServedLoader:
    """Serves the batches that another capture wrote down."""

    def __init__(self, reference: Any, part: str) -> None:
        """Serve a part, "train", "val" or "test", of the capture `reference`."""
        self.reference, self.part = reference, part
        self.steps = len(reference.stage(f"P2/{part}/0000"))

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from the batch `start` on."""
        for record in self.reference.stage(f"P2/{self.part}/{epoch:04d}")[start:]:
            facts, arrays = record.facts, record.arrays()
            seed, step, row = facts["stream"]
            yield Batch(
                images=arrays["images"],
                labels=np.array(facts["labels"], dtype=np.int64),
                indices=np.array(facts["indices"], dtype=np.int64),
                preprocess=_preprocess(facts),
                key=(seed, step, row),
                targets=arrays.get("targets"),
            )
