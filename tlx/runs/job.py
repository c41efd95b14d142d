"""The whole job, readable top to bottom: a recipe in, a result and its folder out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.atomic import write_atomic, write_json
from tlx.backend import Backend, registry
from tlx.data import Data, Loader
from tlx.errors import BackendError, Interrupted, RecipeError, RunNotFound, printable
from tlx.models.weights import digest, write_safetensors
from tlx.models.zoo import Architecture
from tlx.recipe import Recipe, RecipeFields, as_recipe, fields_affecting, read_toml, takes_fields
from tlx.runs import advice
from tlx.runs.display import Display, Listener, follow, listening
from tlx.runs.folder import run_folder
from tlx.runs.interrupt import interruptible
from tlx.runs.result import Result, history_entry
from tlx.runs.resume import STATE, add_epochs, check_epochs, drop_best
from tlx.runs.resume import load as load_state
from tlx.runs.resume import save as save_state
from tlx.training.build import (
    build_model,
    check_fit,
    identity,
    load_initial,
    make_loader,
    make_training,
    open_data,
    resolve_placement,
    versions,
)
from tlx.training.effects import check_effects, without_idle_fields
from tlx.training.loop import State, Training, evaluate, held_out, train
from tlx.training.metrics import EpochEnded, Event, Stepped
from tlx.training.trial import check_small_batches, find_unrepeatable

if TYPE_CHECKING:
    from typing_extensions import Unpack

EPOCH_SECONDS = 5.0  # an epoch's end is a good place to save, unless epochs are so short that saving would cost more


@takes_fields
def run(
    recipe: Recipe | RecipeFields | Mapping[str, Any] | str | Path | None = None,
    *,
    resume: str | Path | None = None,
    quiet: bool = False,
    on_event: Callable[[Event], object] | None = None,
    **fields: Unpack[RecipeFields],
) -> Result:
    """Train by a recipe and evaluate once on the test part.

    Args:
        recipe: a Recipe, its fields as a mapping, or the path of a TOML file. Default: the CIFAR-10 tutorial's job.
        resume: the folder of an interrupted run, to continue from its last save; or that of a finished one, with
            `epochs` greater than it has, to train on. Of the other `fields` only those that cannot change the result
            may be given; `data`, `model` and `head` again where they were Python objects.
        quiet: show nothing on stderr.
        on_event: is called with each event of the run (`tlx.training.metrics.Event`: phases, progress, steps, ends of
            epochs) and cannot change the run. If it raises an Exception, a warning says so and it is not called again.
        **fields: recipe fields, which replace those of `recipe`. See `tlx.Recipe`.

    Raises:
        TlxError: something in the input, the data or the environment is wrong; one line says how to mend it.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the run; it was saved, and the text says how to resume it.
    """
    display = Display(quiet)
    result = execute(recipe_to_run(recipe, resume, fields), display, resume, on_event)
    display.result(result)
    return result


def recipe_to_run(
    recipe: Recipe | Mapping[str, Any] | str | Path | None, resume: str | Path | None, fields: Mapping[str, Any]
) -> Recipe:
    """Return the recipe that a call of `run` asks for: a new one, or that of the run that is resumed."""
    if resume is None:
        asked = as_recipe(recipe, fields)
        # tlx 0.1.0 took fields without effect, and what it wrote must run again.
        old = isinstance(recipe, (str, Path)) and read_toml(Path(recipe)).get("recipe_version") == 1
        return without_idle_fields(asked, keep=fields) if old else asked
    if recipe is not None:
        raise RecipeError("resume continues with the recipe of the run's folder; leave the other recipe out")
    return _resumed_recipe(Path(resume), fields)


def _resumed_recipe(run_dir: Path, fields: Mapping[str, Any]) -> Recipe:
    # Where and how fast a run goes on may change; data and model are checked to be the same.
    free = {*fields_affecting("speed", "place"), "data", "model", "head"} - {"out"}
    for name in fields:
        if name not in free and name != "epochs":
            able = ", ".join(f for f in Recipe.__dataclass_fields__ if f in free)
            raise RecipeError(f"resume: {name} cannot change in the middle of a run; what can: {able}")
    if not (run_dir / "recipe.toml").is_file():
        raise RunNotFound(f"{run_dir} holds no run: recipe.toml is missing. Pass a folder that `tlx run` wrote.")
    others = {name: value for name, value in fields.items() if name != "epochs"}
    recorded = Recipe.from_toml(run_dir / "recipe.toml", others)
    recipe = replace(recorded, epochs=fields.get("epochs", recorded.epochs))
    check_epochs(run_dir, recorded.epochs, recipe.epochs)
    return recipe


def execute(
    recipe: Recipe,
    display: Display,
    resumed: str | Path | None = None,
    on_event: Callable[[Event], object] | None = None,
) -> Result:
    """Run a recipe, or continue the run in the folder `resumed`, showing its progress on a display."""
    resumed = None if resumed is None else Path(resumed)
    listeners = [display.event, *([listening(on_event)] if on_event else [])]
    started = time.perf_counter()
    backend = registry.load(recipe.backend)
    automatic = recipe.precision == "auto"
    recipe = resolve_placement(recipe.resolved(), backend)
    if resumed is None:
        check_effects(recipe)
    data = open_data(recipe)
    check_fit(recipe, data)
    fresh = resumed is None or not (resumed / STATE).exists()  # the latter was stopped before its first save
    training, arch, read = _prepared(recipe, backend, data, fresh, display.shown)
    if resumed is None:
        check_effects(recipe, data, training.plan)
    notes = [*data.notes, *advice.before(recipe, data)]
    network = identity(recipe, backend)
    if recipe.precision == "bfloat16" and (name := find_unrepeatable(training, network)) is not None:
        problem = f"the gradient of {name!r} in bfloat16 does not come out the same twice on {recipe.backend} here"
        if not automatic:
            raise BackendError(problem, fix="use precision float32, or another image_size")
        notes.append(f"{problem}, so precision is float32")
        recipe = replace(recipe, precision="float32")
        training, arch, read = _prepared(recipe, backend, data, fresh, display.shown)
    if note := check_small_batches(training):
        notes.append(note)
    model = training.model
    display.data(data)
    display.notes(notes)
    display.plan(training.plan, recipe, [*getattr(model, "notes", ()), *read])

    with run_folder(recipe, resumed) as run_dir, interruptible() as signalled:
        recipe = replace(recipe, out=None)
        state = State()
        if resumed is None:
            write_atomic(
                run_dir / "recipe.toml", recipe.to_toml().encode(errors="surrogateescape")
            )  # a path keeps its bytes
        elif (run_dir / STATE).exists():
            state = load_state(training, run_dir, data.fingerprint)
            display.resumed(state, training)
            display.notes(add_epochs(training, state, run_dir))
        with display.live(recipe):
            _train(training, state, run_dir, data.fingerprint, recipe.save_seconds, listeners, signalled)
            save_state(training, state, run_dir, data.fingerprint)  # epochs may be added later
            backend.load_arrays(model, state.best)
            test, evaluated = None, training.val or training.loader
            if data.test is not None:
                evaluated = make_loader(recipe, data.test)
                events = evaluate(backend, model, held_out(training, state, evaluated), "test")
                test = follow(events, [*listeners, lambda event: _stop_if(signalled(), run_dir, "during the test")])
        last = list(advice.after(data, state.history, state.step, test))
        display.notes(last)
        result = Result(
            backend=recipe.backend,
            strategy=recipe.strategy_name,
            test_accuracy=test.accuracy if test else None,
            val_accuracy=val.accuracy if (val := state.history[state.best_epoch].val) else None,
            best_epoch=state.best_epoch + 1,
            epochs_run=len(state.history),
            history=[history_entry(epoch) for epoch in state.history],
            trainable_parameters=training.plan.trainable_parameters(),
            total_parameters=training.plan.total_parameters(),
            train_images_per_second=sum(e.train.images for e in state.history) / sum(e.seconds for e in state.history),
            wall_seconds=time.perf_counter() - started,
            versions={**versions(), **backend.capabilities().versions},
            notes=[*notes, *last],
            recipe=recipe,
            run_dir=run_dir,
            model=model.module,
        )
        write_safetensors(run_dir / "model.safetensors", state.best)
        write_json(run_dir / "card.json", card(recipe, data, arch.head, digest(state.best), evaluated))
        write_json(run_dir / "result.json", result.to_dict())
        drop_best(run_dir)
    return result


def _prepared(
    recipe: Recipe, backend: Backend, data: Data, fresh: bool, progress: bool
) -> tuple[Training, Architecture, list[str]]:
    """Build what trains, and what its weights were read from; `fresh` loads the values that the recipe starts from."""
    model, arch = build_model(recipe, backend, len(data.classes))
    read = load_initial(recipe, backend, model, arch, data.classes, progress) if fresh else []
    return make_training(recipe, backend, data, model, arch), arch, read


def _train(
    training: Training,
    state: State,
    run_dir: Path,
    fingerprint: str,
    save_seconds: float,
    listeners: Sequence[Listener],
    signalled: Callable[[], int],
) -> None:
    """Train to the end; save every `save_seconds`, earlier at an epoch's end, and when a signal says stop."""
    saved = time.monotonic()

    def after(event: Event) -> None:
        nonlocal saved
        if isinstance(event, EpochEnded):
            lines = "".join(json.dumps(history_entry(epoch)) + "\n" for epoch in state.history)
            write_atomic(run_dir / "history.jsonl", lines.encode())
        elif not isinstance(event, Stepped):
            return
        stop = signalled()
        patience = min(save_seconds, EPOCH_SECONDS) if isinstance(event, EpochEnded) else save_seconds
        if stop or time.monotonic() - saved >= patience:
            save_state(training, state, run_dir, fingerprint)
            saved = time.monotonic()
        _stop_if(stop, run_dir, f"after step {state.step} of {training.plan.schedule.epochs * training.loader.steps}")

    follow(train(training, state), [*listeners, after])


def _stop_if(signum: int, run_dir: Path, where: str) -> None:
    if signum:
        raise Interrupted(f"stopped {where}; the run is saved. Go on with: tlx run --resume {run_dir}", signum)


def card(recipe: Recipe, data: Data, head: str, weights_digest: str, evaluated: Loader) -> dict[str, Any]:
    """Describe what is needed to use the model again, and all that was done to the pixels that it was evaluated on."""
    framing, size = evaluated.framing, evaluated.images.size
    return {
        "format": 1,
        "model": recipe.model_name,
        "head": head,
        "classes": list(data.classes),
        "preprocess": asdict(evaluated.preprocess),
        "crop_fraction": framing.crop_fraction,
        "pixels": {**framing.facts(), "image_size": None if size is None else list(size)},
        "precision": recipe.precision,
        "images": "photos" if size is None else "fixed",
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "notes": [printable(note) for note in data.notes],
        },
        "sha256": weights_digest,
    }
