"""What a capture writes down at each stage, P1 to P9: weights, batches, every module, every production step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, cast

from tlx.backend import Array, Backend, Hyper, OptimizerSpec, Precision, Probe, Visit
from tlx.errors import TlxError, one_line
from tlx.proof.artifact import Writer
from tlx.proof.locked import trajectory
from tlx.proof.measure import bundle
from tlx.proof.recorder import RecordedLoader, Recorder
from tlx.proof.session import Session
from tlx.proof.updates import SCRIPT, drawn_gradient
from tlx.strategy.schedule import float32_exact
from tlx.training.loop import State, train

CURVE = 20  # steps of the float32 loss curve


def weights(s: Session) -> None:
    """P1: names, shapes, dtypes and bytes, read back after loading."""
    s.start(s.model)
    specs = [[p.name, list(p.shape), p.dtype, p.role, p.module] for p in s.backend.param_specs(s.model)]
    s.writer.add("P1", {"specs": specs}, s.backend.dump_arrays(s.model))


def batches(s: Session) -> None:
    """P2: every batch of every epoch."""
    training = s.training(s.model, s.backend)
    loader = RecordedLoader(training.loader, s.writer)
    for epoch in range(s.recipe.epochs):
        for _ in loader.epoch(epoch):
            pass
    if training.val is not None:  # by which the schedule plateau decides
        for _ in RecordedLoader(training.val, s.writer, "val").epoch(0):
            pass
    assert s.tests


def evaluation(s: Session) -> None:
    """P3: every module's output in eval mode."""
    s.start(s.model)
    batch = s.backend.put(s.model, s.tests[0])
    lazies: list[Any] = []
    add_visits(s.writer, "P3", s.probe.record(lambda: lazies.append(s.backend.logits(s.model, batch))))
    s.writer.add("P3/logits", arrays={"logits": s.backend.fetch(lazies)[0]})


def add_visits(writer: Writer, stage: str, visits: Iterable[Visit]) -> None:
    """Write one record for each call of a module, in order of execution."""
    for number, visit in enumerate(visits):
        named = {"input": visit.input, "output": visit.output, "grad": visit.grad}
        arrays = {name: array for name, array in named.items() if array is not None}
        writer.add(f"{stage}/visit/{number:04d}", {"path": visit.path, "kind": visit.kind}, arrays)


def backward(s: Session) -> None:
    """P4: outputs, loss, gradients and buffers of one training step where everything trains; then modules alone."""
    s.start(s.model)
    s.train_everything(s.model)
    probe, batch = s.probe, s.backend.put(s.model, s.batches[0])
    lazies: list[Any] = []
    visits = probe.record(lambda: lazies.extend(s.backend.backward(s.model, batch)))
    loss, correct = s.backend.fetch(lazies)
    specs = s.backend.param_specs(s.model)
    values, gradients = s.backend.dump_arrays(s.model), probe.gradients()
    buffers = {p.name: values[p.name] for p in specs if p.role == "statistic" and p.name in values}
    add_visits(s.writer, "P4", visits)
    s.writer.add("P4/loss", {"loss": float(loss).hex(), "correct": int(correct)})
    s.writer.add("P4/gradients", arrays={p.name: gradients[p.name] for p in specs if p.name in gradients})
    s.writer.add("P4/buffers", arrays=buffers)
    probe.set_gradients({})
    s.start(s.model)
    s.train_everything(s.model)
    inputs = [(v.path, v.input, v.grad) for v in visits if v.output is not None]
    if s.reference is not None:
        records = [r for r in s.reference.stage("P4/visit") if "input" in r.files]
        inputs = [(str(r.facts["path"]), r.array("input"), r.array("grad")) for r in records]
    add_replays(s.writer, probe, inputs, {v.path for v in visits})


def add_replays(
    writer: Writer, probe: Probe, inputs: Iterable[tuple[str, Array | None, Array | None]], known: set[str]
) -> None:
    """Feed each module of `known` alone: path, input and output gradient. Write down what it gives."""
    for number, (path, x, dy) in enumerate(inputs):
        if path not in known or x is None:
            continue
        try:
            alone = probe.replay(path, x, dy, training=True)
        except Exception as error:  # each framework has its own for an input of another shape
            problem = f"{path} cannot be fed the reference's input {list(x.shape)}: {one_line(str(error))}"
            raise TlxError(problem, fix="capture both by one recipe") from error
        forward = {"output": alone.output}
        if alone.input_grad is not None:
            forward["input gradient"] = alone.input_grad
        parts = {"forward": forward, "gradients": alone.gradients, "buffers": alone.buffers}
        if (transposed := probe.replay_transposed(path, x)) is not None:
            parts["transposed"] = {"output": transposed}
        layouts, sketches = bundles(parts)
        writer.add(f"P4/replay/{number:04d}", {"path": path, **layouts}, sketches)


def bundles(parts: Mapping[str, Mapping[str, Array]]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Sketch several kinds of arrays: return the layout and the numbers of each kind, by its name."""
    bundled = {kind: bundle(arrays) for kind, arrays in parts.items()}
    return (
        {kind: layout for kind, (layout, _) in bundled.items()},
        {kind: numbers for kind, (_, numbers) in bundled.items()},
    )


def updates(s: Session) -> None:
    """P5: updates from gradients that the core draws, with parts frozen before and after; the last one clips."""
    arrays = s.start(s.model)
    training = s.training(s.model, s.backend)
    groups = training.plan.groups
    rates = training.plan.strategy.phases[-1].lr
    names = [n for g in groups for n in g.params]
    late = frozenset(n for g in groups if g.name == groups[-1].name for n in g.params)
    late = late if len(late) < len(names) else frozenset(names[len(names) // 2 :])
    probe = s.probe
    spec = OptimizerSpec(s.recipe.optimizer, float32_exact(s.recipe.momentum))
    scalars = {name: value for name, value in asdict(spec).items() if name != "name"}
    s.writer.add("P5/script", {"optimizer": spec.name, "groups": [list(g.params) for g in groups], **scalars})
    for number, (only_late, factor, max_norm) in enumerate(SCRIPT):
        trains = late if only_late else frozenset(names)
        hyper = [
            Hyper(float32_exact((rates.get(g.name) or 1e-4) * factor), float32_exact(g.weight_decay)) for g in groups
        ]
        s.backend.set_phase(s.model, trains, frozenset())
        s.backend.set_hyper(training.optimizer, hyper)
        probe.set_gradients({n: drawn_gradient(n, number, arrays[n].shape) for n in names if n in trains})
        s.backend.update(s.model, training.optimizer, max_norm)
        facts = {"hyper": [[h.lr, h.weight_decay] for h in hyper], "trains": sorted(trains), "max_norm": max_norm}
        layouts, sketches = bundles(
            {"values": s.backend.dump_arrays(s.model), "slots": s.backend.dump_optimizer(training.optimizer)}
        )
        s.writer.add(f"P5/update/{number}", {**facts, **layouts}, sketches)


def metrics(s: Session) -> None:
    """P7: logits, and the counts and losses that the backend makes of them, of what the trajectory ended with."""
    for number, batch in enumerate(s.tests):
        ready = s.backend.put(s.model, batch)
        (logits,) = s.backend.fetch([s.backend.logits(s.model, ready)])
        loss, correct = s.backend.fetch([*s.backend.evaluate(s.model, ready)])
        facts = {"loss": float(loss).hex(), "correct": int(correct), "labels": batch.labels.tolist()}
        facts |= {"model": s.ended} if s.ended else {}
        s.writer.add(f"P7/{number:04d}", facts, {"logits": logits})


def float32_steps(s: Session) -> None:
    """P8: one step from the same state in float64 and float32; the reference also from values one unit off."""
    runs: list[tuple[Precision, bool]] = [("float64", False), ("float32", False)]
    if s.reference is None:
        runs.append(("float32", True))
    for precision, nudged in runs:
        model = s.model if precision == "float64" else s.build(precision)[0]
        probe = s.probe_of(model)
        for number, batch in enumerate(s.batches):
            s.start(model, nudged=nudged)
            s.train_everything(model)
            loss, _ = s.backend.fetch([*s.backend.backward(model, s.backend.put(model, batch))])
            values = s.backend.dump_arrays(model)
            specs = s.backend.param_specs(model)
            buffers = {p.name: values[p.name] for p in specs if p.role == "statistic" and "float" in p.dtype}
            layouts, sketches = bundles({"gradients": probe.gradients(), "buffers": buffers})
            key = f"P8/{precision}{'-nudged' if nudged else ''}/{number}"
            s.writer.add(key, {"loss": float(loss).hex(), **layouts}, sketches)


def float32_curves(s: Session) -> None:
    """P9: loss curves in float32, from the initial values; the reference also from values one unit off."""
    model, _ = s.build("float32")
    single, averaged = replace(s, recipe=replace(s.recipe, precision="float32")), s.recipe.ema is not None
    for nudged in (False, True) if s.reference is None else (False,):
        s.start(model, nudged=nudged)
        recorder = Recorder(s.backend, s.writer, "P9/nudged" if nudged else "P9/plain", values=False, averaged=averaged)
        try:
            for _ in train(single.training(model, cast(Backend, recorder)), State()):
                if recorder.step >= CURVE:
                    break
        except TlxError as error:
            s.writer.add("P9/error", {"step": recorder.step, "text": str(error)})


RECORD: dict[str, Callable[[Session], None]] = {
    "P1": weights,
    "P2": batches,
    "P3": evaluation,
    "P4": backward,
    "P5": updates,
    "P6": trajectory,
    "P7": metrics,
    "P8": float32_steps,
    "P9": float32_curves,
}
