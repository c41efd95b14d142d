"""Have a Ray cluster run the cells of a comparison: a task for each, which takes its lease like any driver."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, redirect_stdout
from dataclasses import replace
from importlib import import_module
from itertools import islice
from typing import Any

from tlx.comparison.cells import HIDDEN, Outcome
from tlx.comparison.drive import OTHERS, Say, line_of
from tlx.comparison.jobs import RUNNING, Parameters, count, gigabytes, held, take_cells, taken
from tlx.comparison.plan import Candidate, Cell, Plan
from tlx.errors import BackendUnavailable, TlxError, one_line

EXTRA = 'pip install "tlx[ray]"'
TRIES = 3  # of a cell whose task ends without it
ANSWER = 5.0  # seconds in which a cluster does
SAVING = 60.0  # seconds in which cells that are cancelled save and end
# What --ray takes: the name that Ray has for it, and what reads its value.
PARAMETERS: Parameters = {
    "cpus": ("num_cpus", count),
    "gpus": ("num_gpus", count),
    "memory": ("memory", lambda text: int(gigabytes(text) * 2**30)),
}
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}  # as a node of the cluster names them


class Ray:
    """The Ray cluster of this process, or of RAY_ADDRESS, or of this machine."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        """Connect; raises BackendUnavailable where Ray or its cluster is missing."""
        try:
            ray: Any = import_module("ray")
        except ImportError as error:
            raise BackendUnavailable("tasks on Ray need ray, which is not installed", fix=EXTRA) from error
        self.ray, self.parameters = ray, {"num_cpus": 1, **parameters}
        self.connected = not ray.is_initialized()
        if self.connected:
            try:
                _look_for(os.environ.get("RAY_ADDRESS", ""))
                ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
            except Exception as error:  # of many kinds: no cluster, none at this address, one of another version
                problem = f"no Ray cluster can be reached: {one_line(str(error).partition('. ')[0])}"
                fix = "start one with `ray start --head`, or name one with RAY_ADDRESS"
                raise BackendUnavailable(problem, fix=fix) from error
        self.tasks: dict[str, Any] = {}
        self.task = ray.remote(work)

    def submit(self, plan: Plan) -> str:
        """Submit a task that works on a plan of one cell."""
        (cell,) = plan.cells
        options = {"num_gpus": _gpus(cell), **self.parameters, "max_retries": 0, "name": f"tlx {cell.name}"}
        reference = self.task.options(**options).remote(plan, os.getcwd())
        self.tasks[reference.hex()] = reference
        return str(reference.hex())

    def states(self) -> dict[str, str]:
        """Ask which tasks have ended since, and how; Ray does not say which of the others wait for a node."""
        references = list(self.tasks.values())
        ended, _ = self.ray.wait(references, num_returns=len(references), timeout=0) if references else ([], [])
        return {**dict.fromkeys(self.tasks, RUNNING), **{ref.hex(): self._end(ref) for ref in ended}}

    def _end(self, reference: Any) -> str:
        del self.tasks[reference.hex()]
        try:
            return self.ray.get(reference) or "without its cell"
        except self.ray.exceptions.WorkerCrashedError:
            return "its worker died"
        except self.ray.exceptions.RayTaskError as error:
            return one_line(str(error.cause))
        except self.ray.exceptions.RayError as error:  # a node that was lost, memory that ran out
            return one_line(str(error).partition("\n")[0])

    def lacking(self, cell: Cell) -> str:
        """Say what a cell asks for where no node of the cluster has it now; "" where one has."""
        wanted = {RESOURCES[name]: of for name, of in {"num_gpus": _gpus(cell), **self.parameters}.items() if of}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= of for name, of in wanted.items()) for node in nodes):
            return ""
        asked = ", ".join(f"{of / 2**30:g} GB" if name == "memory" else f"{of} {name}" for name, of in wanted.items())
        return f"no node of the cluster has what a cell asks for ({asked}); cells wait until one joins"

    def close(self) -> None:
        """Cancel the tasks that are left, which save where they stand, and disconnect."""
        for reference in self.tasks.values():
            self.ray.cancel(reference)
        references = list(self.tasks.values())
        if references:
            self.ray.wait(references, num_returns=len(references), timeout=SAVING)
        self.tasks.clear()
        if self.connected:
            self.ray.shutdown()


def _look_for(address: str) -> None:
    """Raise OSError where nothing listens at an address such as 10.0.0.1:6379: Ray itself tries for a quarter hour."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "//" not in host:
        try:
            socket.create_connection((host, int(port)), ANSWER).close()
        except OSError as error:
            raise ConnectionError(f"nothing listens at {address}") from error


def _gpus(cell: Cell) -> int:
    """Return how many GPUs a cell needs by its recipe."""
    return int(cell.recipe.device.startswith("cuda"))


def work(plan: Plan, where: str) -> str:
    """Run the one cell of a plan in a task; return why nothing came of it, "" where another driver works on it."""
    os.chdir(where)
    if not (plan.folder / HIDDEN).is_dir():
        raise TlxError(
            f"node {os.uname().nodename} does not see {plan.folder}", fix="use a folder that all nodes share"
        )
    return next((outcome.problem for outcome in take_cells(plan).values()), "")


def run_by_tasks(plan: Plan, cluster: Ray, jobs: int, say: Say, show: Say) -> dict[str, Outcome]:
    """Have up to `jobs` tasks at a time run every cell that is not finished; return what each has come to, by name.

    A cell whose task ends without it, as its worker or node died, gets another. What others work on is waited for.
    """
    pending, outcomes, total = list(plan.cells), dict[str, Outcome](), len(plan.cells)
    taken(plan, pending, outcomes)  # what was finished before is not news
    tasks, tries = dict[str, Cell](), Counter[str]()
    if pending and (lacking := cluster.lacking(pending[0])):
        say(f"note: {lacking}")
    # Ray tells of dead workers on stdout, which is for the result.
    with redirect_stdout(sys.stderr), closing(cluster):
        while pending:
            busy = {cell.name for cell in tasks.values()}
            free = (cell for cell in pending if cell.name not in busy and not held(plan, cell))
            for cell in islice(free, jobs - len(tasks)):
                tasks[cluster.submit(_alone(plan, cell))] = cell
            states = cluster.states()
            before = len(outcomes)  # after the states: a task that has ended has written all that it will
            for number, cell in enumerate(taken(plan, pending, outcomes), before + 1):
                say(line_of(cell, outcomes[cell.name], number, total))
            for task in [name for name in tasks if states[name] != RUNNING]:
                cell = tasks.pop(task)
                if cell.name in outcomes or held(plan, cell):
                    continue
                tries[cell.name] += 1
                say(f"{cell.label}: its task ended: {states[task]}")
                if tries[cell.name] == TRIES:
                    problem = f"{TRIES} tasks ended without it, the last: {states[task]}; the same command goes on"
                    outcomes[cell.name] = Outcome("failed", problem)
                    pending.remove(cell)
            failed = sum(outcome.state == "failed" for outcome in outcomes.values())
            waiting = f"{len(tasks)} tasks on Ray" if tasks else f"{len(pending)} cells with other drivers"
            show(f"{len(outcomes) - failed} of {total} cells finished, {failed} failed; {waiting}")
            time.sleep(OTHERS if pending else 0)
    return outcomes


def _alone(plan: Plan, cell: Cell) -> Plan:
    return replace(plan, candidates=(Candidate(cell.arm, cell.grid, (cell,)),))
