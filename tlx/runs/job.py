"""The whole job, readable top to bottom: a recipe in, a result and its folder out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from tlx.atomic import write_atomic, write_json
from tlx.backend import Preprocess, registry
from tlx.data import Data
from tlx.errors import Interrupted, RecipeError, RunNotFound, TlxError
from tlx.models.weights import digest, write_safetensors
from tlx.recipe import Recipe
from tlx.runs.display import Display, follow
from tlx.runs.folder import run_folder
from tlx.runs.interrupt import interruptible
from tlx.runs.result import Result
from tlx.runs.resume import FOLDER as LAST
from tlx.runs.resume import STATE
from tlx.runs.resume import load as load_state
from tlx.runs.resume import save as save_state
from tlx.training.build import build, check_fit, make_loader, open_data, place, start, training, versions
from tlx.training.loop import State, Training, evaluate, held_out, train
from tlx.training.metrics import EpochEnded, Event, Metrics, Stepped

T = TypeVar("T")
EPOCH_SECONDS = 5.0  # an epoch's end is a good place to save, unless epochs are so short that saving would cost more


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    *,
    resume: str | Path | None = None,
    quiet: bool = False,
    **fields: Any,
) -> Result:
    """Train by a recipe and evaluate once on the test part.

    Args:
        recipe: a Recipe, its fields as a mapping, or the path of a TOML file. Default: the CIFAR-10 tutorial's job.
        resume: the folder of an interrupted run, to go on where it was saved last. Of `fields` only those that cannot
            change the result may be given, and `backend`; `data` and `model` again where they were Python objects.
        quiet: show nothing on stderr.
        **fields: recipe fields, which replace those of `recipe`. See `tlx.Recipe`.

    Raises:
        TlxError: anything in the input, the data or the environment is not as it must be; one line says how to mend it.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the run; it was saved, and the text says how to resume it.
    """
    if resume is None:
        return execute(as_recipe(recipe, fields), Display(quiet))
    if recipe is not None:
        raise RecipeError("resume goes on with the recipe of the run's folder; leave the other recipe out")
    return execute(_resumed_recipe(Path(resume), fields), Display(quiet), Path(resume))


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path | None, fields: Mapping[str, Any]) -> Recipe:
    """Make a recipe of whatever stands for one."""
    if isinstance(recipe, Recipe):
        unknown = {name: value for name, value in fields.items() if name not in Recipe.__slots__}
        return replace(recipe, **fields) if not unknown else Recipe.from_dict(unknown)
    if isinstance(recipe, (str, Path)):
        return Recipe.from_toml(recipe, fields)
    return Recipe.from_dict({**(recipe or {}), **fields})


RESUMABLE = ("backend", "device", "precision", "workers", "feature_cache", "save_seconds", "data", "data_root", "model")


def _resumed_recipe(run_dir: Path, fields: Mapping[str, Any]) -> Recipe:
    for name in fields:
        if name not in RESUMABLE:
            raise RecipeError(f"resume: {name} cannot change in the middle of a run; what can: {', '.join(RESUMABLE)}")
    if not (run_dir / "recipe.toml").is_file():
        raise RunNotFound(f"{run_dir} holds no run: recipe.toml is missing. Pass a folder that `tlx run` wrote.")
    if (run_dir / "result.json").exists():
        raise TlxError(
            f"{run_dir} is finished; to train on from its weights, start a run with weights={str(run_dir)!r}"
        )
    return Recipe.from_toml(run_dir / "recipe.toml", fields)


def execute(recipe: Recipe, display: Display, resumed: Path | None = None) -> Result:
    """Run a recipe, or go on with the run in the folder `resumed`, showing its progress on a display."""
    started = time.perf_counter()
    backend = registry.load(recipe.backend)
    recipe = place(recipe.resolved(), backend)
    data = open_data(recipe)
    check_fit(recipe, data)
    model, arch = build(recipe, backend, len(data.classes))
    if resumed is None or not (resumed / STATE).exists():  # the latter was stopped before its first save
        start(recipe, backend, model, arch, display.shown)
    job = training(recipe, backend, data, model, arch)
    display.data(data, recipe)
    display.plan(job.plan, recipe)

    with run_folder(recipe, resumed) as run_dir, interruptible() as signalled:
        recipe = replace(recipe, out=None)
        state = State()
        if resumed is None:
            write_atomic(run_dir / "recipe.toml", recipe.to_toml().encode())
        elif (run_dir / STATE).exists():
            state = load_state(job, run_dir, data.fingerprint)
            display.resumed(state, job)
        with display.live(recipe):
            _train(job, state, run_dir, data.fingerprint, recipe.save_seconds, display, signalled)
            backend.load_arrays(model, state.best)
            test = None
            if data.test is not None:
                events = evaluate(backend, model, held_out(job, state, make_loader(recipe, data.test)), "test")
                test = follow(events, display, lambda event: _stop_if(signalled(), run_dir, "during the test"))
        result = Result(
            backend=recipe.backend,
            strategy=recipe.strategy_name,
            test_accuracy=test.accuracy if test else None,
            val_accuracy=val.accuracy if (val := state.history[state.best_epoch].val) else None,
            best_epoch=state.best_epoch + 1,
            epochs_run=len(state.history),
            history=[_entry(epoch) for epoch in state.history],
            trainable_parameters=job.plan.trainable_parameters(),
            total_parameters=job.plan.total_parameters(),
            train_images_per_second=sum(e.train.images for e in state.history) / sum(e.seconds for e in state.history),
            wall_seconds=time.perf_counter() - started,
            versions={**versions(), **backend.capabilities().versions},
            recipe=recipe,
            run_dir=run_dir,
            model=model.module,
        )
        write_safetensors(run_dir / "model.safetensors", state.best)
        write_json(run_dir / "card.json", card(recipe, data, arch.head, digest(state.best)))
        write_json(run_dir / "result.json", result.to_dict())
        shutil.rmtree(run_dir / LAST, ignore_errors=True)
    display.result(result)
    return result


def _train(
    job: Training,
    state: State,
    run_dir: Path,
    fingerprint: str,
    save_seconds: float,
    display: Display,
    signalled: Callable[[], int],
) -> None:
    """Train to the end; save every `save_seconds`, earlier at an epoch's end, and when a signal says stop."""
    saved = time.monotonic()

    def after(event: Event) -> None:
        nonlocal saved
        if isinstance(event, EpochEnded):
            lines = "".join(json.dumps(_entry(epoch)) + "\n" for epoch in state.history)
            write_atomic(run_dir / "history.jsonl", lines.encode())
        elif not isinstance(event, Stepped):
            return
        stop = signalled()
        patience = min(save_seconds, EPOCH_SECONDS) if isinstance(event, EpochEnded) else save_seconds
        if stop or time.monotonic() - saved >= patience:
            save_state(job, state, run_dir, fingerprint)
            saved = time.monotonic()
        _stop_if(stop, run_dir, f"after step {state.step} of {job.plan.schedule.epochs * job.loader.steps}")

    follow(train(job, state), display, after)


def _stop_if(signum: int, run_dir: Path, where: str) -> None:
    if signum:
        raise Interrupted(f"stopped {where}; the run is saved. Go on with: tlx run --resume {run_dir}", signum)


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


def card(recipe: Recipe, data: Data, head: str, weights_digest: str) -> dict[str, Any]:
    """Describe what is needed to use the model again."""
    return {
        "format": 1,
        "model": recipe.model_name,
        "head": head,
        "classes": list(data.classes),
        "preprocess": asdict(Preprocess(recipe.image_size)),
        "crop_fraction": recipe.crop_fraction,
        "precision": recipe.precision,
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "sha256": weights_digest,
    }
