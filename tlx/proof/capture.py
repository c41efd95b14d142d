"""Write down what one stack does with a recipe: weights, batches, every module, every step of the production loop."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from tlx import rng
from tlx.backend import Array, Arrays, Backend, Batch, Hyper, Model, OptimizerSpec, Precision, Probe, Visit, registry
from tlx.errors import BackendError, TlxError
from tlx.models.zoo import Architecture, architecture
from tlx.proof.artifact import MODULE, Capture, Writer
from tlx.proof.measure import bundle, sha256
from tlx.proof.recorder import PlannedLoader, RecordedLoader, Recorder
from tlx.recipe import Recipe
from tlx.strategy.schedule import float32_exact
from tlx.training.loop import State, Training, train

STEPS = 40  # of the float64 trajectory, at least
LOCKED = 5  # batches of the step-locked comparison
STAGES = ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9")
# What may differ between two captures that are comparable.
FREE = (
    "backend",
    "device",
    "precision",
    "workers",
    "feature_cache",
    "save_seconds",
    "out",
    "data_root",
    "weights",
    "data",
)


def reduced(recipe: Recipe, quick: bool = False) -> Recipe:
    """Shorten a recipe to what a proof needs: at least 40 steps with each of its boundaries, on few small images."""
    least = architecture(recipe.model).min_size if isinstance(recipe.model, str) else recipe.image_size
    batch = min(recipe.batch_size, 8)  # BatchNorm over fewer values is so unsteady that float64 does not settle it
    epochs = min(recipe.epochs, STEPS)
    shrink = epochs / recipe.epochs
    steps = -(-STEPS // epochs)
    images = steps * batch - 1  # the last batch is partial
    watches = recipe.schedule == "plateau"
    share = (recipe.val_fraction or 0.1) if watches else 0.0
    phase_epochs = recipe.phase_epochs and max(round(recipe.phase_epochs * shrink), 1)
    strategy = recipe.strategy
    if not isinstance(strategy, str):
        strategy = replace(strategy, phases=tuple(replace(p, start=round(p.start * shrink)) for p in strategy.phases))
    return replace(
        recipe,
        strategy=strategy,
        batch_size=batch,
        micro_batch=None if recipe.micro_batch is None else max(batch // 2, 1),
        epochs=epochs,
        phase_epochs=phase_epochs,
        step_size=max(round(recipe.step_size * shrink), 1),
        warmup=recipe.warmup * shrink,
        image_size=max(min(recipe.image_size, 32 if quick else 64), least),
        limit_train=-(-images // 1) if not share else round(images / (1 - share)),
        limit_test=4 * batch,
        val_fraction=share,
        patience=None,
        device="cpu" if recipe.device == "auto" else recipe.device,
        precision="float64",
        feature_cache="off",
        out=None,
    )


def capture(
    recipe: Recipe | None,
    backend: str | Backend,
    out: str | Path,
    plan: str | Path | None = None,
    *,
    quick: bool = False,
    copy_weights: bool = False,
    stages: tuple[str, ...] | None = None,
    feed: Callable[[Any], Any] = lambda loader: loader,
) -> Path:
    """Run the stages on one stack and write the folder `out`.

    Args:
        recipe: what to prove; it is shortened first (see `reduced`). None: everything comes from `plan`, the recipe,
            the weights and the batches, so that neither data nor weights are needed here.
        backend: a name, or the backend itself.
        plan: the capture of another stack, whose modules are replayed here one by one.
        quick: smaller images, and without P9, which is no gate.
        stages: only these.
        copy_weights: start from the plan's values.
        feed: replaces the training loader; for planting faults.

    Raises TlxError where the folder is not empty, the plan is damaged, or the backend cannot run the recipe.
    """
    from tlx.training import build as assemble

    stack = registry.load(backend) if isinstance(backend, str) else backend
    if not hasattr(stack, "probe"):
        raise BackendError(
            f"Backend {stack.name!r} offers no probe(model), which `tlx parity` needs: tlx.backend.Probe"
        )
    stages = stages or (STAGES[:-1] if quick else STAGES)
    given = Capture(plan) if plan is not None else None
    if recipe is None:
        if given is None:
            raise TlxError("capture needs a recipe or the plan of another capture")
        short = replace(Recipe.from_dict(given.manifest["recipe"], str(plan)), backend=stack.name, workers=0)
        classes = tuple(given.manifest["must"]["classes"])
        data = None
    else:
        short = replace(reduced(recipe.resolved(), quick), backend=stack.name)
        short = assemble.place(short, stack)
        data = assemble.open_data(short)
        assemble.check_fit(short, data)
        classes = data.classes
    writer = Writer(Path(out))
    subject = Subject(stack, short, classes, data, given, recipe is None, copy_weights, writer, feed)
    for stage in stages:
        RUN[stage](subject)
    writer.close(subject.manifest(stages, quick))
    return Path(out)


@dataclass
class Subject:
    """What is captured, and where it goes."""

    backend: Backend
    recipe: Recipe
    classes: tuple[str, ...]
    data: Any  # tlx.data.Data, or None where the plan serves the batches
    plan: Capture | None
    planned: bool
    copy_weights: bool
    writer: Writer
    feed: Callable[[Any], Any]

    def build(self, precision: str) -> tuple[Model, Architecture]:
        from tlx.training import build as assemble

        placed: Any = replace(self.recipe, precision=precision)  # type: ignore[arg-type]
        return assemble.build(placed, self.backend, len(self.classes))

    @cached_property
    def initial(self) -> dict[str, Array]:
        """The values everything starts from: float32 numbers."""
        from tlx.models.initial_values import initial_arrays

        if self.planned or self.copy_weights:
            assert self.plan is not None
            return self.plan.records["P1"].arrays()
        if self.recipe.weights == "own":  # with the head, which a run would draw anew
            return self.backend.dump_arrays(self.model)
        specs = self.backend.param_specs(self.model)
        return initial_arrays(specs, self.arch, self.recipe.weights or "none", self.recipe.seed)

    @cached_property
    def _built(self) -> tuple[Model, Architecture]:
        return self.build("float64")

    @property
    def model(self) -> Model:
        return self._built[0]

    @property
    def arch(self) -> Architecture:
        return self._built[1]

    def start(self, model: Model, *, nudged: bool = False) -> dict[str, Array]:
        """Load the initial values; nudged, every number of the parameters is one float32 unit off, up or down."""
        arrays = {}
        for spec in self.backend.param_specs(model):
            value = self.initial[spec.name]
            if nudged and spec.role != "statistic":
                up = rng.uniform(0, f"parity/nudge/{spec.name}", spec.shape) < 0.5
                single = value.astype(np.float32)
                value = np.nextafter(single, np.where(up, np.float32(np.inf), np.float32(-np.inf)))
            arrays[spec.name] = np.asarray(value, dtype=spec.dtype)
        self.backend.load_arrays(model, arrays)
        return arrays

    @property
    def probe(self) -> Probe:
        return cast(Probe, self.backend.probe(self.model))  # type: ignore[attr-defined]

    def everything(self, model: Model) -> None:
        """Let all parameters train, with batch statistics."""
        specs = self.backend.param_specs(model)
        self.backend.set_phase(
            model,
            frozenset(s.name for s in specs if s.role != "statistic"),
            frozenset(s.module for s in specs if s.role == "statistic"),
        )

    def training(self, model: Model, backend: Any) -> Training:
        """The production job, with the batches of the plan where there is one."""
        from tlx.training import build as assemble

        made = assemble.training(self.recipe, backend, self.data or self._stand_in(), model, self.arch)
        loader: Any = PlannedLoader(self.plan, "train") if self.planned else self.feed(made.loader)
        return replace(made, loader=loader, val=None if self.planned else made.val)

    def _stand_in(self) -> Any:
        """Data of the plan's length, so that the schedule has its steps; its pixels are never read."""
        from tlx.data.images import ArrayImages
        from tlx.data.load import Data

        assert self.plan is not None
        count = sum(len(r.facts["labels"]) for r in self.plan.stage("P2/train/0000"))
        size = self.recipe.image_size
        images = ArrayImages(np.zeros((count, 3, size, size), np.uint8), np.zeros(count, np.int64), ["0"] * count)
        return Data("plan", self.classes, images, None, None, "", ())

    def held_out(self) -> Any:
        """Batches without augmentation, of the test part or, where there is none, of the training part."""
        from tlx.training import build as assemble

        if self.planned:
            return PlannedLoader(self.plan, "test")
        return assemble.make_loader(self.recipe, self.data.test if self.data.test is not None else self.data.train)

    @cached_property
    def tests(self) -> list[Batch]:
        return list(islice(RecordedLoader(self.held_out(), self.writer, "test").epoch(0), 4))

    @cached_property
    def batches(self) -> list[Batch]:
        """The first training batches, all of full size."""
        loader = self.training(self.model, self.backend).loader
        return list(islice(loader.epoch(0), min(LOCKED, max(loader.steps - 1, 1))))

    def manifest(self, stages: tuple[str, ...], quick: bool) -> dict[str, Any]:
        recipe = self.recipe.to_dict()
        must = {name: hexed(value) for name, value in recipe.items() if name not in FREE}
        must["classes"] = list(self.classes)
        if not isinstance(self.recipe.model, str):
            must["model"] = MODULE  # whose class may have another name in a port
        fingerprint = self.data.fingerprint if self.data is not None else None
        if self.planned and self.plan is not None:
            must, fingerprint = self.plan.manifest["must"], self.plan.manifest["must"]["data"]
        can = self.backend.capabilities()
        return {
            "must": {**must, "data": fingerprint, "stages": list(stages)},
            "recipe": {k: v for k, v in recipe.items() if v is not None and isinstance(k, str)},
            "backend": self.backend.name,
            "versions": dict(can.versions),
            "device": self.recipe.device,
            "precisions": list(can.precisions[self.recipe.device]),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
            "quick": quick,
            "planned": self.planned,
            "replayed": self.plan.manifest["inputs"] if self.plan is not None else None,
            "inputs": sha256(np.array([sha256(a) for a in self.initial.values()])),
        }


def hexed(value: Any) -> Any:
    """Write floats as hex, so that they compare bit for bit."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(k): hexed(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [hexed(v) for v in value]
    return value


def weights(s: Subject) -> None:
    """P1: names, shapes, dtypes and bytes, read back after loading."""
    s.start(s.model)
    specs = [[p.name, list(p.shape), p.dtype, p.role, p.module] for p in s.backend.param_specs(s.model)]
    s.writer.add("P1", {"specs": specs}, s.backend.dump_arrays(s.model))


def draws(s: Subject) -> None:
    """P2: every batch of every epoch."""
    loader = RecordedLoader(s.training(s.model, s.backend).loader, s.writer)
    for epoch in range(s.recipe.epochs):
        for _ in loader.epoch(epoch):
            pass
    assert s.tests


def evaluation(s: Subject) -> None:
    """P3: every module's output in eval mode."""
    s.start(s.model)
    batch = s.backend.put(s.model, s.tests[0])
    lazies: list[Any] = []
    add_visits(s.writer, "P3", s.probe.record(lambda: lazies.append(s.backend.logits(s.model, batch))))
    s.writer.add("P3/logits", arrays={"logits": s.backend.fetch(lazies)[0]})


def add_visits(writer: Writer, stage: str, visits: tuple[Visit, ...]) -> None:
    for number, visit in enumerate(visits):
        named = {"input": visit.input, "output": visit.output, "grad": visit.grad}
        arrays = {name: array for name, array in named.items() if array is not None}
        writer.add(f"{stage}/visit/{number:04d}", {"path": visit.path, "kind": visit.kind}, arrays)


def backward(s: Subject) -> None:
    """P4: outputs, loss, gradients and buffers of one training step where everything trains; then modules alone."""
    s.start(s.model)
    s.everything(s.model)
    probe, batch = s.probe, s.backend.put(s.model, s.batches[0])
    lazies: list[Any] = []
    visits = probe.record(lambda: lazies.extend(s.backend.backward(s.model, batch)))
    loss, correct = s.backend.fetch(lazies)
    statistics = {p.name for p in s.backend.param_specs(s.model) if p.role == "statistic"}
    buffers = {name: array for name, array in s.backend.dump_arrays(s.model).items() if name in statistics}
    add_visits(s.writer, "P4", visits)
    s.writer.add("P4/loss", {"loss": float(loss).hex(), "correct": int(correct)})
    s.writer.add("P4/gradients", arrays=probe.gradients())
    s.writer.add("P4/buffers", arrays=buffers)
    probe.set_gradients({})
    s.start(s.model)
    s.everything(s.model)
    fed = [(v.path, v.input, v.grad) for v in visits if v.output is not None]
    if s.plan is not None:
        records = [r for r in s.plan.stage("P4/visit") if "input" in r.files]
        fed = [(str(r.facts["path"]), r.array("input"), r.array("grad")) for r in records]
    add_replays(s.writer, probe, fed, {v.path for v in visits})


def add_replays(
    writer: Writer, probe: Probe, fed: list[tuple[str, Array | None, Array | None]], known: set[str]
) -> None:
    for number, (path, x, dy) in enumerate(fed):
        if path not in known or x is None:
            continue
        alone = probe.replay(path, x, dy, training=True)
        facts: dict[str, Any] = {"path": path}
        arrays: dict[str, Array] = {}
        got = {"output": alone.output, **({} if alone.input_grad is None else {"input gradient": alone.input_grad})}
        for kind, found in (("forward", got), ("gradients", alone.gradients), ("buffers", alone.buffers)):
            facts[kind], arrays[kind] = bundle(found)
        if (twisted := probe.replay_transposed(path, x)) is not None:
            facts["transposed"], arrays["transposed"] = bundle({"output": twisted})
        writer.add(f"P4/replay/{number:04d}", facts, arrays)


# One update each: whether only the last group trains, and the factor of the rates.
SCRIPT = ((True, 1.0), (False, 1.0), (False, 0.5), (True, 0.5))


def updates(s: Subject) -> None:
    """P5: four updates from gradients that the core draws, with parts frozen before and after."""
    arrays = s.start(s.model)
    job = s.training(s.model, s.backend)
    groups = job.plan.groups
    base = job.plan.strategy.phases[-1].lr
    names = [n for g in groups for n in g.params]
    late = frozenset(n for g in groups if g.name == groups[-1].name for n in g.params)
    late = late if len(late) < len(names) else frozenset(names[len(names) // 2 :])
    probe = s.probe
    spec = OptimizerSpec(s.recipe.optimizer, float32_exact(s.recipe.momentum))
    facts = {
        "optimizer": spec.name,
        "momentum": spec.momentum,
        "betas": list(spec.betas),
        "eps": spec.eps,
        "groups": [list(g.params) for g in groups],
        "alpha": getattr(spec, "alpha", None),
    }
    s.writer.add("P5/script", facts)
    for number, (partly, factor) in enumerate(SCRIPT):
        trains = late if partly else frozenset(names)
        hyper = [
            Hyper(float32_exact((base.get(g.name) or 1e-4) * factor), float32_exact(g.weight_decay)) for g in groups
        ]
        s.backend.set_phase(s.model, trains, frozenset())
        s.backend.set_hyper(job.optimizer, hyper)
        probe.set_gradients({n: drawn_gradient(n, number, arrays[n].shape) for n in names if n in trains})
        s.backend.update(s.model, job.optimizer)
        step: dict[str, Any] = {"hyper": [[h.lr, h.weight_decay] for h in hyper], "trains": sorted(trains)}
        found: dict[str, Array] = {}
        step["values"], found["values"] = bundle(s.backend.dump_arrays(s.model))
        step["slots"], found["slots"] = bundle(s.backend.dump_optimizer(job.optimizer))
        s.writer.add(f"P5/update/{number}", step, found)


def drawn_gradient(name: str, update: int, shape: tuple[int, ...]) -> Array:
    """A gradient of size about 1e-2, the same on every stack."""
    drawn: Array = (2 * rng.uniform(update, f"parity/gradient/{name}", shape) - 1).astype(np.float32)
    return drawn.astype(np.float64) * 2.0**-6


def trajectory(s: Subject) -> None:
    """P6: the production loop, from its first step to its last."""
    s.start(s.model)
    recorder = Recorder(s.backend, s.writer, "P6")
    try:
        for _ in train(s.training(s.model, cast(Backend, recorder)), State()):
            pass
    except TlxError as error:
        s.writer.add("P6/error", {"step": recorder.step, "text": str(error)})


def metrics(s: Subject) -> None:
    """P7: logits, and the counts and losses that the stack makes of them, after the trajectory."""
    for number, batch in enumerate(s.tests):
        ready = s.backend.put(s.model, batch)
        (logits,) = s.backend.fetch([s.backend.logits(s.model, ready)])
        loss, correct = s.backend.fetch([*s.backend.evaluate(s.model, ready)])
        facts = {"loss": float(loss).hex(), "correct": int(correct), "labels": batch.labels.tolist()}
        s.writer.add(f"P7/{number:04d}", facts, {"logits": logits})


def locked(s: Subject) -> None:
    """P8: one step from the same state in float64 and float32; the reference also from values one unit off."""
    runs: list[tuple[Precision, bool]] = [("float64", False), ("float32", False), ("float32", True)]
    for precision, nudged in runs[: 3 if s.plan is None else 2]:
        model = s.model if precision == "float64" else s.build(precision)[0]
        probe = s.backend.probe(model)  # type: ignore[attr-defined]
        for number, batch in enumerate(s.batches):
            s.start(model, nudged=nudged)
            s.everything(model)
            loss, _ = s.backend.fetch([*s.backend.backward(model, s.backend.put(model, batch))])
            facts: dict[str, Any] = {"loss": float(loss).hex()}
            arrays: dict[str, Array] = {}
            values = s.backend.dump_arrays(model)
            specs = s.backend.param_specs(model)
            buffers = {p.name: values[p.name] for p in specs if p.role == "statistic" and "float" in p.dtype}
            facts["gradients"], arrays["gradients"] = bundle(probe.gradients())
            facts["buffers"], arrays["buffers"] = bundle(buffers)
            s.writer.add(f"P8/{precision}{'-nudged' if nudged else ''}/{number}", facts, arrays)


def free_running(s: Subject) -> None:
    """P9: loss curves in float32, from the initial values; the reference also from values one unit off."""
    model, _ = s.build("float32")
    for nudged in (False, True)[: 2 if s.plan is None else 1]:
        s.start(model, nudged=nudged)
        recorder = Recorder(s.backend, s.writer, "P9/nudged" if nudged else "P9/plain", values=False)
        single = replace(s, recipe=replace(s.recipe, precision="float32"))
        try:
            for _ in train(single.training(model, cast(Backend, recorder)), State()):
                if recorder.step >= STEPS // 2:
                    break
        except TlxError as error:
            s.writer.add("P9/error", {"step": recorder.step, "text": str(error)})


RUN: dict[str, Callable[[Subject], None]] = {
    "P1": weights,
    "P2": draws,
    "P3": evaluation,
    "P4": backward,
    "P5": updates,
    "P6": trajectory,
    "P7": metrics,
    "P8": locked,
    "P9": free_running,
}
__all__ = ["STAGES", "Arrays", "capture", "reduced"]
