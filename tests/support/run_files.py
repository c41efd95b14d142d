"""The files of a run's folder, for tests that look at them or change them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import tlx
from tlx.errors import Interrupted
from tlx.manifest import MANIFEST, RECIPE, Entry, Manifest, read_manifest
from tlx.training.metrics import EpochEnded, Event

FIELDS: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp-dropout", "strategy": "full", "weights": "none", "data": "digits"},
    **{"image_size": 8, "limit_train": 70, "limit_test": 20, "val_fraction": 0.2, "batch_size": 16, "epochs": 3},
    **{"lr": 0.05, "workers": 0, "quiet": True},
}


def stopped(out: Path, **fields: Any) -> Path:
    """A run that was stopped after its second epoch, as by Ctrl-C."""

    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        tlx.run(**{**FIELDS, **fields}, out=str(out), on_event=stop)
    return out


def outcome(run: Path) -> tuple[Any, ...]:
    """All that a run found, without what its clock said."""
    result = json.loads((run / "result.json").read_text())
    kept = {name: result[name] for name in ("test_accuracy", "val_accuracy", "best_epoch", "epochs_run")}
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    values = {name: array.tobytes() for name, array in load_file(run / "model.safetensors").items()}
    return [{**epoch, "seconds": 0} for epoch in history], kept, values, (run / "recipe.toml").read_text()


def state_file(run: Path) -> Path | None:
    """The file of the saved state that counts now; None before the first save."""
    manifest = read_manifest(run) if (run / MANIFEST).exists() else None
    return next((run / name for name in manifest.states()), None) if manifest else None


def saved_step(run: Path) -> int:
    """The step that a run has saved, while another process may be saving the next."""
    from safetensors import safe_open

    while (file := state_file(run)) is not None:
        try:
            with safe_open(file, "np") as state:
                return int(json.loads(state.metadata()["tlx"])["step"])
        except FileNotFoundError:  # the next one is there
            continue
    return 0


def change(run: Path, name: str, edit: Callable[[str], str]) -> None:
    """Edit a text file of a run as if tlx had written it so."""
    path = run / name
    path.write_bytes(edit(path.read_text(encoding="utf-8")).encode())
    reseal(run)


def reseal(run: Path) -> None:
    """Write the manifest for what the files hold now."""
    manifest = read_manifest(run)
    assert manifest is not None
    contents = {name: (run / name).read_bytes() for name in manifest.files}
    files = {name: Entry(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    Manifest(files, contents[RECIPE].decode()).write(run)
