"""The counters of a saved run, which lie as metadata beside its values, read as values that are checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlx.errors import TlxError
from tlx.runs.facts import Facts, parse_object
from tlx.training.loop import Training
from tlx.training.metrics import EpochEnded, Meter, Metrics

# Version 1, of tlx 0.1.0, held the history, and a digest of the arrays, and a fingerprint that saw no contents. Up to
# version 2 a dropout that a pass calls several times dropped the same each time, and one in a module without parameters
# dropped nothing.
VERSION = 3
_FIX = "start the run again"
_LOSS = 1e300  # losses are finite; sums of several stay so
_SECONDS = 1e12  # of an epoch; the clock has a finer step than the least of them
_RATE = 1e12  # of learning


@dataclass(frozen=True, slots=True)
class SavedMeter:
    """How far the epoch under way has come: sums over its images, and the seconds that it has taken."""

    loss: float
    correct: int
    images: int
    step: int
    seconds: float

    def put_into(self, meter: Meter) -> Meter:
        """Go on with these sums."""
        meter.loss, meter.correct, meter.images, meter.step = self.loss, self.correct, self.images, self.step
        meter.earlier = self.seconds
        return meter


@dataclass(frozen=True, slots=True)
class Saved:
    """Where a saved run stands, beside its values."""

    where: str
    history: list[EpochEnded]
    step: int
    meter: SavedMeter | None
    frozen: dict[str, str]
    data: str  # the fingerprint
    sha256: str | None  # of the values; None where the run's manifest holds the digest
    redraws: bool  # of an earlier tlx, which drew some masks otherwise

    def check(self, training: Training) -> None:
        """Raise TlxError where the counters contradict each other, or what trains now."""
        if self.redraws and (paths := getattr(training.model, "redrawn", ())):
            raise TlxError(
                f"{self.where} is of an earlier tlx, which drew other masks for dropout {paths[0]!r}: the same for all "
                "its calls in a pass, or none in a module without parameters",
                fix=_FIX,
            )
        steps, epochs = training.loader.steps, training.plan.schedule.epochs
        under_way = self.step - len(self.history) * steps
        names = {spec.name for spec in training.backend.param_specs(training.model)}
        no_validation = {epoch.val is None for epoch in self.history} - {training.val is None}
        if (0 if self.meter is None else self.meter.step) != under_way or not 0 <= under_way <= steps:
            problem = f"step {self.step} does not follow {len(self.history)} epochs of {steps} steps"
        elif len(self.history) > epochs or (self.meter is not None and len(self.history) == epochs):
            problem = f"it has {len(self.history)} epochs of {epochs}"
        elif no_validation:
            problem = "its epochs have a validation where the data has none, or none where it has one"
        elif self.history and not self.history[0].best:
            problem = "its first epoch was not the best so far"
        elif unknown := sorted(self.frozen.keys() - names):
            problem = f"it names frozen arrays that the model lacks, such as {unknown[0][:60]!r}"
        else:
            return
        raise TlxError(f"{self.where} is damaged, or of another recipe: {problem}", fix=_FIX)


def parse(content: bytes, path: Path, history: list[EpochEnded]) -> Saved:
    """Read the counters from the header of the state at `path`; TlxError where they are damaged.

    `history` is that of the run's history.jsonl; a state of tlx 0.1.0 holds its own.
    """
    length = int.from_bytes(content[:8], "little")  # of the header of a .safetensors file, which is JSON
    header = Facts(str(path), parse_object(content[8 : 8 + length], str(path), _FIX), _FIX)
    facts = Facts(str(path), parse_object(header.inner("__metadata__").text("tlx"), str(path), _FIX), _FIX)
    if (version := facts.whole("version", 1)) > VERSION:
        raise TlxError(f"{path} was written by a newer tlx; upgrade tlx to resume it")
    frozen = facts.inner("frozen")
    if "meter" not in facts.values:
        raise facts.wrong("meter", "")
    return Saved(
        where=str(path),
        history=[_epoch(e, i) for i, e in enumerate(facts.inners("history"))] if version == 1 else history,
        step=facts.whole("step"),
        meter=_meter(facts.inner("meter")) if facts.has("meter") else None,
        frozen={name: frozen.text(name) for name in frozen.values},
        data=facts.text("data"),
        sha256=facts.text("sha256") if version == 1 else None,
        redraws=version < 3,
    )


def parse_history(content: bytes, path: Path) -> list[EpochEnded]:
    """Read the lines of a history.jsonl; TlxError where one is no epoch."""
    return [
        _line(Facts(str(path), parse_object(line, str(path), _FIX), _FIX, f"line {number + 1}: "), number)
        for number, line in enumerate(content.splitlines())
    ]


def _line(values: Facts, number: int) -> EpochEnded:
    metrics: list[Metrics | None] = []
    for part in ("train", "val"):
        loss = f"{part}_loss"
        if loss not in values.values:
            raise values.wrong(loss, "")
        there = part == "train" or values.has(loss)
        metrics.append(_figures(values, f"{part}_") if there else None)
    train, val = metrics
    assert train is not None
    return EpochEnded(epoch=values.whole("epoch", number + 1, number + 1) - 1, train=train, val=val, **_common(values))


def _epoch(values: Facts, number: int) -> EpochEnded:
    if "val" not in values.values:
        raise values.wrong("val", "")
    return EpochEnded(
        epoch=values.whole("epoch", number, number),
        train=_figures(values.inner("train")),
        val=_figures(values.inner("val")) if values.has("val") else None,
        **_common(values),
    )


def _common(values: Facts) -> dict[str, Any]:
    return {
        "phase": values.text("phase"),
        "lr": values.reals("lr", 0, _RATE),
        "seconds": values.real("seconds", 1 / _SECONDS, _SECONDS),
        "best": values.flag("best"),
    }


def _figures(values: Facts, prefix: str = "") -> Metrics:
    loss, accuracy = values.real(f"{prefix}loss", -_LOSS, _LOSS), values.real(f"{prefix}accuracy", 0, 1)
    name = f"{prefix}average_precision"
    ranked = values.real(name, 0, 1) if values.has(name) else None
    return Metrics(loss, accuracy, values.whole(f"{prefix}images", 1), ranked)


def _meter(values: Facts) -> SavedMeter:
    images = values.whole("images", 1)
    return SavedMeter(
        loss=values.real("loss", -_LOSS, _LOSS),
        correct=values.whole("correct", 0, images),
        images=images,
        step=values.whole("step", 1),
        seconds=values.real("earlier", 0, _SECONDS),
    )
