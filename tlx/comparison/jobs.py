"""What clusters have in common that run the cells of a comparison: their parameters, and a queue of jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tlx.comparison.cells import Outcome, joined, settled, take_lease
from tlx.comparison.drive import run_cells
from tlx.comparison.plan import Cell, Plan
from tlx.errors import RecipeError, closest, shown

WAITING, RUNNING = "queued", "running"
Parameters = Mapping[str, tuple[str, Callable[[str], Any]]]  # what an option takes: the engine's name, and its reader


def count(text: str) -> int:
    """Read a number of something that a job has."""
    if not text.isdecimal() or not int(text):
        raise ValueError("a whole number from 1 on")
    return int(text)


def gigabytes(text: str) -> float:
    """Read a size of memory."""
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text):
        raise ValueError("a number of gigabytes, such as 16")
    return float(text)


def read_parameters(engine: str, known: Parameters, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a job as its engine names them; raises RecipeError where one is unknown or wrong."""
    parameters: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise RecipeError(f"{engine}: there is no parameter {shown(name)}.{closest(str(name), known)}")
        own_name, read = known[name]
        try:
            parameters[own_name] = read(str(value).strip())
        except ValueError as error:
            raise RecipeError(f"{engine}: {name} is {shown(value)}; expected {error}") from None
    return parameters


def split_parameters(engine: str, texts: Sequence[str]) -> dict[str, str]:
    """Read texts such as ``gpus=1``."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise RecipeError(f"{engine} is {shown(text)}; expected a parameter and its value, such as gpus=1")
        if name in pairs:
            raise RecipeError(f"{engine}: {name} is given twice", fix="give it once")
        pairs[name] = value
    return pairs


class Queue(Protocol):
    """Takes jobs, and says what has become of them."""

    def submit(self, plan: Plan) -> str:
        """Start a job that works on a plan, now or later; return its name."""

    def states(self) -> dict[str, str]:
        """Return the jobs of this folder that are known: "queued", "running" or how it ended, by name."""


def take_cells(plan: Plan) -> dict[str, Outcome]:
    """Run the cells of a plan that nobody works on, in a job; return what each has come to."""
    with joined(plan, afresh=False):
        return run_cells(plan, 1, lambda text: print(text, flush=True), lambda text: None, wait=False)


def taken(plan: Plan, pending: list[Cell], outcomes: dict[str, Outcome]) -> list[Cell]:
    """Move the cells that have come to something from `pending` to `outcomes`, and return them."""
    done = []
    for cell in list(pending):
        if (outcome := settled(plan, cell)) is not None:
            outcomes[cell.name] = outcome
            pending.remove(cell)
            done.append(cell)
    return done


def held(plan: Plan, cell: Cell) -> bool:
    """Whether a process works on a cell."""
    if (lease := take_lease(plan, cell.name)) is None:
        return True
    lease.release()
    return False
