"""A signal at any moment of a run: real processes, real signals, and what is said is true."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import each_backend
from support.finished_runs import FIELDS
from support.run_files import state_file
from tlx.errors import Interrupted
from tlx.runs.folder import resumed_folder
from tlx.runs.interrupt import interruptible

RUN = [
    *("run", "--backend", "loopback", "--model", "tiny-mlp", "--weights", "none", "--data", "digits", "--out", "mine"),
    *("--image-size", "8", "--limit-train", "200", "--limit-test", "50", "--lr", "0.05"),
]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SAID = re.compile(r"(?:Go on|Start again) with: (tlx .*)")


def start(folder: Path, *arguments: str, shell: str = "") -> subprocess.Popen[str]:
    command: Any = [sys.executable, "-m", "tlx", *arguments]
    if shell:
        command = ["sh", "-c", f"{shell} exec {shlex.join(command)}"]
    return subprocess.Popen(command, cwd=folder, stdout=-1, stderr=-1, text=True)


def await_handler(child: subprocess.Popen[str]) -> None:
    """Wait until tlx handles SIGTERM; before, Python itself starts."""
    deadline = time.monotonic() + 60
    while True:
        status = Path(f"/proc/{child.pid}/status").read_text()
        if int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)


def await_save(run: Path, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while state_file(run) is None:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.001)


def repeat(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command that a message names."""
    words = shlex.split(SAID.search(line)[1])
    command = [sys.executable, "-m", *words]  # tlx, and its arguments
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
def test_a_signal_at_any_moment_is_one_true_line_and_its_exit_code(number: int, delay: float, tmp_path: Path) -> None:
    with start(tmp_path, *RUN, "--epochs", "30") as child:
        await_handler(child)
        time.sleep(delay)
        child.send_signal(number)
        out, shown = child.communicate(timeout=60)
    said = [line for line in shown.splitlines() if line.startswith("tlx: ")]
    if child.returncode in (0, -number):  # it had ended before, or Python was just ending: a shell sees 128 + number
        assert "all of it" not in shown and (tmp_path / "mine" / "result.json").exists()
        return
    assert child.returncode == CODES[signal.Signals(number)] and not out and "Traceback" not in shown, shown
    assert len(said) == 1 and shown.splitlines()[-1] == said[0]
    state = state_file(tmp_path / "mine") is not None
    assert ("the run is saved" in said[0] or "all of it is saved" in said[0]) == state, said
    if "with: " in said[0]:
        again = repeat(said[0], tmp_path)
        assert again.returncode == 0, again.stderr
    else:
        assert "before anything was begun" in said[0] or (tmp_path / "mine" / "result.json").exists()


@pytest.mark.parametrize("backend", each_backend("torch", "oneflow"))
@pytest.mark.parametrize("delay", [0.3, 1.0, 1.8])
def test_ctrl_c_while_a_framework_loads_leaves_no_traceback(backend: str, delay: float, tmp_path: Path) -> None:
    with start(tmp_path, "run", "--backend", backend, "--data", "digits", "--weights", "none", "--lr", "0.1") as child:
        await_handler(child)
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, shown = child.communicate(timeout=100)
    assert child.returncode == 130 and "Traceback" not in shown, shown
    assert shown.splitlines()[-1].startswith("tlx: ") and shown.count("tlx: ") == 1


def test_many_quick_ctrl_cs_are_one_line_and_the_run_is_saved(tmp_path: Path) -> None:
    with start(tmp_path, *RUN, "--epochs", "3000", "--save-seconds", "0") as child:
        await_save(tmp_path / "mine", child)
        for _ in range(30):
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
            time.sleep(0.003)
        _, shown = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in shown and "un-acquired" not in shown
    assert shown.count("tlx: ") == 1 and "the run is saved" in shown.splitlines()[-1]


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_that_is_ignored_stays_ignored(name: str, tmp_path: Path) -> None:
    number = getattr(signal, f"SIG{name}")
    with start(tmp_path, *RUN, "--epochs", "30", "--save-seconds", "0", shell=f"trap '' {name};") as child:
        await_save(tmp_path / "mine", child)
        child.send_signal(number)
        out, shown = child.communicate(timeout=60)
    assert child.returncode == 0 and "test accuracy" in out, shown


def signalled_at(part: str, out: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Interrupted:
    """Send a real signal when a function of the run is called."""
    import tlx.runs.job as job

    honest = getattr(job, part)

    def sending(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(job, part, sending)
        tlx.run(**{**FIELDS, "data": "digits", "limit_train": 100, "limit_test": 50, "out": str(out), **fields})
    assert stop.value.signum == signal.SIGTERM
    return stop.value


@pytest.mark.parametrize(
    ("part", "said", "files"),
    [
        ("open_data", "nothing was saved. Start again with: the same call of tlx.run", None),
        ("new_folder", "the run is saved. Go on with: tlx run --resume", "last/state-1.safetensors"),
        (
            "held_out",
            "after the last epoch; the run is saved. Go on with: tlx run --resume",
            "last/state-1.safetensors",
        ),
        ("digest", "once the run had finished; all of it is saved in", "result.json"),
    ],
)
def test_what_is_said_in_each_part_is_true(
    part: str, said: str, files: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in CODES]
    stop = signalled_at(part, tmp_path / "run", monkeypatch)
    assert said in str(stop)
    assert [signal.getsignal(number) for number in CODES] == before
    if files is None:
        assert not (tmp_path / "run").exists()
        return
    assert (tmp_path / "run" / files).exists()
    with resumed_folder(tmp_path / "run"):  # it is given back
        pass
    if files != "result.json":
        assert tlx.run(resume=tmp_path / "run", quiet=True).epochs_run == FIELDS["epochs"]


def test_data_of_python_is_named_in_the_call_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = (np.zeros((60, 8, 8, 3), np.uint8), np.arange(60) % 3)
    limits: dict[str, Any] = {"limit_train": None, "limit_test": None}
    stop = signalled_at("held_out", tmp_path / "run", monkeypatch, data={"train": part, "test": part}, **limits)
    assert str(stop).endswith(f"Go on with: tlx.run(resume={str(tmp_path / 'run')!r}, data=...)")


def test_a_folder_with_a_space_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = signalled_at("held_out", tmp_path / "my run", monkeypatch)
    assert repeat(str(stop), tmp_path).returncode == 0


def test_a_signal_within_the_import_of_a_module_is_put_off_for_a_moment() -> None:
    """What is raised in the callbacks of Python's import code is lost, and printed as a traceback."""
    importing = compile(f"os.kill(os.getpid(), {int(signal.SIGINT)})\nreached = True", "<frozen importlib>", "exec")
    names: dict[str, Any] = {"os": os}
    with pytest.raises(Interrupted), interruptible():
        exec(importing, names)
        time.sleep(60)
    assert names["reached"]
