"""The whole job, readable top to bottom: a recipe in, a result and its folder out."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.atomic import json_bytes
from tlx.backend import Backend, registry
from tlx.data import Data, Loader
from tlx.download import clear_leftovers
from tlx.errors import BackendError, DataError, RecipeError, printable, shown
from tlx.manifest import RECIPE
from tlx.models.libraries import versions_of
from tlx.models.pixels import IMAGENET, Pixels
from tlx.models.weights import digest
from tlx.models.zoo import Architecture
from tlx.processes import Alone, Channel, connected, of_first
from tlx.recipe import PIXELS_SINCE, Recipe, RecipeFields, as_recipe, fields_affecting, read_toml, takes_fields
from tlx.runs import advice
from tlx.runs.confidence import calibrate
from tlx.runs.display import READING, Display, follow, listening
from tlx.runs.folder import RESULT, RunFolder, new_folder, resumed_folder
from tlx.runs.interrupt import NEVER, Stop, interruptible, standing
from tlx.runs.joined import check_backend, check_data, join, share_state, stopping
from tlx.runs.leaving import leave
from tlx.runs.logged import check_loggers, logged
from tlx.runs.logits import Recorder
from tlx.runs.multilabel import judge_multilabel
from tlx.runs.report.reporting import page_at_end, put_at_end
from tlx.runs.result import Result, frozen_entries, group_entries, history_entry
from tlx.runs.resume import begin, check_epochs, finish, was_cut
from tlx.runs.resume import load as load_state
from tlx.runs.resume import save as save_state
from tlx.runs.scores import MEANS, scores_of_part
from tlx.runs.supervised import fit_in_folder, train_in_folder
from tlx.training.build import (
    build_model,
    check_fit,
    framed,
    identity,
    load_initial,
    make_loader,
    make_training,
    open_data,
    resolve_placement,
    versions,
    with_pinned_weights,
)
from tlx.training.effects import check_effects, without_idle_fields
from tlx.training.fit import judge
from tlx.training.loop import State, Training, held_out
from tlx.training.metrics import Event
from tlx.training.neighbors import Bank
from tlx.training.trial import check_small_batches, find_unrepeatable

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP stopped the run; the text says what is saved, and how to go on.
    """
    if resume is not None and not isinstance(resume, (str, Path)):
        raise RecipeError(f"resume is {shown(resume)}; expected the folder of a run")
    if on_event is not None and not callable(on_event):
        raise RecipeError(f"on_event is {shown(on_event)}; expected a function of one event")
    with connected() as channel:
        display = Display(quiet or channel.world.rank > 0)
        result = start(recipe, resume, fields, display, on_event, channel)
        display.result(result)
    return result


def start(
    recipe: Recipe | Mapping[str, Any] | str | Path | None,
    resume: str | Path | None,
    fields: Mapping[str, Any],
    display: Display,
    on_event: Callable[[Event], object] | None = None,
    channel: Channel = Alone(),  # noqa: B008 (frozen)
) -> Result:
    """Run what a call of `run` asks for: a new recipe, or that of the run in the folder `resume`."""
    if resume is None:
        asked = recipe_to_run(recipe, fields)
        file = read_toml(Path(recipe)) if isinstance(recipe, (str, Path)) else {}
        return execute(asked, display, None, on_event, _earlier_pixels(file), channel)
    if recipe is not None:
        raise RecipeError("resume continues with the recipe of the run's folder; leave the other recipe out")
    if channel.world.rank > 0:  # the first one holds the folder
        content = of_first(channel)
        file, asked = read_toml(Path(resume) / RECIPE, content), _continued(Path(resume), content, fields)
        return execute(asked, display, None, on_event, _earlier_pixels(file), channel)
    with interruptible() as stop:
        begun = stop.text
        stop.at(begun, NEVER)
        with resumed_folder(Path(resume)) as folder:  # held before it is looked at: another run may be finishing it
            stop.at(begun)
            content = folder.read(RECIPE)
            file, asked = read_toml(folder.path / RECIPE, content), _resumed_recipe(folder, content, fields)
            of_first(channel, content)
            return execute(asked, display, folder, on_event, _earlier_pixels(file), channel)


def recipe_to_run(recipe: Recipe | Mapping[str, Any] | str | Path | None, fields: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a new run."""
    asked = as_recipe(recipe, fields)
    # tlx 0.1.0 took fields without effect, and what it wrote must run again.
    old = isinstance(recipe, (str, Path)) and read_toml(Path(recipe)).get("recipe_version") == 1
    return without_idle_fields(asked, keep=fields) if old else asked


def _earlier_pixels(file: Mapping[str, Any]) -> Pixels | None:
    """What every model's pixels were to the tlx that wrote a recipe; None: each has its own."""
    return IMAGENET if file.get("recipe_version", PIXELS_SINCE) < PIXELS_SINCE else None


def _resumed_recipe(folder: RunFolder, content: bytes, fields: Mapping[str, Any]) -> Recipe:
    recipe = _continued(folder.path, content, fields)
    if recipe.fits and folder.has(RESULT):
        problem = f"{folder.path} is finished, and strategy {recipe.strategy!r} has no epochs to add"
        raise RecipeError(problem, fix=f"start a run with weights={str(folder.path)!r}, to train on from its backbone")
    asked = _continued(folder.path, content, {name: value for name, value in fields.items() if name != "epochs"})
    check_epochs(folder, asked.epochs, recipe.epochs)
    return recipe


def _continued(run_dir: Path, content: bytes, fields: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a run's folder holds, with what may change when it goes on."""
    # Where and how fast a run goes on may change; data and model are checked to be the same.
    free = {*fields_affecting("speed", "place"), "data", "model", "head"} - {"out"}
    for name in fields:
        if name not in free and name != "epochs":
            able = ", ".join(f for f in Recipe.__dataclass_fields__ if f in free)
            raise RecipeError(f"resume: {name} cannot change in the middle of a run; what can: {able}")
    others = {name: value for name, value in fields.items() if name != "epochs"}
    recorded = Recipe.from_toml(run_dir / RECIPE, others, content=content)
    return replace(recorded, epochs=fields.get("epochs", recorded.epochs))


def execute(
    recipe: Recipe,
    display: Display,
    resumed: RunFolder | None = None,
    on_event: Callable[[Event], object] | None = None,
    own: Pixels | None = None,
    channel: Channel = Alone(),  # noqa: B008 (frozen)
) -> Result:
    """Run a recipe, or continue the run in the folder `resumed`, showing its progress on a display.

    `own` is what the model expects of its pixels, by default the value of its architecture. Of several processes,
    which a channel connects, the first one has the folder and the display.
    """
    with interruptible() as stop:
        saved = "nothing was saved. Start again" if resumed is None else f"{resumed.path} is as it was. Go on"
        stop.at(f"stopped before the training began; {saved} with: {stop.command}")
        return _execute(stop, recipe, display, resumed, on_event, own, channel)


def _execute(
    stop: Stop,
    recipe: Recipe,
    display: Display,
    resumed: RunFolder | None,
    on_event: Callable[[Event], object] | None,
    own: Pixels | None,
    channel: Channel,
) -> Result:
    first = channel.world.rank == 0
    listeners = [display.event, *([listening(on_event)] if on_event else [])]
    started = time.perf_counter()
    backend = registry.load(recipe.backend)
    automatic = recipe.precision == "auto"
    check_backend(backend, channel)
    check_loggers(recipe)
    if resumed is None:
        check_effects(recipe)
    recipe = resolve_placement(recipe.resolved(own), backend)
    clear_leftovers()
    data = open_data(recipe)
    check_fit(recipe, data, backend)
    recipe = framed(recipe, data, own)
    if data.fixes is not None:
        recipe = replace(recipe, fixes=data.fixes.pinned)
    # A resumed run may have been stopped before its first save. Other processes take the first one's values.
    fresh = (resumed is None or resumed.state is None) and first
    if fresh:
        recipe = with_pinned_weights(recipe, display.shown)
    training, arch, read = _prepared(recipe, backend, data, fresh, display.shown, channel)
    if resumed is None:
        check_effects(recipe, data, training.plan)
    notes = [*data.notes, *advice.before(recipe, data)]
    network = identity(recipe, backend)
    steps_in_bfloat16 = recipe.precision == "bfloat16" and not recipe.fits
    name = find_unrepeatable(training, network) if steps_in_bfloat16 and first else None
    if name := of_first(channel, (name or "").encode()).decode():
        problem = f"the gradient of {name!r} in bfloat16 does not come out the same twice on {recipe.backend} here"
        if not automatic:
            raise BackendError(problem, fix="use precision float32, or another image_size")
        notes.append(f"{problem}, so precision is float32")
        recipe = replace(recipe, precision="float32")
        training, arch, read = _prepared(recipe, backend, data, fresh, display.shown, channel)
    if note := check_small_batches(training):
        notes.append(note)
    model = training.model
    display.data(data)
    display.notes(notes)
    display.plan(training.plan, recipe, [*getattr(model, "notes", ()), *read])

    data.take_fingerprint(display.counted(READING))
    check_data(data, channel)
    if not first:
        return join(stop, recipe, training, data, listeners[1:])

    stop.at(stop.text, NEVER)
    with _folder_of(recipe, resumed) as folder, closing(Recorder(folder.path)) as recorder, ExitStack() as stack:
        recipe, run_dir = replace(recipe, out=None), folder.path
        state, fresh = State(), folder.state is None
        if not fresh:
            state = load_state(training, folder, data)
            display.resumed(state, training)
        text = recipe.to_toml().encode(errors="surrogateescape")  # a path keeps its bytes
        if not fresh:
            recorder.resume(folder, state.best_epoch)
        fixes = None if data.fixes is None else data.fixes.text
        display.notes(begin(training, state, folder, data.fingerprint, text, recorder, fixes))
        share_state(training, state)
        log = stack.enter_context(logged(recipe, training, folder, state.history, display.notes))
        listeners += [recorder, log]
        with display.live(recipe):
            if recipe.fits:
                trained = fit_in_folder(training, state, folder, recipe, listeners, stop)
            else:
                save = partial(save_state, training, state, folder, data.fingerprint, recorder)
                train_in_folder(training, state, folder, save, recipe, listeners, stop)
                with stop.held():
                    save()  # epochs may be added later
                    trained = stop.text = f"stopped after the last epoch; {standing(recipe, run_dir, '')}"
            leaving = leave(recipe, training, state, len(data.classes))
            test, unread, evaluated = None, None, training.val or training.loader
            if data.test is not None and recipe.evaluate_test:
                evaluated = make_loader(recipe, data.test)
                try:
                    batches = evaluated if leaving.adapters else held_out(training, state, evaluated)
                    events = judge(training, leaving.model, state.bank, batches, "test")
                    test = follow(events, [*listeners, stopping(stop, trained, channel)])
                except DataError as error:
                    if channel.world.size > 1:
                        raise
                    unread = error  # no reason to lose the training: the run is finished without it
                    recorder.drop("test")  # those of the images before it
        last = list(advice.after(data, state.history, state.step, test))
        if data.val is not None and "val" not in recorder.parts:
            last.append("an earlier tlx evaluated the best epoch, so there are no predictions of the validation part")
        display.notes(last)
        several = judge_multilabel(data, recorder.parts) if data.multilabel else None
        calibration = None if data.multilabel else calibrate(data, recorder.parts)
        result = Result(
            backend=recipe.backend,
            strategy=recipe.strategy_name,
            test_accuracy=test.accuracy if test else None,
            **_scores(data, recorder),
            val_accuracy=val.accuracy if (val := state.history[state.best_epoch].val) else None,
            best_epoch=state.best_epoch + 1,
            epochs_run=len(state.history),
            history=[history_entry(epoch) for epoch in state.history],
            trainable_parameters=training.plan.trainable_parameters(),
            total_parameters=training.plan.total_parameters(),
            train_images_per_second=sum(e.train.images for e in state.history) / sum(e.seconds for e in state.history),
            wall_seconds=time.perf_counter() - started,
            processes=channel.world.size,
            versions={**versions(), **backend.capabilities().versions, **versions_of(recipe.model)},
            notes=[*notes, *last, *log.notes],
            calibration=calibration,
            multilabel=several,
            groups=group_entries(training.plan),
            frozen=frozen_entries(training.plan, state.frozen),
            recipe=recipe,
            run_dir=run_dir,
            model=leaving.model.module,
        )
        plain = card(recipe, data, arch.head, digest(leaving.values), evaluated, state.bank)
        stop.at(stop.text, NEVER)
        if calibration is not None:
            plain["temperature"] = calibration["temperature"]
        if several is not None:
            plain["thresholds"] = [several["thresholds"][name] for name in data.classes]
        described = {**plain, **leaving.described}
        drawn, problem = page_at_end(result.to_dict(), described, data, training.loader, evaluated, recorder.parts)
        _note_late(problem, result, display)
        finish(folder, leaving, described, result.to_dict(), data, recorder, state.bank)
        _note_late(put_at_end(folder, drawn), result, display)
        stop.at(f"stopped once the run had finished; all of it is saved in {run_dir}")
        of_first(channel, json_bytes(result.to_dict()))
        told = len(log.notes)
        log.end(test)
        result.notes.extend(log.notes[told:])
    if unread is not None:
        problem = f"{unread.problem}; the training is finished and saved in {run_dir}, without a test accuracy"
        raise DataError(problem, fix=f"mend or remove it, then: tlx evaluate {shlex.quote(str(run_dir))}")
    return result


def _folder_of(recipe: Recipe, resumed: RunFolder | None) -> AbstractContextManager[RunFolder]:
    """Hold the folder of a run: that which is held already, one in which it was cut, or a new one."""
    if resumed is not None:
        return nullcontext(resumed)
    return resumed_folder(Path(recipe.out)) if recipe.out is not None and was_cut(recipe) else new_folder(recipe)


def _scores(data: Data, recorder: Recorder) -> dict[str, float | None]:
    """Return balanced accuracy and macro F1 of the validation and the test part, None for what was not read."""
    figures = dict.fromkeys(f"{part}_{name}" for part in ("val", "test") for name in MEANS)
    for part, spool in ({} if data.multilabel else recorder.parts).items():
        scores = scores_of_part(data.parts[part], spool)
        figures.update({f"{part}_{name}": getattr(scores, name) for name in MEANS})
    return figures


def _note_late(note: str, result: Result, display: Display) -> None:
    """Add a note to a result that is made already, and show it; nothing where the note is empty."""
    if note:
        result.notes.append(note)
        display.notes([note])


def _prepared(
    recipe: Recipe, backend: Backend, data: Data, fresh: bool, progress: bool, channel: Channel
) -> tuple[Training, Architecture, list[str]]:
    """Build what trains, and what its weights were read from; `fresh` loads the values that the recipe starts from."""
    model, arch = build_model(recipe, backend, len(data.classes))
    read = load_initial(recipe, backend, model, arch, data.classes, progress) if fresh else []
    return make_training(recipe, backend, data, model, arch, channel), arch, read


def card(
    recipe: Recipe, data: Data, head: str, weights_digest: str, evaluated: Loader, bank: Bank | None
) -> dict[str, Any]:
    """Describe what is needed to use the model again, and all that was done to the pixels that it was evaluated on."""
    framing, size = evaluated.framing, evaluated.images.size
    return {
        "format": 2,  # since the folder has a manifest
        "model": recipe.model_name,
        "head": head,
        "weights": recipe.weights,
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
        **({} if bank is None else {"neighbors": {"k": bank.k, "temperature": bank.temperature}}),
    }
