"""Have Slurm run the cells of a comparison: jobs that take the leases of cells, like any driver on the folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlx.comparison.cells import HIDDEN, Outcome, last_line
from tlx.comparison.drive import OTHERS, Say, line_of
from tlx.comparison.jobs import RUNNING, WAITING, Parameters, Queue, count, gigabytes, held, take_cells, taken
from tlx.comparison.plan import Plan
from tlx.errors import BackendUnavailable, Interrupted, RecipeError, TlxError, closest, shown
from tlx.runs.interrupt import interruptible
from tlx.signals import TIME_IS_UP

EXTRA = 'pip install "tlx[cluster]"'
FOLDER = "slurm"  # below HIDDEN: what submitit writes of each job, and what the job says
STATES = {"PENDING": WAITING, "CONFIGURING": WAITING, "REQUEUED": WAITING, "SUSPENDED": WAITING, "RUNNING": RUNNING}
MINUTES = 60  # that a job has where `time` is not given
PATIENCE, PAUSE = 600.0, 5.0  # seconds for which a silent controller is asked again, and between two tries
ENDING_SOON = 90  # seconds before its time is over in which a job saves and goes back into the queue


def _minutes(text: str) -> int:
    if not text.isdecimal() or int(text) < 4:
        raise ValueError("whole minutes from 4 on; a job saves 90 seconds before the end, and is queued again")
    return int(text)


def _text(text: str) -> str:
    if not text:
        raise ValueError("a text")
    return text


# What --slurm takes: the name that submitit has for it, and what reads its value.
PARAMETERS: Parameters = {
    "partition": ("partition", _text),
    "time": ("time", _minutes),
    "memory": ("mem", gigabytes),
    "cpus": ("cpus_per_task", count),
    "gpus": ("gpus_per_node", count),
    "account": ("account", _text),
    "qos": ("qos", _text),
    "constraint": ("constraint", _text),
    "gres": ("gres", _text),
    "nodelist": ("nodelist", _text),
    "exclude": ("exclude", _text),
}


class Slurm:
    """Slurm by its own commands; jobs are submitted through submitit."""

    def __init__(self, plan: Plan, parameters: Mapping[str, Any]) -> None:
        """Raise BackendUnavailable where submitit or Slurm is missing."""
        try:
            import submitit
        except ImportError as error:
            raise BackendUnavailable("jobs on Slurm need submitit, which is not installed", fix=EXTRA) from error
        for command in ("sbatch", "squeue", "srun"):
            if shutil.which(command) is None:
                problem = f"there is no {command} on this machine, so it is none of a Slurm cluster"
                raise BackendUnavailable(problem, fix="type the command on a login node, or leave out --on slurm")
        self.folder = plan.folder / HIDDEN / FOLDER
        self.failure: type[Exception] = submitit.core.utils.FailedJobError
        self.executor = submitit.SlurmExecutor(folder=self.folder)
        self.executor.update_parameters(
            **{"job_name": "tlx", "signal_delay_s": ENDING_SOON, "additional_parameters": {"requeue": True}},
            **{"time": MINUTES, **parameters},
        )

    def submit(self, plan: Plan) -> str:
        """Submit a job that works on the plan; raises TlxError with the line in which Slurm refuses it."""
        try:
            return str(self.executor.submit(work, plan).job_id)
        except self.failure as error:
            raise refusal(str(error), self.executor.parameters.get("partition")) from None

    def states(self) -> dict[str, str]:
        """Ask squeue, which for some minutes knows what has ended too."""
        own = {path.name.partition("_")[0] for path in self.folder.glob("*_submission.sh")}
        lines = [line.split() for line in answer_of("squeue", "--me", "--noheader", "--states=all", "--format=%A %T")]
        return {job: STATES.get(state, state.lower()) for job, state in lines if job in own}


def answer_of(*command: str, patience: float = PATIENCE, pause: float = PAUSE) -> list[str]:
    """Return the lines of a command of Slurm, asked again for some seconds while the controller does not answer.

    Raises:
        TlxError: it has not answered in all that time.
    """
    begin = time.monotonic()
    while True:
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=max(pause, 1) * 10)
            if not answer.returncode:
                return answer.stdout.splitlines()
            said = last_said(answer.stderr)
        except subprocess.TimeoutExpired:
            said = "nothing"
        if time.monotonic() - begin > patience:
            problem = f"Slurm has not answered for {patience / 60:.0f} minutes; {command[0]} says: {said}"
            raise TlxError(problem, fix="the jobs go on; look again with the same command")
        time.sleep(pause)


def last_said(text: str) -> str:
    """Return the first error in what a command of Slurm wrote, without the command's name."""
    lines = [line for line in text.splitlines() if "error: " in line] or text.split("\n")
    return lines[0].partition("error: ")[2].strip() or lines[0].strip()


def refusal(text: str, partition: str | None) -> TlxError:
    """Say in one line why Slurm takes no job; of a wrong partition, which there are."""
    said = last_said(text)
    if partition is None or "partition" not in said:
        return TlxError(f"Slurm takes no job: {said}", fix="change it with --slurm NAME=VALUE")
    answer = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True)
    return RecipeError(f"Slurm has no partition {shown(partition)}.{closest(partition, answer.stdout.split())}")


def work(plan: Plan) -> None:
    """Run the cells of a plan that nobody works on, in a job; one whose time is over goes back into the queue."""
    os.environ.pop("SLURM_STEP_NUM_TASKS", None)  # the runs are processes of their own, and no tasks of this step
    signal.signal(TIME_IS_UP, signal.SIG_DFL)  # submitit's handler would not wait until the run is saved
    try:
        with interruptible() as stop:
            stop.at("the job was stopped; what was done is saved")
            take_cells(plan)
    except Interrupted as error:
        # Slurm sends this before the time is over. What it preempts, or requeues, it puts into the queue by itself.
        if error.signum != TIME_IS_UP or "SLURM_JOB_ID" not in os.environ:
            raise SystemExit(str(error)) from None
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)


def run_by_jobs(plan: Plan, queue: Queue, jobs: int, say: Say, show: Say, told: Say) -> dict[str, Outcome]:
    """Have jobs run every cell that is not finished, and wait; return what each has come to, by name.

    Jobs that an earlier driver of this folder has submitted are not submitted again. `told` is told how to end the
    jobs, as often as there are more of them.
    """
    pending, outcomes, total = list(plan.cells), dict[str, Outcome](), len(plan.cells)
    taken(plan, pending, outcomes)  # what was finished before is not news
    seen = active(queue.states())
    if seen:
        say(f"{_counted(len(seen))} of an earlier command still there: {', '.join(sorted(seen))}")
    own: list[str] = []
    for _ in range(min(jobs, len(pending)) - len(seen)):
        try:
            own.append(queue.submit(plan))
        except TlxError as error:
            if not (seen or own):
                raise
            say(f"note: {jobs} jobs were asked for, and the cells are done by {len(seen) + len(own)}: {error.problem}")
            break
    if own:
        say(f"{_counted(len(own))} submitted: {', '.join(own)}")
    watched, last = [*seen, *own], {**seen, **dict.fromkeys(own, WAITING)}
    told(" ".join(watched))
    while pending:
        states = queue.states()
        now = {job: states.get(job, "ended") for job in watched}
        for job, state in now.items():
            if last[job] != state:
                say(f"job {job} is {state}" if state in (WAITING, RUNNING) else f"job {job} has ended: {state}")
        last = now
        before = len(outcomes)  # after the states: a job that has ended has written all that it will
        for number, cell in enumerate(taken(plan, pending, outcomes), before + 1):
            say(line_of(cell, outcomes[cell.name], number, total))
        at_work = active(now)
        others = [] if at_work else [cell for cell in pending if held(plan, cell)]
        if pending and not at_work and not others:
            for cell in pending:
                outcomes[cell.name] = Outcome("failed", _unfinished(plan, now))
            break
        failed = sum(outcome.state == "failed" for outcome in outcomes.values())
        counts = [f"{list(now.values()).count(state)} {state}" for state in (WAITING, RUNNING)]
        waiting = ", ".join(counts) if at_work else f"{len(others)} cells with other drivers"
        show(f"{len(outcomes) - failed} of {total} cells finished, {failed} failed; jobs: {waiting}")
        time.sleep(OTHERS if pending else 0)
    return outcomes


def active(states: Mapping[str, str]) -> dict[str, str]:
    """Return the jobs that wait or run."""
    return {job: state for job, state in states.items() if state in (WAITING, RUNNING, "completing")}


def _unfinished(plan: Plan, ended: Mapping[str, str]) -> str:
    """Say how the jobs ended that left a cell behind."""
    jobs = ", ".join(f"job {job} has ended ({state})" for job, state in ended.items()) or "no job worked on it"
    logs = [plan.folder / HIDDEN / FOLDER / f"{job}_0_log.err" for job in ended]
    said = next(filter(None, map(_last_words, logs)), "")
    return f"{jobs}{': ' + said if said else ''}; the same command goes on"


def _last_words(log: Path) -> str:
    return "" if "submitit INFO" in (text := last_line(log)) else text


def _counted(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"
