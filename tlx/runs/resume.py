"""What resuming needs, saved in a run's folder so that a kill at any moment leaves the last save or the new one.

``last/state-N.safetensors`` holds the values, the optimizer's state and, as metadata, the counters; N counts the saves.
``last/best-N.safetensors`` holds the values of the best epoch N, until the run has finished, whose
``model.safetensors`` holds them then; with adapters, which are merged into that, it stays. ``last/logits-N.npy`` holds
the logits of the validation part then, until ``logits-val.npy`` does. ``history.jsonl`` holds the epochs. They count
once the manifest names them.

A finished run keeps its state, so that epochs can be added. Its result stays as it is until theirs is written, so a
kill meanwhile loses neither: ``recipe.toml`` already names the new total, and the next resume goes on towards it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from tlx.atomic import json_bytes
from tlx.backend import Array, Arrays, ParamSpec
from tlx.backend.checks import check_arrays
from tlx.data import Data
from tlx.data.fingerprint import difference
from tlx.errors import RecipeError, RunDamaged, TlxError
from tlx.manifest import BANK, BEST, CARD, FIXES, HISTORY, LOGITS, RECIPE, REPORT, read_manifest
from tlx.models.weights import RUN_WEIGHTS, check_digest, digest, parse_safetensors, safetensors_bytes
from tlx.recipe import Recipe, fields_affecting, read_toml
from tlx.runs.card import epochs_of
from tlx.runs.facts import parse_object
from tlx.runs.folder import LAST, RESULT, RunFolder, writing
from tlx.runs.interrupt import TEXTS
from tlx.runs.leaving import ADAPTERS, Leaving
from tlx.runs.logits import Recorder, saved_file
from tlx.runs.result import history_entry
from tlx.runs.saved import VERSION, parse, parse_history
from tlx.runs.table import put_tables
from tlx.training.loop import State, Training, stalled, val_losses
from tlx.training.metrics import EpochEnded, Meter, check_finite
from tlx.training.neighbors import Bank


def save(training: Training, state: State, folder: RunFolder, fingerprint: str, recorder: Recorder) -> None:
    """Write where the run stands; between two steps only. `fingerprint` is that of the data.

    Raises TlxError, and leaves the last state as it is, if a value is not finite.
    """
    if state.meter is not None:
        state.meter.fetch()
    arrays = {
        **_prefixed("model", training.backend.dump_arrays(training.model)),
        **_prefixed("optimizer", training.backend.dump_optimizer(training.optimizer)),
    }
    if training.shadow is not None:
        arrays |= _prefixed("ema", training.backend.dump_arrays(training.shadow))
    check_finite(arrays, _specs(training), f"by step {state.step}")
    facts = {
        "version": VERSION,
        "step": state.step,
        "meter": None if state.meter is None else _meter_facts(state.meter),
        "frozen": state.frozen,
        "data": fingerprint,
    }
    with writing(folder.path):
        (folder.path / LAST).mkdir(exist_ok=True)
    best, before = _best_file(state.best_epoch), folder.state
    if state.best_epoch != state.best_saved:
        folder.put(best, safetensors_bytes(state.best))
        if (spool := recorder.parts.get("val")) is not None:
            with folder.putting(saved_file(state.best_epoch)) as out:
                spool.write(out)
    number = 1 + int(before.rpartition("-")[2].partition(".")[0]) if before and not folder.old else 1
    metadata = {"tlx": json.dumps(facts, allow_nan=False)}
    folder.put(f"{LAST}/state-{number}.safetensors", safetensors_bytes(arrays, metadata))
    of_best = (best, saved_file(state.best_epoch))
    of_epochs = [name for name in folder.files if BEST.fullmatch(name) or LOGITS.fullmatch(name)]
    drop = [name for name in folder.files if name == before or (name in of_epochs and name not in of_best)]
    folder.commit(drop)
    state.best_saved = state.best_epoch


def load(training: Training, folder: RunFolder, data: Data) -> State:
    """Return the saved state, and put its values into the training's model and optimizer.

    Raises TlxError where any file of the run is damaged, or where it was written for other data or another model.
    """
    name = folder.state
    assert name is not None
    for other in folder.files:
        if other not in (name, REPORT):
            folder.read(other)
    path, content = folder.path / name, folder.read(name)
    arrays = parse_safetensors(content, path)
    lines = b"" if folder.old or not folder.has(HISTORY) else folder.read(HISTORY)
    saved = parse(content, path, parse_history(lines, folder.path / HISTORY))
    if saved.sha256 is not None and digest(arrays) != saved.sha256:
        raise TlxError(f"{path} is damaged: its values are not those that were saved. Start the run again.")
    if what := difference(saved.data, data):
        raise TlxError(
            f"{folder.path} was trained on other data than there is now: {what}",
            fix="restore the data, or give a copy of them as `data`; a run resumes on the same data only",
        )
    saved.check(training)
    check_finite(arrays, _specs(training), f"in {path}")
    training.backend.load_arrays(training.model, _part("model", arrays))
    training.backend.load_optimizer(training.optimizer, _part("optimizer", arrays))
    if training.shadow is not None:
        training.backend.load_arrays(training.shadow, _part("ema", arrays))
    state = State(saved.history, saved.step, frozen=saved.frozen)
    if state.best_epoch >= 0:
        state.best, state.best_saved = _best(folder, state.best_epoch), state.best_epoch
        check_arrays(training.backend.param_specs(training.model), state.best)
    if saved.meter is not None:
        meter = Meter(training.backend, training.model, "train", len(state.history), training.loader.steps)
        state.meter = saved.meter.put_into(meter)
    return state


def begin(
    training: Training,
    state: State,
    folder: RunFolder,
    fingerprint: str,
    recipe: bytes,
    recorder: Recorder,
    fixes: bytes | None = None,
) -> list[str]:
    """Make the folder ready for a run that starts or goes on from `state`; return what to say of epochs that are added.

    Nothing is written where it raises TlxError: where epochs are added to a run that ended early, which would end
    again at once.
    """
    longer, notes = _added_epochs(training, state, folder) if folder.has(RESULT) else (None, [])
    saved = folder.state is not None
    if folder.old:
        history = b"".join(history_line(epoch) for epoch in state.history)
    else:
        history = folder.read(HISTORY) if state.history else b""
    folder.begin(history)
    if folder.old:  # new, or of an earlier tlx; from here on it is as this one writes it
        if folder.has(RECIPE):
            folder.adopt((RECIPE, CARD, RESULT, RUN_WEIGHTS))
        else:
            folder.put(RECIPE, recipe)
            if fixes is not None:
                folder.put(FIXES, fixes)
        if saved:
            state.best_saved = -1
            save(training, state, folder, fingerprint, recorder)
        else:
            folder.commit()
    if longer is not None:
        folder.put(RECIPE, longer)
        folder.commit()
    return notes


def finish(
    folder: RunFolder,
    leaving: Leaving,
    card: Mapping[str, Any],
    result: Mapping[str, Any],
    data: Data,
    recorder: Recorder,
    bank: Bank | None = None,
) -> None:
    """Write what a finished run leaves, all in one step.

    The best epoch's values in last/ are its model then, and are deleted, unless adapters were merged into that.
    """
    outdated = put_tables(folder, data, recorder.parts, card.get("thresholds"))
    folder.put(RUN_WEIGHTS, safetensors_bytes(leaving.values))
    if leaving.adapters:
        folder.put(ADAPTERS, safetensors_bytes(leaving.adapters))
    if bank is not None:
        folder.put(BANK, safetensors_bytes({"features": bank.features, "labels": bank.labels}))
    folder.put(CARD, json_bytes(card))
    folder.put(RESULT, json_bytes(result))
    outdated += [name for name in folder.files if LOGITS.fullmatch(name) or name == REPORT]  # that is drawn anew
    folder.commit(outdated + [name for name in folder.files if BEST.fullmatch(name) and not leaving.adapters])


def was_cut(recipe: Recipe) -> bool:
    """Whether `out` holds a run by this very recipe, whole, that ended before it was done: then the run goes on.

    So the command that a launcher repeats after a failure goes on from the last save. Any other folder is left alone.
    """
    path = Path(recipe.out or "")
    if not all(isinstance(getattr(recipe, name), TEXTS) for name in ("data", "model", "head")):
        return False  # nobody can tell whether these objects are those of the run
    try:
        manifest = read_manifest(path)
    except RunDamaged:
        return False
    if manifest is None or RESULT in manifest.files or RECIPE not in manifest.files:
        return False
    cut, asked = (read_toml(path / RECIPE, text.encode(errors="surrogateescape"))
                  for text in (manifest.recipe, recipe.to_toml()))  # fmt: skip
    return all(cut.get(name) == asked.get(name) for name in fields_affecting("result"))


def check_epochs(folder: RunFolder, asked: int, epochs: int) -> None:
    """Raise TlxError where a run cannot go on to `epochs`: one under way keeps those asked for, others need more."""
    run_dir = folder.path
    if not folder.has(RESULT):
        if epochs != asked:
            raise RecipeError(
                f"resume: epochs cannot change in the middle of a run; {run_dir} runs to {asked}",
                fix=f"finish it first, with: tlx run --resume {run_dir}; then add epochs",
            )
        return
    total, done = _finished_at(folder)
    elsewhere = f"start a run with weights={str(run_dir)!r}, to train on from its weights"
    if epochs <= total:
        raise RecipeError(
            f"{run_dir} is finished after {done} epochs" + (f", and epochs is {epochs}" if epochs != total else ""),
            fix=f"add epochs, with: tlx run --resume {run_dir} --epochs {total + max(done, 1)}; or {elsewhere}",
        )
    if asked > total and epochs != asked:
        raise RecipeError(
            f"resume: {run_dir} is on its way to {asked} epochs, and epochs is {epochs}",
            fix=f"finish that first, with: tlx run --resume {run_dir}",
        )
    if folder.state is None or not (run_dir / folder.state).exists():
        raise TlxError(
            f"{run_dir} holds no {folder.state or 'state in last/'}, without which no epochs can be added: it was "
            "deleted, or an earlier tlx finished the run",
            fix=elsewhere,
        )


def _added_epochs(training: Training, state: State, folder: RunFolder) -> tuple[bytes | None, list[str]]:
    """Return the recipe of a finished run that goes on, and what to say of it; None where it is on its way already.

    Raises TlxError where the run ended early, for it would end again at once.
    """
    total, done = _finished_at(folder)
    if len(state.history) > done:
        return None, []
    schedule, losses = training.plan.schedule, val_losses(state.history)
    before = replace(schedule, epochs=total)
    if stalled(state.history, training.patience):
        raise TlxError(
            f"{folder.path} ended early after {len(state.history)} of {before.epochs} epochs, as {training.patience} "
            "of them brought no better validation accuracy; more epochs would end as early",
            fix=f"start a run with weights={str(folder.path)!r}",
        )
    values = {**read_toml(folder.path / RECIPE, folder.read(RECIPE)), "epochs": schedule.epochs}
    notes = [f"epochs {before.epochs + 1} to {schedule.epochs} are added to the {before.epochs} that are done"]
    end = before.epochs * schedule.steps_per_epoch
    if before.factor(end - 1, losses) != schedule.factor(end - 1, losses):
        notes.append(
            f"schedule {schedule.name} spans {schedule.epochs} epochs now: it had brought the rates to "
            f"{before.factor(end - 1, losses):.3g} of the full ones, and goes on as in a run of {schedule.epochs} "
            f"epochs, at {schedule.factor(end, losses):.3g}"
        )
    return tomli_w.dumps(values).encode(errors="surrogateescape"), notes


def _finished_at(folder: RunFolder) -> tuple[int, int]:
    """Return the epochs that a finished run's result was to have, and has."""
    return epochs_of(folder.read(RESULT), folder.path)


def history_line(epoch: EpochEnded) -> bytes:
    """Return an epoch as a line of history.jsonl."""
    return json.dumps(history_entry(epoch)).encode() + b"\n"


def _best(folder: RunFolder, epoch: int) -> dict[str, Array]:
    """Return the best epoch's values; those of a finished run are its model."""
    name = _best_file(epoch)
    if not folder.has(name) and folder.has(RESULT):
        name = RUN_WEIGHTS
    best = parse_safetensors(folder.read(name), folder.path / name)
    if name == RUN_WEIGHTS and folder.old:
        check_digest(best, parse_object(folder.read(CARD), str(folder.path / CARD)), folder.path / name)
    return best


def _best_file(epoch: int) -> str:
    return f"{LAST}/best-{epoch + 1}.safetensors"


def _specs(training: Training) -> list[ParamSpec]:
    """Describe the arrays of the model and of its average by their names in a saved state."""
    return [replace(spec, name=f"{kind}/{spec.name}") for kind in ("model", "ema") for spec in training.plan.specs]


def _prefixed(kind: str, arrays: Arrays) -> dict[str, Any]:
    return {f"{kind}/{name}": array for name, array in arrays.items()}


def _part(kind: str, arrays: Arrays) -> dict[str, Any]:
    return {name.removeprefix(f"{kind}/"): array for name, array in arrays.items() if name.startswith(f"{kind}/")}


def _meter_facts(meter: Meter) -> dict[str, Any]:
    return {
        **{name: getattr(meter, name) for name in ("loss", "correct", "images", "step")},
        "earlier": meter.seconds,
    }
