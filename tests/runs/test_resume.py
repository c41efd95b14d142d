"""A run that was stopped, by a signal or by force, ends bit for bit as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tlx
from support.finished_runs import ON_DIGITS
from support.hostile import snapshot
from support.run_files import reseal, saved_step, state_file
from tlx.backend import registry
from tlx.errors import Interrupted, TlxError
from tlx.strategy.plan import Group, Phase, Strategy

FIELDS: dict[str, Any] = {**ON_DIGITS, "strategy": "head_then_full", "augment": "flips", "quiet": True}
STEPS = 5  # in an epoch: 72 images
MINE = Strategy(
    "mine",
    (Group("body", "backbone"), Group("top", "head", weight_decay=0.0)),
    (Phase("top", {"top": 0.05}), Phase("both", {"body": 0.01, "top": 0.02}, start=1)),
)
JOBS: dict[str, dict[str, Any]] = {
    "an unfreeze": {},
    "Adam, one cycle": {"optimizer": "adam", "schedule": "one_cycle", "micro_batch": 7},
    "plateau, stopped early": {"strategy": "full", "schedule": "plateau", "step_size": 1, "patience": 1, "epochs": 9},
    "kept features": {"strategy": "feature_extract", "optimizer": "adam"},
    "moving average": {"ema": 0.9, "clip_norm": 0.5, "decay_on": "weights"},
    "low-rank adapters": {"strategy": "lora", "rank": 2, "ema": 0.9},
    "labels and pixels mixed": {
        **{"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "class_weights": "balanced", "sampler": "balanced"},
        **{"augment": "hflip+rotate+color", "optimizer": "rmsprop", "strategy": "gradual", "schedule": "cosine"},
    },
    "a strategy of one's own": {"strategy": MINE, "lr": None, "frozen_norm": "adapt"},
}


def outcome(run_dir: Path) -> tuple[Any, ...]:
    """All that a run found, without what its clock said."""
    history = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    result = json.loads((run_dir / "result.json").read_text())
    kept = {name: result[name] for name in ("test_accuracy", "val_accuracy", "best_epoch", "epochs_run")}
    values = {name: (a.dtype.str, a.tobytes()) for name, a in load_file(run_dir / "model.safetensors").items()}
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history], kept, values


def whole(job: dict[str, Any], out: Path) -> tuple[Any, ...]:
    return outcome(tlx.run(**{**FIELDS, **job}, out=str(out)).run_dir)


def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT, **fields: Any) -> str:
    """Run until a real signal arrives in the middle of a step; returns what is said."""
    backend, taken = registry.load("loopback"), []
    honest = backend.update

    def update(*args: Any) -> None:
        taken.append(args)
        if len(taken) == step:
            os.kill(os.getpid(), number)
        honest(*args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(backend, "update", update)
        tlx.run(**fields)
    return str(stop.value)


@pytest.mark.parametrize("job", JOBS)
def test_a_run_stopped_at_any_step_ends_as_the_whole_one(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(JOBS[job], tmp_path / "whole")
    for step in (1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS):
        out = tmp_path / str(step)
        said = stopped_after(step, monkeypatch, **{**FIELDS, **JOBS[job]}, out=str(out))
        assert f"stopped after step {step} of" in said and f"tlx run --resume {out}" in said
        assert not (out / "result.json").exists()
        assert outcome(tlx.run(resume=out, quiet=True).run_dir) == expected
        assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_a_run_may_be_stopped_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole({}, tmp_path / "whole")
    stopped_after(2, monkeypatch, **FIELDS, out=str(tmp_path / "run"))
    for _ in range(3):
        stopped_after(4, monkeypatch, signal.SIGTERM, resume=tmp_path / "run", quiet=True)
    assert outcome(tlx.run(resume=tmp_path / "run", quiet=True).run_dir) == expected


def test_the_handlers_are_the_old_ones_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped_after(1, monkeypatch, **FIELDS, out=str(tmp_path / "run"))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


CHILD = """
import sys, tlx
tlx.run(**{fields!r}, out=sys.argv[1], save_seconds=0)
"""


def killed(out: Path, steps: int, number: int) -> int:
    """Start a run in a process of its own, and send it a signal once it has saved that many steps; return its code."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(fields=FIELDS), str(out)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while saved_step(out) < steps:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[1]
        time.sleep(0.001)
    child.send_signal(number)
    child.communicate(timeout=60)
    return child.returncode


@pytest.mark.parametrize("steps", [1, STEPS, STEPS + 2, 2 * STEPS + 1])
def test_a_killed_run_ends_as_the_whole_one(steps: int, tmp_path: Path) -> None:
    expected = whole({}, tmp_path / "whole")
    assert killed(tmp_path / "run", steps, signal.SIGKILL) == -signal.SIGKILL
    assert outcome(tlx.run(resume=tmp_path / "run", quiet=True).run_dir) == expected


def test_a_run_killed_before_its_first_save_starts_again(tmp_path: Path) -> None:
    expected = whole({}, tmp_path / "whole")
    killed(tmp_path / "run", 1, signal.SIGKILL)
    (tmp_path / "run" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "run" / "last")
    assert outcome(tlx.run(resume=tmp_path / "run", quiet=True).run_dir) == expected


@pytest.fixture
def halted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was stopped in its second epoch."""
    stopped_after(STEPS + 2, monkeypatch, **FIELDS, out=str(tmp_path / "halted"))
    return tmp_path / "halted"


def test_a_change_of_what_a_result_depends_on_is_refused(halted: Path) -> None:
    for field in ("lr", "seed", "batch_size"):
        with pytest.raises(TlxError, match=f"resume: {field} cannot change in the middle of a run; what can: backend"):
            fields: dict[str, Any] = {field: 7}
            tlx.run(resume=halted, quiet=True, **fields)
    with pytest.raises(TlxError, match=r"resume: epochs cannot change .* runs to 3\. Fix: finish it first"):
        tlx.run(resume=halted, quiet=True, epochs=7)
    assert tlx.run(resume=halted, quiet=True, workers=0, epochs=3).epochs_run == 3


def change_state(run: Path, **facts: Any) -> None:
    from safetensors import safe_open

    state = state_file(run)
    assert state is not None
    with safe_open(state, "np") as file:
        known = json.loads(file.metadata()["tlx"])
    save_file(load_file(state), state, {"tlx": json.dumps({**known, **facts})})
    reseal(run)


def damage(run: Path, fault: str) -> None:
    state = state_file(run)
    assert state is not None
    data = state.read_bytes()
    if fault == "cut":
        state.write_bytes(data[: len(data) // 2])
    elif fault == "flipped":
        state.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif fault == "foreign":
        save_file({"x": np.zeros(3)}, state)
    elif fault == "newer":
        change_state(run, version=99)
    elif fault == "other data":
        change_state(run, data="0" * 64)
    elif fault == "moved while it lay":
        change_state(run, frozen={"fc1.weight": "0" * 64})
    elif fault == "no best":
        next((run / "last").glob("best-*")).unlink()
    else:
        (run / "recipe.toml").unlink()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", r"state-1.safetensors is damaged: it has \d+ bytes, and \d+ were written"),
        ("flipped", "state-1.safetensors is damaged: its bytes are not those that were written"),
        ("foreign", "state-1.safetensors is damaged"),
        ("newer", "was written by a newer tlx; upgrade tlx"),
        ("other data", "was trained on other data"),
        ("moved while it lay", "1 frozen arrays changed during training, first 'fc1.weight'"),
        ("no best", "best-1.safetensors is missing"),
        ("no recipe", r"recipe\.toml is missing\. Whole: .*history"),
    ],
)
def test_a_damaged_folder_is_one_line_and_stays_as_it_is(halted: Path, fault: str, said: str) -> None:
    damage(halted, fault)
    before = {path.name: path.read_bytes() for path in halted.rglob("*") if path.is_file()}
    with pytest.raises(TlxError, match=said) as error:
        tlx.run(resume=halted, quiet=True)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in halted.rglob("*") if path.is_file()} == before


def test_two_runs_do_not_share_a_folder(halted: Path) -> None:
    from filelock import FileLock

    with FileLock(halted / ".lock"), pytest.raises(TlxError, match="halted is in use by another run"):
        tlx.run(resume=halted, quiet=True)
    assert tlx.run(resume=halted, quiet=True).epochs_run == 3


def test_a_disk_that_is_full_loses_nothing(halted: Path) -> None:
    """A limit on the size of files stands for the full disk: the system refuses to write the same way."""
    before = snapshot(halted)
    code = (
        "import resource, sys, tlx\n"
        "sys.dont_write_bytecode = True  # a compiled module that is cut off would break every later test\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from tlx.cli import main\n"
        f"sys.argv = ['tlx', 'run', '--resume', {str(halted)!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Cannot write" in last and "previous content is untouched" in last
    assert {**snapshot(halted), "history.jsonl": before["history.jsonl"]} == before
    assert tlx.run(resume=halted, quiet=True).epochs_run == 3
