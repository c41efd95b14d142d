"""The folder last/ of a run: all that resuming needs, written so that a kill at any moment leaves it whole.

``state.safetensors`` holds the values, the optimizer's state and, as metadata, the counters; it is replaced at once.
``best-N.safetensors`` holds the values of the best epoch N; it is written before the state that counts on it, and
deleted once the run has finished, whose ``model.safetensors`` holds them then.

A finished run keeps its state, so that epochs can be added. Its result stays as it is until theirs is written, so a
kill meanwhile loses neither: ``recipe.toml`` already names the new total, and the next resume goes on towards it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomli_w

from tlx.atomic import write_atomic
from tlx.backend import Array, Arrays
from tlx.backend.checks import check_arrays
from tlx.errors import RecipeError, TlxError
from tlx.models.weights import RUN_WEIGHTS, digest, read_weights, write_safetensors
from tlx.recipe import read_toml
from tlx.runs.card import epochs_of, read_card
from tlx.runs.saved import VERSION, Saved, parse
from tlx.training.loop import State, Training, stalled, val_losses
from tlx.training.metrics import Meter, check_finite

FOLDER, STATE = "last", "last/state.safetensors"
RECIPE, RESULT = "recipe.toml", "result.json"


def save(training: Training, state: State, run_dir: Path, fingerprint: str) -> None:
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
    check_finite(arrays, f"by step {state.step}")
    (run_dir / FOLDER).mkdir(exist_ok=True)
    best = _best_file(run_dir, state.best_epoch)
    if state.best_epoch != state.best_saved:
        write_safetensors(best, state.best)
        state.best_saved = state.best_epoch
    facts = {
        "version": VERSION,
        "step": state.step,
        "history": [asdict(epoch) for epoch in state.history],
        "meter": None if state.meter is None else _meter_facts(state.meter),
        "frozen": state.frozen,
        "data": fingerprint,
        "sha256": digest(arrays),
    }
    write_safetensors(run_dir / STATE, arrays, {"tlx": json.dumps(facts, allow_nan=False)})
    for old in (run_dir / FOLDER).glob("best-*.safetensors"):
        if old != best:
            old.unlink()


def load(training: Training, run_dir: Path, fingerprint: str) -> State:
    """Return the saved state, and put its values into the training's model and optimizer.

    Raises TlxError where the folder is damaged, or where it was written for other data or another model.
    """
    path = run_dir / STATE
    saved, arrays = _read_saved(path), read_weights(path)
    if digest(arrays) != saved.sha256:
        raise TlxError(f"{path} is damaged: its values are not those that were saved. Start the run again.")
    if saved.data != fingerprint:
        raise TlxError(f"{run_dir} was trained on other data than there is now; a run resumes on the same data only")
    saved.check(training)
    check_finite(arrays, f"in {path}")
    training.backend.load_arrays(training.model, _part("model", arrays))
    training.backend.load_optimizer(training.optimizer, _part("optimizer", arrays))
    if training.shadow is not None:
        training.backend.load_arrays(training.shadow, _part("ema", arrays))
    state = State(saved.history, saved.step, frozen=saved.frozen)
    if state.best_epoch >= 0:
        state.best, state.best_saved = _best(run_dir, state.best_epoch), state.best_epoch
        check_arrays(training.backend.param_specs(training.model), state.best)
    if saved.meter is not None:
        meter = Meter(training.backend, training.model, "train", len(state.history), training.loader.steps)
        state.meter = saved.meter.put_into(meter)
    return state


def check_epochs(run_dir: Path, asked: int, epochs: int) -> None:
    """Raise TlxError where a run cannot go on to `epochs`: one under way keeps those asked for, others need more."""
    if not (run_dir / RESULT).exists():
        if epochs != asked:
            raise RecipeError(
                f"resume: epochs cannot change in the middle of a run; {run_dir} runs to {asked}",
                fix=f"finish it first, with: tlx run --resume {run_dir}; then add epochs",
            )
        return
    total, done = epochs_of(run_dir)
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
    if not (run_dir / STATE).is_file():
        raise TlxError(
            f"{run_dir} holds no {STATE}, without which no epochs can be added: it was deleted, or an earlier tlx "
            "finished the run",
            fix=elsewhere,
        )


def add_epochs(training: Training, state: State, run_dir: Path) -> list[str]:
    """Note in the recipe of a finished run that it goes on; return what to say of it. Nothing for any other run.

    Raises TlxError where the run ended early, for it would end again at once.
    """
    if not (run_dir / RESULT).exists() or len(state.history) > epochs_of(run_dir)[1]:
        return []
    schedule, losses = training.plan.schedule, val_losses(state.history)
    before = replace(schedule, epochs=epochs_of(run_dir)[0])
    if stalled(state.history, training.patience):
        raise TlxError(
            f"{run_dir} ended early after {len(state.history)} of {before.epochs} epochs, as {training.patience} of "
            "them brought no better validation accuracy; more epochs would end as early",
            fix=f"start a run with weights={str(run_dir)!r}",
        )
    values = {**read_toml(run_dir / RECIPE), "epochs": schedule.epochs}
    write_atomic(run_dir / RECIPE, tomli_w.dumps(values).encode())
    notes = [f"epochs {before.epochs + 1} to {schedule.epochs} are added to the {before.epochs} that are done"]
    end = before.epochs * schedule.steps_per_epoch
    if before.factor(end - 1, losses) != schedule.factor(end - 1, losses):
        notes.append(
            f"schedule {schedule.name} spans {schedule.epochs} epochs now: it had brought the rates to "
            f"{before.factor(end - 1, losses):.3g} of the full ones, and goes on as in a run of {schedule.epochs} "
            f"epochs, at {schedule.factor(end, losses):.3g}"
        )
    return notes


def drop_best(run_dir: Path) -> None:
    """Delete the best epoch's values in last/: the finished run holds them beside its result."""
    for file in (run_dir / FOLDER).glob("best-*.safetensors"):
        file.unlink(missing_ok=True)


def _best(run_dir: Path, epoch: int) -> dict[str, Array]:
    """Return the best epoch's values; those of a finished run are its model."""
    if _best_file(run_dir, epoch).exists() or not (run_dir / RESULT).exists():
        return read_weights(_best_file(run_dir, epoch))
    best = read_weights(run_dir)
    if digest(best) != read_card(run_dir).sha256:
        raise TlxError(f"{run_dir / RUN_WEIGHTS} is damaged: its values are not those that were saved")
    return best


def _read_saved(path: Path) -> Saved:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {})["tlx"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TlxError(f"{path} is damaged ({reason}); start the run again.") from error
    return parse(text, path)


def _best_file(run_dir: Path, epoch: int) -> Path:
    return run_dir / FOLDER / f"best-{epoch + 1}.safetensors"


def _prefixed(kind: str, arrays: Arrays) -> dict[str, Any]:
    return {f"{kind}/{name}": array for name, array in arrays.items()}


def _part(kind: str, arrays: Arrays) -> dict[str, Any]:
    return {name.removeprefix(f"{kind}/"): array for name, array in arrays.items() if name.startswith(f"{kind}/")}


def _meter_facts(meter: Meter) -> dict[str, Any]:
    return {
        **{name: getattr(meter, name) for name in ("loss", "correct", "images", "step")},
        "earlier": meter.seconds,
    }
