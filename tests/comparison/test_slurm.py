"""Jobs run the cells of a comparison: of a Slurm that the test starts, and of submitit's executor for one machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit

import tlx
from comparison.conftest import COMMON
from support.run_files import saved_step
from support.slurm import missing, slurm
from tlx.comparison.cells import HIDDEN, joined
from tlx.comparison.compare import drive
from tlx.comparison.jobs import RUNNING, read_parameters, split_parameters
from tlx.comparison.plan import Plan, make_plan
from tlx.comparison.slurm import FOLDER, PARAMETERS, answer_of, refusal, run_by_jobs, work
from tlx.errors import BackendUnavailable, Interrupted, RecipeError, TlxError
from tlx.recipe import Recipe
from tlx.runs.interrupt import interruptible
from tlx.signals import TIME_IS_UP

AXES: dict[str, Any] = {"strategies": "full,feature_extract"}
SLOW: dict[str, Any] = {"epochs": 30}  # long enough to be stopped in the midst of it
needs_slurm = pytest.mark.skipif(bool(missing()), reason=missing() or "there is Slurm")


class Local:
    """Submitit's executor for one machine as a queue: every job runs at once."""

    def __init__(self, plan: Plan) -> None:
        self.executor = submitit.LocalExecutor(folder=plan.folder / HIDDEN / FOLDER)
        self.executor.update_parameters(timeout_min=5)
        self.jobs: dict[str, Any] = {}

    def submit(self, plan: Plan) -> str:
        job = self.executor.submit(work, plan)
        self.jobs[job.job_id] = job
        return str(job.job_id)

    def states(self) -> dict[str, str]:
        states = {name: job.state for name, job in self.jobs.items()}
        return {name: RUNNING if state == "RUNNING" else state.lower() for name, state in states.items()}

    def wait(self) -> None:
        for job in self.jobs.values():
            job._process.wait(60)


def plan_in(folder: Path, seeds: int = 1, **fields: Any) -> Plan:
    return make_plan(Recipe(**{**COMMON, "out": str(folder), **fields}), **AXES, seeds=seeds)


def weights(plan: Plan) -> list[bytes]:
    return [(cell.run_dir / "model.safetensors").read_bytes() for cell in plan.cells]


def command(folder: Path, *more: str, seeds: int = 1, **fields: Any) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**COMMON, "out": folder, **fields}.items()]
    axes = [f"--strategies={AXES['strategies']}", f"--seeds={seeds}", "--json"]
    return [sys.executable, "-m", "tlx", "compare", *options, *axes, *more]


def started(folder: Path, *more: str, **fields: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command(folder, *more, **fields), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until(ready: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} has not come about"
        time.sleep(0.05)


def test_jobs_run_the_cells_and_leave_what_processes_here_leave(tmp_path: Path) -> None:
    plan, same = (make_plan(Recipe(**{**COMMON, "epochs": 1, "out": str(tmp_path / out)}), seeds=2) for out in "ab")
    said: list[str] = []
    told: list[str] = []
    queue = Local(plan)
    with joined(plan):
        outcomes = run_by_jobs(plan, queue, 2, said.append, lambda text: None, told.append)
    queue.wait()
    assert {outcome.state for outcome in outcomes.values()} == {"finished"} and len(outcomes) == 2
    for cell in same.cells:
        tlx.run(cell.recipe, quiet=True)
    assert weights(plan) == weights(same)
    logs = "".join(path.read_text() for path in (plan.folder / HIDDEN / FOLDER).glob("*_0_log.out"))
    for cell in plan.cells:  # each was run by one job, and told of once
        assert len(re.findall(rf"\d/2  {re.escape(cell.label)}: val", logs)) == 1
        assert len([line for line in said if f"  {cell.label}: val" in line]) == 1
    assert said[0] == "2 jobs submitted: " + ", ".join(told[0].split())


def test_a_job_that_dies_leaves_its_cells_to_the_next_command(tmp_path: Path) -> None:
    class Dying(Local):
        def submit(self, plan: Plan) -> str:
            job = self.executor.submit(os._exit, 3)
            self.jobs[job.job_id] = job
            return str(job.job_id)

    plan = plan_in(tmp_path)
    queue = Dying(plan)
    with joined(plan):
        outcomes = run_by_jobs(plan, queue, 1, lambda text: None, lambda text: None, lambda text: None)
    queue.wait()
    problems = {outcome.problem for outcome in outcomes.values()}
    (problem,) = problems
    assert re.match(r"job \d+ has ended \(finished\).*; the same command goes on", problem)


def test_a_cluster_that_takes_fewer_jobs_works_with_those(tmp_path: Path) -> None:
    class Full(Local):
        def submit(self, plan: Plan) -> str:
            if self.jobs:
                raise refusal("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy", None)
            return super().submit(plan)

    plan, said = make_plan(Recipe(**{**COMMON, "epochs": 1, "out": str(tmp_path)}), seeds=2), list[str]()
    queue = Full(plan)
    with joined(plan):
        outcomes = run_by_jobs(plan, queue, 2, said.append, lambda text: None, lambda text: None)
    queue.wait()
    assert {outcome.state for outcome in outcomes.values()} == {"finished"}
    assert said[0].startswith("note: 2 jobs were asked for, and the cells are done by 1: Slurm takes no job: Batch job")
    assert said[1] == f"1 job submitted: {next(iter(queue.jobs))}"


def test_a_controller_that_is_silent_for_a_while_is_asked_again(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script = (
        f"echo x >> {asked}; [ $(wc -l < {asked}) -gt 2 ] && echo 7 RUNNING && exit; echo error: timed out >&2; exit 1"
    )
    assert answer_of("sh", "-c", script, patience=60, pause=0.01) == ["7 RUNNING"]
    assert len(asked.read_text().splitlines()) == 3
    with pytest.raises(
        TlxError, match=r"Slurm has not answered for 0 minutes; sh says: timed out\. Fix: the jobs go on"
    ):
        answer_of("sh", "-c", "echo 'error: timed out' >&2; exit 1", patience=0.05, pause=0.01)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["partitoin=gpu"], "there is no parameter 'partitoin'. Did you mean 'partition'?"),
        (["time=1:00:00"], "time is '1:00:00'; expected whole minutes from 4 on"),
        (["time=1"], "time is '1'; expected whole minutes from 4 on"),
        (["memory=16GB"], "memory is '16GB'; expected a number of gigabytes"),
        (["gpus=none"], "gpus is 'none'; expected a whole number"),
        (["gpus"], "slurm is 'gpus'; expected a parameter and its value"),
        (["gpus=1", "gpus=2"], "gpus is given twice"),
    ],
)
def test_a_wrong_parameter_is_named(texts: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        read_parameters("slurm", PARAMETERS, split_parameters("slurm", texts))


def test_parameters_are_those_of_a_job() -> None:
    texts = ["partition=gpu", "memory=16", "gpus=2", "time=90"]
    found = read_parameters("slurm", PARAMETERS, split_parameters("slurm", texts))
    assert found == {"time": 90, "partition": "gpu", "mem": 16.0, "gpus_per_node": 2}


def test_a_machine_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"there is no sbatch on this machine.*leave out --on slurm"):
        tlx.compare(**COMMON, **AXES, out=str(tmp_path / "c"), on="slurm")
    with pytest.raises(RecipeError, match="parameters for slurm, but the cells run here"):
        tlx.compare(**COMMON, **AXES, out=str(tmp_path / "c"), slurm={"gpus": 1})
    with pytest.raises(RecipeError, match=r"on is 'slrum'\. Did you mean 'slurm'\?"):
        tlx.compare(**COMMON, **AXES, out=str(tmp_path / "c"), on="slrum")  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()
    assert "Requested node configuration" in str(refusal("sbatch: error: Requested node configuration is not", None))


def test_a_program_that_handles_the_signal_of_a_time_limit_keeps_its_handler() -> None:
    heard: list[int] = []
    assert signal.getsignal(TIME_IS_UP) is signal.SIG_DFL
    with pytest.raises(Interrupted) as caught, interruptible():
        signal.raise_signal(TIME_IS_UP)
    assert caught.value.signum == TIME_IS_UP
    before = signal.signal(TIME_IS_UP, lambda number, frame: heard.append(number))
    try:
        with interruptible():
            signal.raise_signal(TIME_IS_UP)
    finally:
        signal.signal(TIME_IS_UP, before)
    assert heard == [TIME_IS_UP]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of one node with two cores."""
    with slurm(tmp_path_factory.mktemp("slurm")) as config, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        yield


def jobs_of(folder: Path) -> list[str]:
    return sorted(path.name.partition("_")[0] for path in (folder / HIDDEN / FOLDER).glob("*_submission.sh"))


@needs_slurm
@pytest.mark.thorough
def test_drivers_here_and_on_slurm_share_a_folder_and_run_no_cell_twice(tmp_path: Path, cluster: None) -> None:
    folder = tmp_path / "shared"
    plan = plan_in(folder, seeds=3, **SLOW)
    drivers = [started(folder, *more, seeds=3, **SLOW) for more in (["--on=slurm", "--jobs=2"], [])]
    said = [driver.communicate(timeout=400) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    entries = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert entries[0] == entries[1]
    for cell in plan.cells:
        log = (folder / HIDDEN / f"{cell.name}.log").read_text()  # of all processes that worked on it
        assert "resumed" not in log and log.count(f"epoch 1/{SLOW['epochs']}") == 1
    logs = "".join(path.read_text() for path in (folder / HIDDEN / FOLDER).glob("*_0_log.out"))
    by_jobs = [cell for cell in plan.cells if f"{cell.label}: val" in logs]
    assert 0 < len(by_jobs) < len(plan.cells), "the driver here and the jobs both had a share"
    assert re.search(r"2 jobs submitted: \d+, \d+", said[0][1]) and "is running" in said[0][1]


@needs_slurm
@pytest.mark.thorough
@pytest.mark.parametrize("how", ["requeue", "time"])
def test_a_job_that_is_put_back_into_the_queue_goes_on_from_its_save(tmp_path: Path, cluster: None, how: str) -> None:
    folder, fields = tmp_path / "c", SLOW if how == "requeue" else {"epochs": 300}
    plan = plan_in(folder, **fields)
    driver = started(folder, "--on=slurm", **fields)
    first = plan.cells[0]
    until(lambda: saved_step(first.run_dir) > 5, "a save")
    (job,) = jobs_of(folder)
    # One minute is less than the 90 seconds before which Slurm warns: it does so the next time that it looks.
    stop = ["requeue", job] if how == "requeue" else ["update", f"JobId={job}", "TimeLimit=1"]
    subprocess.run(["scontrol", *stop], check=True)
    log = folder / HIDDEN / FOLDER / f"{job}_0_log.err"
    until(lambda: "DUE TO JOB REQUEUE" in log.read_text(), "a requeue")
    if how == "time":  # or it would save and wait for two minutes again and again
        subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=60"], check=True)
    _, err = driver.communicate(timeout=550)
    assert driver.returncode == 0, err
    assert f"job {job} is queued" in err.partition(f"job {job} is running")[2]
    assert "resumed in epoch" in (folder / HIDDEN / f"{first.name}.log").read_text()
    assert jobs_of(folder) == [job]
    whole = plan_in(tmp_path / "whole", **fields)
    drive(whole, quiet=True)
    assert weights(plan) == weights(whole)


def with_a_save(folder: Path) -> subprocess.Popen[str]:
    """Start a driver of jobs on Slurm, of which the first cell has saved."""
    plan, driver = plan_in(folder, **SLOW), started(folder, "--on=slurm", **SLOW)
    until(lambda: saved_step(plan.cells[0].run_dir) > 0, "a save")
    return driver


@needs_slurm
@pytest.mark.thorough
def test_a_driver_outlasts_a_controller_that_does_not_answer(tmp_path: Path, cluster: None) -> None:
    folder = tmp_path / "c"
    driver = with_a_save(folder)
    controller = int((Path(os.environ["SLURM_CONF"]).parent / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        time.sleep(25)  # squeue gives up after ten seconds
        assert driver.poll() is None
    finally:
        os.kill(controller, signal.SIGCONT)
    _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err


@needs_slurm
@pytest.mark.thorough
def test_ctrl_c_leaves_the_jobs_and_the_same_command_looks_at_them_again(tmp_path: Path, cluster: None) -> None:
    folder = tmp_path / "c"
    driver = with_a_save(folder)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    (job,) = jobs_of(folder)
    assert driver.returncode == 130 and "Traceback" not in err
    assert "tlx: the jobs go on. Look again with: tlx compare" in err and err.strip().endswith(f"scancel {job}")
    again = started(folder, "--on=slurm", **SLOW)
    _, err = again.communicate(timeout=400)
    assert again.returncode == 0, err
    assert f"1 job of an earlier command still there: {job}" in err and jobs_of(folder) == [job]


@needs_slurm
@pytest.mark.thorough
def test_a_job_that_is_cancelled_leaves_its_cells_to_the_next_command(tmp_path: Path, cluster: None) -> None:
    folder = tmp_path / "c"
    driver = with_a_save(folder)
    (job,) = jobs_of(folder)
    subprocess.run(["scancel", job], check=True)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 1 and "Traceback" not in err
    assert f"job {job} has ended: cancelled" in err
    again = started(folder, "--on=slurm", "--jobs=2", **SLOW)
    _, err = again.communicate(timeout=400)
    assert again.returncode == 0, err


@needs_slurm
@pytest.mark.thorough
def test_slurm_says_why_it_takes_no_job(tmp_path: Path, cluster: None) -> None:
    found = subprocess.run(
        command(tmp_path / "c", "--on=slurm", "--slurm=partition=mian"), capture_output=True, text=True
    )
    assert found.returncode == 2, found.stderr
    assert found.stderr.splitlines()[-1].endswith("Slurm has no partition 'mian'. Did you mean 'main'?")
    found = subprocess.run(
        command(tmp_path / "c", "--on=slurm", "--slurm=nodelist=two"), capture_output=True, text=True
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "Slurm takes no job: " in found.stderr.splitlines()[-1]
