"""Streams that fail never end a training: real pipes, a real full device, a real terminal that goes away."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runs.test_interrupts import RUN, await_save
from support.run_files import state_file

TLX = f"{sys.executable} -m tlx"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = f"set -o pipefail; {command}"
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "lost",
    [
        *(">/dev/full", "2>/dev/full", ">&-", "2>&-", ">/dev/full 2>/dev/full", "<&- >&- 2>&-", "2>&1 | head -1"),
        *("--json >/dev/full", "--json | true"),
    ],
)
def test_a_training_whose_display_is_lost_ends_well(lost: str, tmp_path: Path) -> None:
    done = shell(f"{TLX} {' '.join(RUN)} --epochs 2 {lost}", tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert json.loads((tmp_path / "mine" / "result.json").read_text())["epochs_run"] == 2
    if lost == ">/dev/full":
        assert done.stderr.splitlines()[-1].endswith("the result is in mine")


@pytest.mark.parametrize("lost", ["2>/dev/full", "2>&-"])
def test_a_mistake_keeps_its_exit_code_without_stderr(lost: str, tmp_path: Path) -> None:
    assert shell(f"{TLX} run --epochs 0 {lost}", tmp_path).returncode == 2


def test_a_list_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = shell(f"{TLX} models >/dev/full", tmp_path)
    assert done.returncode == 2 and done.stderr == "tlx: Cannot write to stdout: No space left on device\n"
    assert shell(f"{TLX} models | head -1", tmp_path).returncode == 0


@pytest.mark.parametrize("ignored", [True, False])
def test_a_terminal_that_is_closed_saves_the_run_or_lets_it_go_on(ignored: bool, tmp_path: Path) -> None:
    """The shell of the terminal is the run itself, which therefore gets SIGHUP, unless it ignores it as under nohup."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execv(sys.executable, [sys.executable, "-m", "tlx", *RUN, "--epochs", "40", "--save-seconds", "0"])
    run = tmp_path / "mine"
    while state_file(run) is None:
        os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert state_file(run) is not None and os.waitstatus_to_exitcode(status) == (0 if ignored else 129)
    assert (tmp_path / "mine" / "result.json").exists() == ignored


def test_a_pipe_that_breaks_in_the_midst_of_a_training_does_not_end_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tlx", *RUN, "--epochs", "40", "--save-seconds", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=-1, stdout=-1, text=True) as child:
        await_save(tmp_path / "mine", child)
        child.stderr.close()
        child.stdout.close()
        assert child.wait(60) == 0
    assert (tmp_path / "mine" / "result.json").exists()
