"""What a capture writes down of single modules: each call in a pass, and each call repeated by itself.

A tensor is an array `input`, `output` or `grad` of its record; of several, each is `input.0`, `input.1` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tlx.backend import Array, Arrays, Batch, Probe, Replay, Visit
from tlx.errors import TlxError, one_line
from tlx.proof.artifact import Record, Writer
from tlx.proof.measure import Sketches, bundle, distances, relative, sha256, unbundle
from tlx.proof.session import Session

# Rounding in float64 was measured at 1e-15 to 1e-12, changes of meaning from 2e-7 up.
LIMIT = 1e-10


def odd_size(size: int) -> int:
    """Return the second image size of P3 and P4: odd, and a little larger, such as 45 for 32 and 77 for 64.

    Bilinear and adaptive pooling, paddings and rounding of sizes agree by chance where every size is a power of two.
    """
    return (size + 12) | 1


def also_at_odd_size(s: Session, stage: str, batch: Batch, run: Callable[[Session, str, Batch], None]) -> None:
    """Run a stage again at `odd_size`, below "STAGE/@SIZE"; or write down why the model does not take that size."""
    size = odd_size(batch.preprocess.size)
    prefix = f"{stage}/@{size}"
    if s.reference is not None and not _ran(s.reference.stage(prefix)):
        return
    resized = replace(batch, preprocess=replace(batch.preprocess, size=size))
    try:
        run(s, prefix, resized)
    except Exception as error:  # each framework, and each model, has its own for a size that it does not take
        s.writer.add(f"{prefix}/error", {"text": one_line(str(error)) or type(error).__name__})


def _ran(records: Sequence[Record]) -> bool:
    return bool(records) and not records[-1].key.endswith("/error")


def add_visits(writer: Writer, stage: str, visits: Iterable[Visit]) -> None:
    """Write one record for each call of a module, in order of execution; equal arrays share a file."""
    files: dict[str, str] = {}
    for number, visit in enumerate(visits):
        named = {
            **_numbered("input", visit.inputs),
            **_numbered("output", visit.outputs),
            **_numbered("grad", visit.grads),
        }
        digests = {name: sha256(array) for name, array in named.items()}
        new = {name: named[name] for name, digest in digests.items() if digest not in files}
        facts = {"path": visit.path, "kind": visit.kind, "call": visit.call, "depth": visit.depth}
        written = {name: files[digest] for name, digest in digests.items() if digest in files}
        record = writer.add(f"{stage}/visit/{number:04d}", facts, new, written)
        files.update({digests[name]: record.files[name] for name in new})


def _numbered(what: str, arrays: Sequence[Array | None]) -> dict[str, Array]:
    if len(arrays) == 1:
        return {} if arrays[0] is None else {what: arrays[0]}
    return {f"{what}.{number}": array for number, array in enumerate(arrays) if array is not None}


def tensors(record: Record, what: str, count: int | None = None) -> tuple[Array | None, ...]:
    """Read what `add_visits` wrote: all inputs, outputs or gradients; with a count so many, None where one lacks."""
    if what in record.files:
        return (record.needed(what),)
    if count is not None:
        return tuple(record.array(f"{what}.{number}") for number in range(count))
    parts = (name.partition(".") for name in record.files)
    numbers = sorted((len(n), n) for kind, _, n in parts if kind == what and n)
    return tuple(record.array(f"{what}.{n}") for _, n in numbers)


@dataclass(frozen=True, slots=True, eq=False)
class _Fed:
    """A call of the reference: what it is fed again, and what it gave."""

    path: str
    call: int
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    grads: tuple[Array | None, ...]


def add_replays(s: Session, stage: str, probe: Probe, visits: Sequence[Visit], *, training: bool) -> None:
    """Repeat each call of the reference by itself, and write down what it gives here, or why it cannot be repeated."""
    if s.reference is None:
        calls = [_Fed(v.path, v.call, v.inputs, v.outputs, v.grads) for v in visits]
    else:
        calls = [_fed(record) for record in s.reference.stage(f"{stage}/visit")]
    ours = {(visit.path, visit.call): visit for visit in visits}
    for number, fed in enumerate(calls):
        facts: dict[str, Any] = {"path": fed.path, "call": fed.call}
        sketches: dict[str, Array] = {}
        try:
            _check_fit(fed, ours.get((fed.path, fed.call)), visits)
            grads = fed.grads if training else ()
            alone = probe.replay(fed.path, fed.inputs, grads, call=fed.call, training=training)
            repeats = _same(fed.outputs, alone.outputs)
            if s.reference is None and not repeats:
                raise TlxError("repeated, it gives another output: it draws numbers or keeps a state")
            layouts, sketches = bundles(_parts(alone, () if repeats else _transposed(probe, fed)))
            facts |= layouts
        except Exception as error:  # each framework has its own for an input that does not fit
            facts["why"] = one_line(str(error)) or type(error).__name__
        s.writer.add(f"{stage}/replay/{number:04d}", facts, sketches)


def is_settled(s: Session, stage: str, results: Mapping[str, Arrays], loss: float = 0.0, correct: int = 0) -> bool:
    """Whether what came of a pass is what the reference has, so that nothing is to be asked of single modules.

    `results` are arrays by the names of the records that hold them, such as "logits" or "gradients".
    """
    if s.reference is None:
        return False
    for kind, arrays in results.items():
        if f"{stage}/{kind}" not in s.reference.records:
            return True
        ours = {name: (array.shape, array) for name, array in arrays.items()}
        theirs = sketched(s.reference.records[f"{stage}/{kind}"], kind)
        if kind == "gradients" and "@" in stage:
            ours = unbundle(*bundle(arrays))
        if not all(error <= LIMIT for error in distances(theirs, ours).values()):
            return False
    if "gradients" not in results:
        return True
    facts = s.reference.records[f"{stage}/loss"].facts
    return correct == facts["correct"] and loss_error(float.fromhex(facts["loss"]), loss) <= LIMIT


def sketched(record: Record, kind: str) -> Sketches:
    """Read a record's arrays, or its sketches of them: name -> shape, and the numbers."""
    if kind == "gradients" and kind in record.facts:
        return unbundle(record.facts[kind], record.array(kind))
    return {name: (array.shape, array) for name, array in record.arrays().items()}


def loss_error(reference: float, candidate: float) -> float:
    """Return the relative distance of two losses; infinity where one is not finite."""
    if not (math.isfinite(reference) and math.isfinite(candidate)):
        return math.inf
    return abs(reference - candidate) / (abs(reference) or 1)


def _fed(record: Record) -> _Fed:
    inputs, outputs = (tuple(a for a in tensors(record, what) if a is not None) for what in ("input", "output"))
    return _Fed(
        str(record.facts["path"]), record.facts.get("call", 1), inputs, outputs, tensors(record, "grad", len(outputs))
    )


def _check_fit(fed: _Fed, visit: Visit | None, visits: Sequence[Visit]) -> None:
    """Raise TlxError where a call cannot be repeated; some kernels answer a wrong input by ending the process."""
    if visit is None:
        count = sum(other.path == fed.path for other in visits)
        times = "once" if count == 1 else f"{count} times"
        raise TlxError(f"it is called {times} here" if count else "no module of this name is called here")
    if not fed.outputs:
        raise TlxError("it gives no tensor")
    if [x.ndim for x in fed.inputs] != [x.ndim for x in visit.inputs]:
        theirs, ours = (", ".join(str(list(x.shape)) for x in of.inputs) or "none" for of in (fed, visit))
        raise TlxError(f"its inputs here are {ours}, the reference's {theirs}")


def _same(before: Sequence[Array], after: Sequence[Array]) -> bool:
    if len(before) != len(after):
        return False
    pairs = list(zip(before, after, strict=True))
    return all(np.array_equal(x, y, equal_nan=True) or relative(x, y) <= LIMIT for x, y in pairs)


def _transposed(probe: Probe, fed: _Fed) -> tuple[Array, ...]:
    try:
        output = probe.replay_transposed(fed.path, fed.inputs, call=fed.call)
    except Exception:  # it does not take such a weight, so that is not what is wrong
        output = None
    return () if output is None else (output,)


def _parts(alone: Replay, transposed: Sequence[Array]) -> dict[str, Mapping[str, Array]]:
    outputs = dict(zip(_ordinals("output", len(alone.outputs)), alone.outputs, strict=True))
    entering = dict(zip(_ordinals("input gradient", len(alone.input_grads)), alone.input_grads, strict=True))
    forward = {**outputs, **{name: grad for name, grad in entering.items() if grad is not None}}
    parts = {"forward": forward, "gradients": alone.gradients, "buffers": alone.buffers}
    return {**parts, "transposed": {"output": transposed[0]}} if transposed else parts


def _ordinals(what: str, count: int) -> list[str]:
    return [what if number == 0 else f"{what} {number + 1}" for number in range(count)]


def bundles(parts: Mapping[str, Mapping[str, Array]]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Sketch several kinds of arrays: return the layout and the numbers of each kind, by its name."""
    bundled = {kind: bundle(arrays) for kind, arrays in parts.items()}
    return (
        {kind: layout for kind, (layout, _) in bundled.items()},
        {kind: numbers for kind, (_, numbers) in bundled.items()},
    )
