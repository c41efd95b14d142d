"""Several drivers share a comparison, one of them is killed, and the outcome is that of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tlx
from comparison.conftest import AXES, COMMON
from support.run_files import saved_step
from tlx.comparison.cells import HIDDEN, joined, read_failure, read_outcome, take_lease, write_failure
from tlx.comparison.drive import Running, _end
from tlx.comparison.plan import make_plan
from tlx.recipe import Recipe


def command(folder: Path) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**COMMON, "out": folder}.items()]
    axes = [f"--strategies={AXES['strategies']}", f"--grid=backbone_lr={AXES['grid']['backbone_lr'][0]}", "--json"]
    return [sys.executable, "-m", "tlx", "compare", *options, *axes]


def started(folder: Path) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(folder), text=True, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def without_seconds(comparison: dict[str, Any], folder: Path) -> Any:
    text = re.sub(r"'(seconds|per_second)': [^,}]*", r"'\1': 0", repr(comparison)).replace(str(folder), "FOLDER")
    return re.sub(r"step \d+ of \d+|by step \d+", "STEP", text)


def test_drivers_share_the_cells_and_take_over_what_a_killed_one_left(
    undisturbed: tlx.Comparison, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    plan = make_plan(Recipe(**COMMON, out=str(folder)), **AXES)
    first = started(folder)
    cell = plan.cells[0].run_dir
    deadline = time.monotonic() + 60
    while saved_step(cell) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)  # the driver, and the process that worked on the cell
    first.communicate()
    assert read_outcome(plan, plan.cells[0]).state == "interrupted" and 3 <= saved_step(cell) < 6 * 10
    others = [started(folder), started(folder)]
    said = [driver.communicate(timeout=120) for driver in others]
    assert [driver.returncode for driver in others] == [1, 1], said  # one cell fails, by intention
    lines = [
        re.sub(r"^\d+/\d+  ", "", line) for _, err in said for line in err.splitlines() if re.match(r"\d+/\d+ ", line)
    ]
    assert Counter(line.partition(":")[0] for line in lines) == Counter(cell.label for cell in plan.cells)
    assert "resumed in epoch" in (folder / HIDDEN / f"{plan.cells[0].name}.log").read_text()
    whole = without_seconds(undisturbed.to_dict(), undisturbed.folder)
    assert [without_seconds(json.loads(out.splitlines()[-1]), folder) for out, _ in said] == [whole, whole]


def test_a_killed_driver_keeps_the_lease_while_its_process_works_on(tmp_path: Path) -> None:
    plan = make_plan(Recipe(**COMMON, out=str(tmp_path)), seeds=2)
    with joined(plan):
        lease = take_lease(plan, "x")
        assert lease is not None and take_lease(plan, "x") is None
        worker = subprocess.Popen(["sleep", "60"], pass_fds=[lease.file.fileno()])
        lease.release()
        assert take_lease(plan, "x") is None
        worker.kill()
        worker.wait()
        free = take_lease(plan, "x")
        assert free is not None
        free.release()


def test_what_failed_is_tried_again_by_who_comes_alone(tmp_path: Path) -> None:
    plan = make_plan(Recipe(**COMMON, out=str(tmp_path)), seeds=2)
    (tmp_path / HIDDEN).mkdir()
    with joined(plan):
        write_failure(plan, plan.cells[0], "the disk is full")
        assert read_outcome(plan, plan.cells[0]).problem == "the disk is full"
        code = "import sys; from tlx.recipe import Recipe; from tlx.comparison import cells, plan; "
        code += f"p = plan.make_plan(Recipe(**{COMMON!r}, out={str(tmp_path)!r}), seeds=2)\n"
        code += "with cells.joined(p): print(cells.read_failure(p, p.cells[0]))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert other.stdout == "the disk is full\n"
    with joined(plan):
        assert read_failure(plan, plan.cells[0]) == ""


def test_a_run_by_hand_counts_as_the_cell_and_another_in_its_folder_does_not(
    undisturbed: tlx.Comparison, tmp_path: Path
) -> None:
    plan = make_plan(Recipe(**COMMON, out=str(tmp_path)), **AXES)
    whole = next(entry for entry in undisturbed.entries if entry.best).candidate.cells[0]
    cells = {cell.name: cell for cell in plan.cells}
    shutil.copytree(whole.run_dir, cells[whole.name].run_dir)
    assert read_outcome(plan, cells[whole.name]).state == "finished"
    other = next(cell for cell in plan.cells if cell.name != whole.name)
    shutil.copytree(whole.run_dir, other.run_dir)
    outcome = read_outcome(plan, other)
    assert outcome.state == "failed" and "holds another run: its" in outcome.problem
    (cells[whole.name].run_dir / "result.json").write_text("{}")
    assert "is damaged" in read_outcome(plan, cells[whole.name]).problem


@pytest.mark.thorough
def test_ctrl_c_ends_the_cells_and_says_how_to_go_on(tmp_path: Path) -> None:
    driver = started(tmp_path / "c")
    plan = make_plan(Recipe(**COMMON, out=str(tmp_path / "c")), **AXES)
    deadline = time.monotonic() + 60
    while saved_step(plan.cells[0].run_dir) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "Traceback" not in err
    assert (
        err.splitlines()[-1].startswith("tlx: stopped; what was done is saved in ") and "Go on with: tlx compare" in err
    )
    assert read_outcome(plan, plan.cells[0]).state == "interrupted"
    lease = take_lease(plan, plan.cells[0].name)
    assert lease is not None
    lease.release()


def test_a_process_that_the_system_kills_fails_here_and_is_not_remembered(tmp_path: Path) -> None:
    plan = make_plan(Recipe(**COMMON, out=str(tmp_path)), seeds=2)
    with joined(plan):
        lease, process = take_lease(plan, "x"), subprocess.Popen(["sleep", "60"])
        assert lease is not None
        process.kill()
        process.wait()
        log = (tmp_path / "log").open("wb")
        outcome = _end(plan, Running(plan.cells[0], lease, process, log))
        assert outcome.state == "failed" and "ended by SIGKILL; the same command goes on" in outcome.problem
        assert read_outcome(plan, plan.cells[0]).state == "absent"
        free = take_lease(plan, "x")
        assert free is not None
        free.release()
