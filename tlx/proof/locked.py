"""P6's recording: the production loop run free, and single steps of it from the reference's own states.

Training amplifies rounding by as much as the network and the optimizer make it. So the reference also shows its own
scatter: it runs free again from initial values that are one float64 unit in the last place off, and takes each selected
step again from a state that is so. Every run is the production loop from beginning to end, so that its phases, rates,
parts of a batch, clipping and average are those of training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from tlx import rng
from tlx.backend import Array, Backend
from tlx.backend.protocol import FLOAT32_MAX
from tlx.errors import FrozenMovedError, TlxError
from tlx.proof.artifact import Capture, Record, Writer
from tlx.proof.measure import bundle, sha256
from tlx.proof.recorder import Recorder
from tlx.proof.session import Session
from tlx.training.loop import State, Training, train

BUDGET = 1 << 30  # bytes of the states that a reference writes down
QUICK_STEPS = 8  # selected with --quick
SCATTERS = 2  # times that the reference takes each selected step again; with --quick once
ENVELOPES = 1  # times that it runs free again
PARTS = ("values", "slots", "average")  # of a state


def trajectory(s: Session) -> None:
    """P6: the production loop; then its selected steps, each from the reference's state before it.

    The model is left with what the reference's loop ended with, for P7: see `_ended`.
    """
    alone = s.reference is None  # which makes this capture one that others start from
    starts = Starts(s.writer)
    recorder, training = _free(s, "P6", starts=starts if alone else None)
    validated, ended = _validated(s, recorder), _ended(s, training)
    if s.reference is not None:
        starts.records = _numbered(s.reference.stage("P6/start"))
    else:
        for nudge in range(1, ENVELOPES + 1):
            _free(s, f"P6/envelope/{nudge}", nudge)
    _locked(s, "P6/locked", starts, validated)
    if alone:
        for nudge in range(1, (1 if s.quick else SCATTERS) + 1):
            _locked(s, f"P6/scatter/{nudge}", starts, validated, nudge)
    s.backend.load_arrays(s.model, ended)


def _ended(s: Session, training: Training) -> dict[str, Array]:
    """Return what the reference's free run ended with, rounded to float32: its moving average, where it has one.

    Metrics of two free runs would differ with the runs themselves.
    """
    own = s.backend.dump_arrays(training.judged)
    if s.reference is None:
        arrays = {name: _single(array) for name, array in own.items()}
        s.ended = _digest({name: sha256(array) for name, array in arrays.items()})
        s.writer.add("P7/model", {"digest": s.ended}, arrays)
    elif (record := s.reference.records.get("P7/model")) is not None:
        arrays, s.ended = record.arrays(), str(record.facts["digest"])
    else:
        return own
    return {**own, **{name: _double(array) for name, array in arrays.items() if name in own}}


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest()


def _validated(s: Session, recorder: Recorder) -> list[tuple[Array, Array]]:
    """Return what the reference's free run measured on the validation part, by which the schedule plateau decides."""
    if s.reference is None:
        fetched = s.backend.fetch(recorder.measured)
        losses, counts = fetched[::2], fetched[1::2]
        s.writer.add("P6/validated", {"losses": [float(x).hex() for x in losses], "correct": [int(x) for x in counts]})
    elif (record := s.reference.records.get("P6/validated")) is not None:
        losses = [np.array(float.fromhex(x)) for x in record.facts["losses"]]
        counts = [np.array(x) for x in record.facts["correct"]]
    else:
        return []
    return list(zip(losses, counts, strict=False))


def _free(s: Session, stage: str, nudge: int = 0, starts: Starts | None = None) -> tuple[Recorder, Training]:
    """Run the loop from the initial values; write down the states before selected steps where `starts` are to be."""
    arrays = s.start(s.model)
    if nudge:
        s.backend.load_arrays(s.model, {name: nudged(array, name, nudge) for name, array in arrays.items()})
    recorder = Recorder(s.backend, s.writer, stage, averaged=s.recipe.ema is not None)
    training = s.training(s.model, cast(Backend, recorder))
    selected = select(training, QUICK_STEPS if s.quick else None)
    if s.reference is not None:
        recorder.values = _Sketched(s.reference)
    elif s.quick and not s.serves:  # sketches take longer than the steps
        recorder.values = selected
    if starts is not None:
        recorder.before = lambda step: starts.write(training, step) if step in selected else {}
    _go(recorder, training, s.writer, "P6/error" if stage == "P6" else None)
    return recorder, training


@dataclass(frozen=True, slots=True)
class _Sketched:
    """The steps of which a capture has sketches, as far as it has come."""

    capture: Capture

    def __contains__(self, step: object) -> bool:
        record = self.capture.records.get(f"P6/{step:04d}")
        return record is not None and "values" in record.facts


def _locked(s: Session, stage: str, starts: Starts, validated: Sequence[tuple[Array, Array]], nudge: int = 0) -> None:
    """Take each step for which there is a state, from that state."""
    if not starts.records:
        return
    averaged = s.recipe.ema is not None
    recorder = Recorder(s.backend, s.writer, stage, gradients=True, averaged=averaged, validated=validated)
    training = s.training(s.model, cast(Backend, recorder))
    recorder.selected, recorder.before = starts.records, partial(starts.load, training, nudge=nudge)
    _go(recorder, training, s.writer, "P6/locked/error" if stage == "P6/locked" else None)


def _go(recorder: Recorder, training: Training, writer: Writer, failed: str | None) -> None:
    try:
        for _ in train(training, State()):
            pass
    except TlxError as error:
        if failed is not None:
            moved = isinstance(error, FrozenMovedError)
            writer.add(failed, {"step": recorder.step, "text": str(error), "moved": moved})


def select(training: Training, most: int | None = None, budget: int = BUDGET) -> frozenset[int]:
    """Choose the steps that start from a state: the first of each phase, and others as far as they fit.

    In this order: the second and the last step, those after the first of a phase, those at which a rate changes and the
    ones after them, unless it changes all the time, and others evenly spread.

    Args:
        training: the job.
        most: this many at most, beside the first of each phase; None: all that fit.
        budget: bytes that their states may take.
    """
    plan, steps = training.plan, training.plan.schedule.epochs * training.loader.steps
    rates = [[hyper.lr for hyper in plan.hyper_at(step)] for step in range(steps)]
    changes = [step for step in range(1, steps) if rates[step] != rates[step - 1]]
    if plan.schedule.name == "plateau":  # which decides while it trains
        changes = list(range(training.loader.steps, steps, training.loader.steps))
    if len(changes) > steps // 4:
        changes = []
    phases = [phase.start * training.loader.steps for phase in plan.strategy.phases]
    wanted = [1, steps - 1, *(step + 1 for step in phases), *changes, *(step + 1 for step in changes)]
    chosen = set(phases)
    sizes = {spec.name: math.prod(spec.shape) for spec in plan.specs}
    for step in [*wanted, *_evenly(steps)]:
        if step >= steps or step in chosen or (most is not None and len(chosen) >= most):
            continue
        moving = sizes.keys() - plan.frozen_at(step)
        budget -= 4 * len(PARTS) * sum(sizes[name] for name in moving)
        if budget >= 0:
            chosen.add(step)
    return frozenset(chosen)


def _evenly(count: int) -> list[int]:
    """Order the numbers below `count` so that the first of them always lie evenly spread."""
    width = max(count - 1, 1).bit_length()
    return [n for i in range(1 << width) if (n := int(f"{i:0{width}b}"[::-1], 2)) < count]


class Starts:
    """The reference's states before selected steps: written down rounded to float32, and taken up again."""

    def __init__(self, writer: Writer) -> None:
        """Begin with none."""
        self.writer, self.records = writer, dict[int, Record]()
        self.files: dict[str, str] = {}  # of each array that was written, by its hash

    def write(self, training: Training, step: int) -> dict[str, Any]:
        """Write down the state before a step; an array that was written before is not written again."""
        arrays = {name: _single(array) for name, array in _state(training).items()}
        hashes = {name: sha256(array) for name, array in arrays.items()}
        new = {name: array for name, array in arrays.items() if hashes[name] not in self.files}
        old = {name: self.files[hashes[name]] for name in arrays if name not in new}
        layout, numbers = bundle(arrays)
        facts = {"digest": _digest(hashes), "sketch": layout}
        record = self.writer.add(f"P6/start/{step:04d}", facts, {"sketch": numbers, **new}, old)
        self.files |= {hashes[name]: record.files[name] for name in new}
        self.records[step] = record
        return {}

    def load(self, training: Training, step: int, *, nudge: int = 0) -> dict[str, Any]:
        """Give a model, its optimizer and its average the state before a step; returns the facts that name it.

        What the candidate has beyond the reference keeps its value. With `nudge`, from 1, every number is one unit in
        the last place of float64 off, up or down.
        """
        record, backend = self.records[step], training.backend

        def held(kind: str) -> dict[str, Array]:
            names = [name for name in record.files if name.startswith(f"{kind}/")]
            arrays = {name.partition("/")[2]: _double(record.needed(name)) for name in names}
            return {name: nudged(array, f"{kind}/{name}", nudge) if nudge else array for name, array in arrays.items()}

        for kind, model in (("values", training.model), ("average", training.shadow)):
            if model is not None:
                arrays, names = held(kind), [spec.name for spec in backend.param_specs(model)]
                own = {} if arrays.keys() >= set(names) else backend.dump_arrays(model)
                backend.load_arrays(model, {name: arrays[name] if name in arrays else own[name] for name in names})
        params = {name for group in training.plan.groups for name in group.params}
        slots = held("slots")
        backend.load_optimizer(
            training.optimizer, {key: array for key, array in slots.items() if key.rpartition("/")[0] in params}
        )
        return {"start": record.facts["digest"]}


def nudged(array: Array, name: str, number: int) -> Array:
    """Move every number one unit in the last place, at random towards zero or away; integers and zeros stay.

    `name` and `number` decide which way each goes.
    """
    if array.dtype != np.float64 or not array.size:
        return array
    bits = np.unpackbits(rng.words(number, f"parity/ulp/{name}", 0, -(-array.size // 32), 1).view(np.uint8).ravel())
    # The bits of a float64, read as an integer, are one more for the next number away from zero.
    steps = 2 * bits[: array.size].reshape(array.shape).astype(np.int8) - 1
    moved = (array.copy(order="C").view(np.int64) + steps).view(np.float64)
    return np.where((array == 0) | ~np.isfinite(array), array, moved)


def _state(training: Training) -> dict[str, Array]:
    """Return what a job holds: ``values/<name>``, ``slots/<parameter>/<slot>`` and ``average/<name>``."""
    backend, shadow = training.backend, training.shadow
    parts = {"values": backend.dump_arrays(training.model), "slots": backend.dump_optimizer(training.optimizer)}
    if shadow is not None:
        parts["average"] = backend.dump_arrays(shadow)
    return {f"{kind}/{name}": array for kind, arrays in parts.items() for name, array in arrays.items()}


def _single(array: Array) -> Array:
    """Round to float32, unless a number is larger than that holds."""
    holds = array.dtype == np.float64 and bool((np.abs(array) <= FLOAT32_MAX).all())
    return array.astype(np.float32) if holds else array


def _double(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _numbered(records: Sequence[Record]) -> dict[int, Record]:
    """Return states by the step before which they are; none without the first, from which every run begins."""
    numbered = {int(record.key.rpartition("/")[2]): record for record in records}
    return numbered if 0 in numbered else {}
