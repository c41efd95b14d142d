"""The whole job, readable top to bottom: a recipe in, a result and its folder out."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tlx import registry
from tlx.backend import Backend, ModelSpec, OptimizerSpec, Precision, Preprocess
from tlx.checkpoint import digest, match, read_weights, write_atomic, write_json, write_safetensors
from tlx.data import Augment, Data, Loader, load
from tlx.display import Display
from tlx.errors import BackendError, RecipeError, TlxError
from tlx.initial import initial_arrays
from tlx.recipe import Recipe
from tlx.schedule import Schedule, float32_exact
from tlx.strategy import built_in
from tlx.train import EpochEnded, Event, Metrics, evaluate, train
from tlx.zoo import architecture

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run returns. Accuracies are parts of 1; `history` has one entry per epoch; `model` is the framework's."""

    backend: str
    strategy: str
    test_accuracy: float | None
    val_accuracy: float | None
    best_epoch: int  # counted from 1
    epochs_run: int
    history: list[dict[str, Any]]
    trainable_parameters: int
    total_parameters: int
    train_images_per_second: float
    wall_seconds: float
    versions: dict[str, str]
    recipe: Recipe
    run_dir: Path
    model: Any = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `model` is the architecture's name."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "model": self.recipe.model, "recipe": self.recipe.to_dict(), "run_dir": str(self.run_dir)}


def run(recipe: Recipe | Mapping[str, Any] | str | Path | None = None, *, quiet: bool = False, **fields: Any) -> Result:
    """Train by a recipe and evaluate once on the test part.

    Args:
        recipe: a Recipe, its fields as a mapping, or the path of a TOML file. Default: the CIFAR-10 tutorial's job.
        quiet: show nothing on stderr.
        **fields: recipe fields, which replace those of `recipe`. See `tlx.Recipe`.

    Raises:
        TlxError: anything in the input, the data or the environment is not as it must be; one line says how to mend it.
    """
    return execute(_recipe(recipe, fields), Display(quiet))


def _recipe(recipe: Recipe | Mapping[str, Any] | str | Path | None, fields: Mapping[str, Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        unknown = {name: value for name, value in fields.items() if name not in Recipe.__slots__}
        return replace(recipe, **fields) if not unknown else Recipe.from_dict(unknown)
    if isinstance(recipe, (str, Path)):
        return Recipe.from_toml(recipe, fields)
    return Recipe.from_dict({**(recipe or {}), **fields})


def execute(recipe: Recipe, display: Display) -> Result:
    """Run a recipe, showing its progress on a display."""
    started = time.perf_counter()
    backend = registry.load(recipe.backend)
    recipe = place(recipe.resolved(), backend)
    data = open_data(recipe)
    display.data(data, recipe)

    arch = architecture(recipe.model)
    spec = ModelSpec(recipe.model, len(data.classes), arch.head)
    model = backend.build(spec, recipe.device, _precision(recipe))
    specs = backend.param_specs(model)
    assert recipe.weights is not None and recipe.lr is not None
    backend.load_arrays(model, initial_arrays(specs, arch, recipe.weights, recipe.seed, display.shown))

    loader = make_loader(recipe, data.train, training=True)
    val = make_loader(recipe, data.val) if data.val is not None else None
    schedule = Schedule(recipe.schedule, recipe.epochs, loader.steps, recipe.warmup, recipe.step_size, recipe.gamma)
    strategy = built_in(recipe.strategy).make(recipe.lr, recipe.backbone_lr)
    plan = strategy.bind(specs, arch, schedule, recipe.weight_decay, recipe.frozen_norm)
    optimizer = backend.optimizer(
        model, OptimizerSpec(recipe.optimizer, float32_exact(recipe.momentum)), [g.params for g in plan.groups]
    )
    display.plan(plan, recipe)

    run_dir = make_run_dir(recipe)
    recipe = replace(recipe, out=None)
    write_atomic(run_dir / "recipe.toml", recipe.to_toml().encode())
    history: list[dict[str, Any]] = []
    with display.live(recipe):
        best_epoch, best = _follow(
            train(backend, model, optimizer, plan, loader, val), display, history, run_dir / "history.jsonl"
        )
        backend.load_arrays(model, best)
        test = None
        if data.test is not None:
            test = _follow(evaluate(backend, model, make_loader(recipe, data.test), "test"), display)

    seconds = sum(entry["seconds"] for entry in history)
    result = Result(
        backend=recipe.backend,
        strategy=recipe.strategy,
        test_accuracy=test.accuracy if test else None,
        val_accuracy=history[best_epoch]["val_accuracy"],
        best_epoch=best_epoch + 1,
        epochs_run=len(history),
        history=history,
        trainable_parameters=plan.trainable_parameters(),
        total_parameters=plan.total_parameters(),
        train_images_per_second=len(history) * len(data.train) / seconds,
        wall_seconds=time.perf_counter() - started,
        versions={**versions(), **backend.capabilities().versions},
        recipe=recipe,
        run_dir=run_dir,
        model=model.module,
    )
    write_safetensors(run_dir / "model.safetensors", best)
    write_json(run_dir / "card.json", card(recipe, data, arch.head, digest(best)))
    write_json(run_dir / "result.json", result.to_dict())
    display.result(result)
    return result


def _follow(
    events: Generator[Event, None, T],
    display: Display,
    history: list[dict[str, Any]] | None = None,
    file: Path | None = None,
) -> T:
    """Run a generator of events to its end, showing each and keeping the epochs; returns what it returned."""
    while True:
        try:
            event = next(events)
        except StopIteration as stop:
            value: T = stop.value
            return value
        display.event(event)
        if isinstance(event, EpochEnded) and history is not None and file is not None:
            history.append(_entry(event))
            write_atomic(file, "".join(json.dumps(entry) + "\n" for entry in history).encode())


def _entry(event: EpochEnded) -> dict[str, Any]:
    def metrics(part: str, m: Metrics | None) -> dict[str, float | None]:
        return {f"{part}_loss": m.loss if m else None, f"{part}_accuracy": m.accuracy if m else None}

    return {
        "epoch": event.epoch + 1,
        "phase": event.phase,
        **metrics("train", event.train),
        **metrics("val", event.val),
        "lr": list(event.lr),
        "seconds": event.seconds,
        "best": event.best,
    }


def evaluate_run(run_dir: str | Path, backend: str | None = None, *, quiet: bool = False) -> dict[str, Any]:
    """Evaluate a finished run's model on its test part, on the same backend or on another.

    Returns backend, test_accuracy, test_loss, images, recorded_accuracy (of the run itself) and run_dir.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "card.json").is_file():
        raise TlxError(f"{run_dir} holds no finished run: card.json is missing. Pass a folder that `tlx run` wrote.")
    recipe = Recipe.from_toml(run_dir / "recipe.toml")
    recipe = recipe if backend is None else replace(recipe, backend=backend, device="auto", precision="auto")
    stack = registry.load(recipe.backend)
    recipe = place(recipe, stack)
    data = open_data(recipe)
    recorded = read_json(run_dir / "card.json")
    if list(data.classes) != recorded["classes"]:
        raise TlxError(f"{run_dir} was trained on classes {recorded['classes']}; the data has {list(data.classes)}")
    if data.test is None:
        raise TlxError(f"{data.name} has no test part")
    arch = architecture(recipe.model)
    model = stack.build(ModelSpec(recipe.model, len(data.classes), arch.head), recipe.device, _precision(recipe))
    arrays = read_weights(run_dir)
    specs = stack.param_specs(model)
    stack.load_arrays(model, match(arrays, specs, head=arch.head, model_name=arch.name, take_head=True))
    display = Display(quiet)
    with display.live(recipe):
        metrics = _follow(evaluate(stack, model, make_loader(recipe, data.test), "test"), display)
    return {
        "backend": recipe.backend,
        "test_accuracy": metrics.accuracy,
        "test_loss": metrics.loss,
        "images": metrics.images,
        "recorded_accuracy": read_json(run_dir / "result.json")["test_accuracy"],
        "run_dir": str(run_dir),
    }


def open_data(recipe: Recipe) -> Data:
    """Load the recipe's data set and take the subsets it asks for."""
    return load(
        recipe.data,  # type: ignore[arg-type]
        root=recipe.data_root,
        classes=recipe.classes,
        limit_train=recipe.limit_train,
        limit_test=recipe.limit_test,
        val_fraction=recipe.val_fraction,
        seed=recipe.seed,
    )


def make_loader(recipe: Recipe, images: Any, *, training: bool = False) -> Loader:
    """Return the loader of a part: shuffled and augmented for training, else in order and centred."""
    return Loader(
        images,
        Preprocess(recipe.image_size),
        batch_size=recipe.batch_size,
        augment=Augment.parse(recipe.augment if training else "none"),
        crop_fraction=recipe.crop_fraction,
        seed=recipe.seed,
        workers=recipe.workers,
        shuffle=training,
    )


def place(recipe: Recipe, backend: Backend) -> Recipe:
    """Decide device and precision where the recipe says auto; refuse what the machine lacks."""
    can = backend.capabilities()
    device = can.devices[-1] if recipe.device == "auto" else recipe.device
    if device not in can.devices:
        raise BackendError(f"backend {backend.name!r} has no device {device!r} here; it has {', '.join(can.devices)}")
    offered = can.precisions[device]
    precision = offered[0] if recipe.precision == "auto" else recipe.precision
    if precision not in offered:
        raise BackendError(
            f"backend {backend.name!r} has no native {precision} on {device}; it has {', '.join(offered)}"
        )
    if recipe.model not in can.models:
        raise BackendError(f"backend {backend.name!r} has no model {recipe.model!r}; it has {', '.join(can.models)}")
    if recipe.optimizer not in can.optimizers:
        raise BackendError(f"backend {backend.name!r} has no optimizer {recipe.optimizer!r}")
    return replace(recipe, device=device, precision=precision)


def _precision(recipe: Recipe) -> Precision:
    assert recipe.precision != "auto"
    return recipe.precision  # type: ignore[return-value]


def make_run_dir(recipe: Recipe) -> Path:
    """Create the run's folder: `out`, which must not hold anything, or the next free one below runs/."""
    try:
        if recipe.out is not None:
            path = Path(recipe.out)
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise RecipeError(f"out: {path} is not empty, and tlx overwrites nothing; choose another folder")
            return path
        data = Path(recipe.data).name if isinstance(recipe.data, str) else "arrays"
        stem = f"{data}-{recipe.model}-{recipe.strategy}-{recipe.backend}"
        number = 1
        while True:
            path = Path("runs") / f"{stem}-{number}"
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                number += 1
    except OSError as error:
        raise TlxError(f"Cannot create {path}: {error.strerror}. Choose another folder with out.") from error


def card(recipe: Recipe, data: Data, head: str, weights_digest: str) -> dict[str, Any]:
    """Describe what is needed to use the model again."""
    return {
        "format": 1,
        "model": recipe.model,
        "head": head,
        "classes": list(data.classes),
        "preprocess": asdict(Preprocess(recipe.image_size)),
        "crop_fraction": recipe.crop_fraction,
        "precision": recipe.precision,
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "sha256": weights_digest,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TlxError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise TlxError(f"{path} is not a JSON object")
    return value


def versions() -> dict[str, str]:
    """Return the versions of Python, NumPy and tlx."""
    from importlib.metadata import version

    return {"python": platform.python_version(), "numpy": np.__version__, "tlx": version("tlx")}
