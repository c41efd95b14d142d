"""The folder last/ of a run: all that resuming needs, written so that a kill at any moment leaves it whole.

``state.safetensors`` holds the values, the optimizer's state and, as metadata, the counters; it is replaced at once.
``best-N.safetensors`` holds the values of the best epoch N; it is written before the state that counts on it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tlx.backend import Arrays
from tlx.errors import TlxError
from tlx.models.weights import digest, read_weights, write_safetensors
from tlx.training.loop import State, Training
from tlx.training.metrics import EpochEnded, Meter, Metrics, check_finite

FOLDER, STATE = "last", "last/state.safetensors"
VERSION = 1


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
    facts, arrays = _metadata(path), read_weights(path)
    if digest(arrays) != facts["sha256"]:
        raise TlxError(f"{path} is damaged: its values are not those that were saved. Start the run again.")
    if facts["data"] != fingerprint:
        raise TlxError(f"{run_dir} was trained on other data than there is now; a run resumes on the same data only")
    training.backend.load_arrays(training.model, _part("model", arrays))
    training.backend.load_optimizer(training.optimizer, _part("optimizer", arrays))
    if training.shadow is not None:
        training.backend.load_arrays(training.shadow, _part("ema", arrays))
    state = State([_epoch(epoch) for epoch in facts["history"]], facts["step"], frozen=facts["frozen"])
    if state.best_epoch >= 0:
        state.best, state.best_saved = read_weights(_best_file(run_dir, state.best_epoch)), state.best_epoch
    if facts["meter"] is not None:
        state.meter = Meter(training.backend, training.model, "train", len(state.history), training.loader.steps)
        for name, value in facts["meter"].items():
            setattr(state.meter, name, value)
    return state


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            facts = json.loads((file.metadata() or {})["tlx"])
        if facts["version"] > VERSION:
            raise TlxError(f"{path} was written by a newer tlx; upgrade tlx to resume it")
        return dict(facts)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TlxError(f"{path} is damaged ({reason}); start the run again.") from error


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


def _epoch(values: dict[str, Any]) -> EpochEnded:
    metrics = {part: None if values[part] is None else Metrics(**values[part]) for part in ("train", "val")}
    return EpochEnded(**{**values, **metrics, "lr": tuple(values["lr"])})
