"""Epochs can be added to a finished run, which then is the run that had them from the start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import tlx
from support.finished_runs import ON_DIGITS
from support.run_files import state_file
from tlx.backend import registry
from tlx.errors import Interrupted, TlxError

FIELDS: dict[str, Any] = {**ON_DIGITS, "strategy": "full", "quiet": True}
JOBS: dict[str, dict[str, Any]] = {
    "constant": {},
    "adam with a warm-up": {"optimizer": "adam", "lr": 0.002, "warmup": 1.5},
    "step": {"schedule": "step", "step_size": 2},
    "plateau": {"schedule": "plateau", "step_size": 1},
    "moving average": {"ema": 0.9, "clip_norm": 0.5},
    "a phase that begins later": {"strategy": "gradual", "phase_epochs": 4},
    "kept features": {"strategy": "feature_extract", "optimizer": "rmsprop", "lr": 0.002},
    "low-rank adapters": {"strategy": "lora", "rank": 2, "optimizer": "adam"},
    "no validation part": {"val_fraction": 0.0, "mixup": 0.4, "augment": "hflip+rotate"},
}


def outcome(run_dir: Path) -> tuple[Any, ...]:
    """All that a run found, without what its clock said."""
    history = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    result = json.loads((run_dir / "result.json").read_text())
    kept = {name: result[name] for name in ("test_accuracy", "val_accuracy", "best_epoch", "epochs_run")}
    values = {name: (a.dtype.str, a.tobytes()) for name, a in load_file(run_dir / "model.safetensors").items()}
    recipe = (run_dir / "recipe.toml").read_text()
    state = {name: a.tobytes() for name, a in load_file(state_file(run_dir) or "no state").items()}
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history], kept, values, recipe, state


def train(out: Path, **fields: Any) -> Path:
    return tlx.run(**{**FIELDS, **fields}, out=str(out)).run_dir


@pytest.mark.parametrize("job", JOBS)
def test_three_epochs_and_three_added_are_six_bit_for_bit(job: str, tmp_path: Path) -> None:
    expected = outcome(train(tmp_path / "six", **{**JOBS[job], "epochs": 6}))
    run = train(tmp_path / "three", **JOBS[job])
    if job == "a phase that begins later":  # the strategy of a run of three epochs has fewer phases
        assert "phase_epochs = 4" in (run / "recipe.toml").read_text()
    assert tlx.run(resume=run, epochs=6, quiet=True).epochs_run == 6
    assert outcome(run) == expected


@pytest.mark.needs("torch")
def test_three_epochs_and_three_added_are_six_on_torch(tmp_path: Path) -> None:
    from torch import nn

    pooled = (nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *pooled, nn.Linear(128, 10))
    job: dict[str, Any] = {
        **{"backend": "torch", "model": model, "head": "6", "image_size": 32, "precision": "float32"},
        "augment": "crop+hflip",
    }
    expected = outcome(train(tmp_path / "six", **{**job, "epochs": 6}))
    run = train(tmp_path / "three", **job)
    tlx.run(resume=run, epochs=6, model=model, quiet=True)
    assert outcome(run) == expected


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_a_schedule_that_spans_the_run_goes_on_as_that_of_the_new_total(
    schedule: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tlx.run(**{**FIELDS, "epochs": 6}, schedule=schedule, warmup=0.5, out=str(tmp_path / "six"))
    run = train(tmp_path / "three", schedule=schedule, warmup=0.5)
    result = tlx.run(resume=run, epochs=6)
    assert [epoch["lr"] for epoch in result.history[3:]] == [epoch["lr"] for epoch in whole.history[3:]]
    assert [epoch["lr"] for epoch in result.history[:3]] != [epoch["lr"] for epoch in whole.history[:3]]
    shown = capsys.readouterr().err
    assert "epochs 4 to 6 are added to the 3 that are done" in shown
    assert re.search(rf"schedule {schedule} spans 6 epochs now: .* goes on as in a run of 6 epochs, at 0\.\d+", shown)


def test_a_finished_run_keeps_its_last_state_and_the_best_values_once(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    assert list((run / "last").iterdir()) == [state_file(run)]
    tlx.run(resume=run, epochs=4, quiet=True)
    assert list((run / "last").iterdir()) == [state_file(run)]


def test_a_total_that_adds_nothing_is_one_line(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    for fields, said in (
        ({}, "is finished after 3 epochs. Fix: add epochs"),
        ({"epochs": 3}, "is finished after 3 epochs"),
        ({"epochs": 2}, "is finished after 3 epochs, and epochs is 2"),
        ({"lr": 1.0, "epochs": 9}, "resume: lr cannot change"),
    ):
        with pytest.raises(TlxError, match=said) as error:
            tlx.run(resume=run, quiet=True, **fields)
        assert "\n" not in str(error.value)
    assert str(tlx.Recipe.from_toml(run / "recipe.toml").epochs) == "3"


def test_a_run_that_ended_early_takes_no_epochs(tmp_path: Path) -> None:
    run = train(tmp_path / "run", patience=1, lr=0.0, epochs=5)
    with pytest.raises(TlxError, match=r"ended early after 2 of 5 epochs, as 1 of them .* weights="):
        tlx.run(resume=run, epochs=9, quiet=True)
    assert "epochs = 5" in (run / "recipe.toml").read_text()


def test_a_run_without_its_last_state_says_what_to_do_instead(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    shutil.rmtree(run / "last")
    with pytest.raises(TlxError, match=r"holds no last/state-\d+\.safetensors.* start a run with weights="):
        tlx.run(resume=run, epochs=6, quiet=True)


def test_best_values_that_were_changed_are_not_trained_on(tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (run / "model.safetensors").write_bytes(data)
    with pytest.raises(TlxError, match=r"model\.safetensors is damaged"):
        tlx.run(resume=run, epochs=6, quiet=True)


def test_a_signal_while_epochs_are_added_leaves_the_result_and_what_is_needed_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(train(tmp_path / "six", epochs=6))
    run = train(tmp_path / "run")
    before = json.loads((run / "result.json").read_text())
    backend, taken = registry.load("loopback"), []
    honest = backend.update

    def update(*args: Any) -> None:
        taken.append(args)
        if len(taken) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        honest(*args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="tlx run --resume"):
        patch.setattr(backend, "update", update)
        tlx.run(resume=run, epochs=6, quiet=True)
    assert json.loads((run / "result.json").read_text()) == before
    assert tlx.evaluate(run, quiet=True)["test_accuracy"] == before["test_accuracy"]
    with pytest.raises(TlxError, match="is on its way to 6 epochs, and epochs is 8"):
        tlx.run(resume=run, epochs=8, quiet=True)
    shutil.copytree(run, tmp_path / "again")
    tlx.run(resume=run, quiet=True)  # with no word of epochs, as the message says
    assert outcome(run) == expected
    tlx.run(resume=tmp_path / "again", epochs=6, quiet=True)  # or the same command again
    assert outcome(tmp_path / "again") == expected


CHILD = "import sys, tlx\ntlx.run(resume=sys.argv[1], epochs=40, save_seconds=0, quiet=True)"


def test_a_run_killed_while_epochs_are_added_ends_as_the_whole_one(tmp_path: Path) -> None:
    expected = outcome(train(tmp_path / "whole", epochs=40))
    run = train(tmp_path / "run")
    first = state_file(run)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(run)])
    deadline = time.monotonic() + 60
    while state_file(run) == first:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    child.kill()
    child.wait()
    recorded = json.loads((run / "result.json").read_text())
    assert recorded["epochs_run"] == 3
    assert tlx.evaluate(run, quiet=True)["test_accuracy"] == recorded["test_accuracy"]
    tlx.run(resume=run, quiet=True)
    assert outcome(run) == expected


def test_the_command_line_adds_epochs(tmp_path: Path) -> None:
    from tlx.cli import app

    run = train(tmp_path / "run")
    command = ["run", "--resume", str(run), "--epochs", "5"]
    app(command, exit_on_error=False, result_action="return_value")
    assert json.loads((run / "result.json").read_text())["epochs_run"] == 5
    with pytest.raises(TlxError, match="is finished after 5 epochs"):
        app(command, exit_on_error=False, result_action="return_value")
