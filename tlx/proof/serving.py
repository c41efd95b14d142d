"""What a reference records for engines outside tlx: what enters the network, and what float32 does to its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tlx.backend import Array, Batch, Model, Visit
from tlx.proof.artifact import Record
from tlx.proof.measure import relative
from tlx.proof.replays import numbered
from tlx.proof.session import Session

LOGITS = "the logits"  # the name of no module, as it has a space


def outputs_of(visits: Iterable[Visit]) -> dict[str, Array]:
    """Return what modules gave: by path, and from the second call on path#call."""
    calls: dict[str, int] = {}
    found: dict[str, Array] = {}
    for visit in visits:
        arrays = numbered("output", visit.outputs)
        found |= {name: arrays[part] for name, part in named_outputs({"path": visit.path}, arrays, calls).items()}
    return found


def named_outputs(facts: Mapping[str, Any], arrays: Iterable[str], calls: dict[str, int]) -> dict[str, str]:
    """Return the name of each output of a visit, and which array of the record it is.

    The name is the module's path; from its second call on path#call. `calls` counts the calls, and is kept up to date.
    """
    path = str(facts["path"])
    parts = [name for name in arrays if name.partition(".")[0] == "output"]
    if not parts:
        return {}
    calls[path] = calls.get(path, 0) + 1
    place = path if calls[path] == 1 else f"{path}#{calls[path]}"
    return {place if name == "output" else f"{place}.{name}": name for name in parts}


def recorded_outputs(records: Iterable[Record]) -> dict[str, tuple[Record, str]]:
    """Return where each output lies: its record, and the name of the array, by the output's name."""
    calls: dict[str, int] = {}
    return {
        name: (record, array)
        for record in records
        for name, array in named_outputs(record.facts, record.files, calls).items()
    }


def serve_evaluation(s: Session) -> None:
    """Add to P3 the network's input, and the scatter of each output and of the logits."""
    batch = s.tests[0]
    _add_input(s, "P3/input", batch)
    outputs = _scatter(s, lambda model: _evaluated(s, model, batch))
    s.writer.add("P3/float32", {"logits": outputs.pop(LOGITS), "outputs": outputs})


def serve_backward(s: Session) -> None:
    """Add to P4 the network's input for each batch that P4 and P8 take, and the scatter of each output."""
    for number, batch in enumerate(s.batches):
        _add_input(s, f"P4/input/{number}", batch)
    s.writer.add("P4/float32", {"outputs": _scatter(s, lambda model: _trained(s, model, s.batches[0]))})


SERVE: Mapping[str, Callable[[Session], None]] = {"P3": serve_evaluation, "P4": serve_backward}


def _add_input(s: Session, key: str, batch: Batch) -> None:
    arrays = {"input": batch.preprocess.apply(batch.images, "float64"), "labels": batch.labels}
    s.writer.add(key, arrays=arrays if batch.targets is None else {**arrays, "targets": batch.targets})


def _scatter(s: Session, outputs: Callable[[Model], dict[str, Array]]) -> dict[str, str]:
    """Return for each output the larger of two distances, as `float.hex` writes them.

    They are those of the float32 output from the float64 one, and from one with weights that are one unit off.
    """
    s.start(s.model)
    exact = outputs(s.model)
    single, _ = s.build("float32")
    s.start(single)
    rounded = outputs(single)
    s.start(single, nudged=True)
    nudged = outputs(single)
    pairs = {name: (relative(exact[name], x), relative(x, nudged.get(name))) for name, x in rounded.items()}
    return {name: max(pair).hex() for name, pair in pairs.items()}


def _evaluated(s: Session, model: Model, batch: Batch) -> dict[str, Array]:
    lazies: list[Any] = []
    ready = s.backend.put(model, batch)
    visits = s.probe_of(model).record(lambda: lazies.append(s.backend.logits(model, ready)))
    return {**outputs_of(visits), LOGITS: s.backend.fetch(lazies)[0]}


def _trained(s: Session, model: Model, batch: Batch) -> dict[str, Array]:
    s.train_everything(model)
    probe, ready = s.probe_of(model), s.backend.put(model, batch)
    outputs = outputs_of(probe.record(lambda: s.backend.backward(model, ready)))
    probe.set_gradients({})
    return outputs
