"""What a capture writes down at each stage, P1 to P9: weights, batches, every module, every production step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, cast

from tlx.backend import Backend, Batch, Hyper, OptimizerSpec, Precision
from tlx.errors import TlxError
from tlx.proof.envelope import QUICK_BATCHES
from tlx.proof.locked import trajectory
from tlx.proof.randomness import search
from tlx.proof.recorder import RecordedLoader, Recorder
from tlx.proof.replays import add_replays, add_visits, also_at_odd_size, bundles, is_settled
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
    """P3: every module's output in eval mode, at two sizes; then modules alone."""
    s.start(s.model)
    _evaluation(s, "P3", s.tests[0])
    if s.whole:
        also_at_odd_size(s, "P3", s.tests[0], _evaluation)


def _evaluation(s: Session, stage: str, batch: Batch) -> None:
    probe, ready = s.probe, s.backend.put(s.model, batch)
    lazies: list[Any] = []
    visits = probe.record(lambda: lazies.append(s.backend.logits(s.model, ready)))
    logits = s.backend.fetch(lazies)[0]
    add_visits(s.writer, stage, visits)
    s.writer.add(f"{stage}/logits", arrays={"logits": logits})
    if s.whole and not is_settled(s, stage, {"logits": {"logits": logits}}):
        add_replays(s, stage, probe, visits, training=False)
    if stage == "P3":
        search(s, stage, lambda: s.backend.logits(s.model, ready))


def backward(s: Session) -> None:
    """P4: outputs, loss, gradients and buffers of one training step where everything trains, at two sizes."""
    _backward(s, "P4", s.batches[0])
    if s.whole:
        also_at_odd_size(s, "P4", s.batches[0], _backward)


def _backward(s: Session, stage: str, batch: Batch) -> None:
    s.start(s.model)
    s.train_everything(s.model)
    probe, ready = s.probe, s.backend.put(s.model, batch)
    lazies: list[Any] = []
    visits = probe.record(lambda: lazies.extend(s.backend.backward(s.model, ready)))
    loss, correct = s.backend.fetch(lazies)
    specs = s.backend.param_specs(s.model)
    values, gradients = s.backend.dump_arrays(s.model), probe.gradients()
    buffers = {p.name: values[p.name] for p in specs if p.role == "statistic" and p.name in values}
    add_visits(s.writer, stage, visits)
    s.writer.add(f"{stage}/loss", {"loss": float(loss).hex(), "correct": int(correct)})
    ordered = {p.name: gradients[p.name] for p in specs if p.name in gradients}
    if "@" in stage:  # those of the recipe's size are there in full, which for a large model is gigabytes
        s.writer.add(f"{stage}/gradients", *bundles({"gradients": ordered}))
    else:
        s.writer.add(f"{stage}/gradients", arrays=ordered)
    s.writer.add(f"{stage}/buffers", arrays=buffers)
    probe.set_gradients({})
    if s.whole and not is_settled(s, stage, {"gradients": ordered, "buffers": buffers}, float(loss), int(correct)):
        s.start(s.model)
        s.train_everything(s.model)
        add_replays(s, stage, probe, visits, training=True)
    if stage == "P4":
        search(s, stage, lambda: s.backend.backward(s.model, ready))


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
        loss, correct = s.backend.fetch(s.backend.evaluate(s.model, ready)[:2])
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
        for number, batch in enumerate(s.batches[: QUICK_BATCHES if s.quick else None]):
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
        recorder = Recorder(s.backend, s.writer, "P9/nudged" if nudged else "P9/plain", values=(), averaged=averaged)
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
