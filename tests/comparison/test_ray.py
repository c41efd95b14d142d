"""Tasks run the cells of a comparison, on a real cluster of Ray that the test starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import tlx
from comparison.conftest import COMMON
from support.ray import ray_cluster, workers
from support.run_files import saved_step
from tlx.comparison.cells import HIDDEN, read_outcome
from tlx.comparison.compare import drive
from tlx.comparison.plan import Plan, make_plan
from tlx.errors import BackendUnavailable, RecipeError
from tlx.recipe import Recipe

AXES: dict[str, Any] = {"strategies": "full,feature_extract"}
SLOW: dict[str, Any] = {"epochs": 30}  # long enough to be stopped in the midst of it
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


def command(*more: str, **fields: Any) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**COMMON, "out": "c", **fields}.items()]
    return [sys.executable, "-m", "tlx", "compare", *options, f"--strategies={AXES['strategies']}", "--json", *more]


def started(folder: Path, *more: str, **fields: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(*more, **fields), text=True, cwd=folder, **pipes)  # type: ignore[call-overload,no-any-return]


def plan_in(folder: Path, **fields: Any) -> Plan:
    seeds = fields.pop("seeds", 1)
    return make_plan(Recipe(**{**COMMON, "out": str(folder), **fields}), **AXES, seeds=seeds)


def weights(plan: Plan) -> list[bytes]:
    return [(cell.run_dir / "model.safetensors").read_bytes() for cell in plan.cells]


def saved_by(driver: subprocess.Popen[str], plan: Plan, step: int) -> None:
    """Wait until a driver's first cell has saved some step."""
    deadline = time.monotonic() + 300
    while saved_step(plan.cells[0].run_dir) < step:
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate(timeout=300)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of this machine with two CPUs."""
    with ray_cluster() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@needs_ray
def test_a_cell_whose_worker_is_killed_is_done_again_and_no_other_is(tmp_path: Path, cluster: None) -> None:
    folder = tmp_path / "c"
    plan, whole = plan_in(folder, epochs=60), plan_in(tmp_path / "whole", epochs=60)
    driver = started(tmp_path, "--on=ray", epochs=60)
    saved_by(driver, plan, 5)
    (worker,) = workers(tmp_path)  # two cells and two CPUs, but one job
    os.kill(worker, signal.SIGKILL)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert len(re.findall(r"^full .*: its task ended: its worker died$", err, re.M)) == 1
    for cell in plan.cells:
        assert len(re.findall(rf"^\d/2  {re.escape(cell.label)}: val", err, re.M)) == 1
    logs = [(folder / HIDDEN / f"{cell.name}.log").read_text() for cell in plan.cells]
    assert [log.count("resumed in epoch") for log in logs] == [1, 0]
    assert [cell["state"] for entry in json.loads(out)["candidates"] for cell in entry["cells"]] == ["finished"] * 2
    drive(whole, quiet=True)
    assert weights(plan) == weights(whole)


@needs_ray
@pytest.mark.thorough
def test_ctrl_c_cancels_the_cells_and_the_same_command_goes_on(tmp_path: Path, cluster: None) -> None:
    plan = plan_in(tmp_path / "c", **SLOW)
    driver = started(tmp_path, "--on=ray", "--jobs=2", **SLOW)
    saved_by(driver, plan, 3)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 130 and "Traceback" not in err
    assert "tlx: stopped; what was done is saved in " in err.splitlines()[-1]
    assert read_outcome(plan, plan.cells[0]).state == "interrupted" and not workers(tmp_path)
    step = saved_step(plan.cells[0].run_dir)
    time.sleep(2)
    assert saved_step(plan.cells[0].run_dir) == step, "nothing works on it any more"
    again = started(tmp_path, "--on=ray", "--jobs=2", **SLOW)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "resumed in epoch" in (tmp_path / "c" / HIDDEN / f"{plan.cells[0].name}.log").read_text()


@needs_ray
@pytest.mark.thorough
def test_drivers_here_and_on_ray_share_a_folder_and_run_no_cell_twice(tmp_path: Path, cluster: None) -> None:
    plan = plan_in(tmp_path / "c", seeds=3, **SLOW)
    drivers = [started(tmp_path, *more, "--seeds=3", **SLOW) for more in (["--on=ray"], ["--on=ray"], [])]
    said = [driver.communicate(timeout=300) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0, 0], said
    entries = [json.loads(out) for out, _ in said]
    assert entries[0] == entries[1] == entries[2]
    for cell in plan.cells:
        log = (tmp_path / "c" / HIDDEN / f"{cell.name}.log").read_text()  # of all processes that worked on it
        assert "resumed" not in log and log.count(f"epoch 1/{SLOW['epochs']}") == 1


@needs_ray
@pytest.mark.thorough
def test_a_task_that_ends_again_and_again_is_given_up_with_its_reason(tmp_path: Path, cluster: None) -> None:
    plan = plan_in(tmp_path / "c", **SLOW)
    driver, killed = started(tmp_path, "--on=ray", **SLOW), set[int]()
    while driver.poll() is None:
        for worker in set(workers(tmp_path)) - killed:
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
        time.sleep(0.05)
    out, err = driver.communicate()
    assert driver.returncode == 1 and "Traceback" not in err, err
    problem = "3 tasks ended without it, the last: its worker died; the same command goes on"
    assert json.loads(out)["problems"] == {cell.name: problem for cell in plan.cells}
    assert len(killed) == 6


def test_without_ray_a_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailable, match=re.escape('ray, which is not installed. Fix: pip install "tlx[ray]"')):
        tlx.compare(**COMMON, **AXES, out=str(tmp_path / "c"), on="ray")
    with pytest.raises(RecipeError, match="there are parameters for ray, but the cells run here"):
        tlx.compare(**COMMON, **AXES, out=str(tmp_path / "c"), ray={"gpus": 1})
    with pytest.raises(RecipeError, match=r"ray: there is no parameter 'gpu'\. Did you mean 'gpus'"):
        tlx.compare(**COMMON, **AXES, out=str(tmp_path / "c"), on="ray", ray={"gpu": 1})
    with pytest.raises(RecipeError, match="jobs is 5000; expected a whole number from 1 to 1,000: jobs on ray"):
        tlx.compare(**COMMON, **AXES, out=str(tmp_path / "c"), on="ray", jobs=5000)
    assert not (tmp_path / "c").exists()


@needs_ray
def test_without_a_cluster_a_line_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    driver = started(tmp_path, "--on=ray")
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 2
    problem = r"tlx: no Ray cluster can be reached: nothing listens at 127.0.0.1:1\. Fix: start one with `ray start"
    assert re.match(problem, err) and err.count("\n") == 1
    assert not (tmp_path / "c").exists()
