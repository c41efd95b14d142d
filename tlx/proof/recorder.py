"""Recorders around the production step: a backend and a loader that pass everything on and write down what passed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from tlx.backend import Batch, Handle, Hyper, Lazy, Model, Preprocess
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
    """Writes one record a step: loss, count, scalars, events; with `values`, sketches of model and optimizer."""

    def __init__(self, inner: Any, writer: Writer, stage: str, values: bool = True) -> None:
        """Record what `inner` does below the key `stage`, such as "P6"."""
        super().__init__(inner)
        self.writer, self.stage, self.values = writer, stage, values
        self.step = 0
        self.events: list[str] = []
        self.lazies: list[Lazy] = []
        self.hyper: Sequence[Hyper] = ()
        self.phase: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        """Note how many arrays and norm layers change, unless this is the first phase."""
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
        if self.hyper and [h.lr for h in values] != [h.lr for h in self.hyper]:
            self.events.append("the learning rate changes")
        self.inner.set_hyper(optimizer, values)
        self.hyper = tuple(values)

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        """Keep loss and count for the step's record."""
        metrics: tuple[Lazy, Lazy] = self.inner.backward(model, batch, scale)
        self.lazies += metrics
        return metrics

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        """Write the step's record."""
        self.inner.update(model, optimizer, max_norm)
        fetched = self.inner.fetch(self.lazies)
        facts: dict[str, Any] = {
            "step": self.step,
            "loss": float(sum(float(x) for x in fetched[::2])).hex(),
            "correct": sum(int(x) for x in fetched[1::2]),
            "hyper": [[h.lr.hex(), h.weight_decay.hex()] for h in self.hyper],
            "events": self.events,
        }
        arrays = {}
        if self.values:
            facts["values"], arrays["values"] = bundle(self.inner.dump_arrays(model))
            facts["slots"], arrays["slots"] = bundle(self.inner.dump_optimizer(optimizer))
        self.writer.add(f"{self.stage}/{self.step:04d}", facts, arrays)
        self.step += 1
        self.lazies, self.events = [], []


class RecordedLoader(Proxy):
    """Writes every batch down: what it held, by hash, and its pixels, so that another backend can be fed the same."""

    def __init__(self, inner: Any, writer: Writer, part: str = "train") -> None:
        """Record what `inner` yields; `part` is "train" or "test"."""
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
                "size": batch.preprocess.size,
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
        if record.facts["size"] != recipe.image_size or max(labels) >= len(reference.manifest["must"]["classes"]):
            problem = f"{reference.folder}: {record.key}: another size than the recipe's, or an unknown label"
            raise TlxError(problem, fix="capture anew")


class ServedLoader:
    """Serves the batches that another capture wrote down."""

    def __init__(self, reference: Any, part: str) -> None:
        """Serve a part, "train" or "test", of the capture `reference`."""
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
                preprocess=Preprocess(facts["size"]),
                key=(seed, step, row),
                targets=arrays.get("targets"),
            )
