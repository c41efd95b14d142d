"""Which process this is, as the program says that started it: torchrun, Slurm's srun, or `tlx run --processes`."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from collections.abc import Mapping

from tlx.errors import ProcessesError
from tlx.processes.world import ALONE, World

TOKEN = "TLX_RUN_TOKEN"  # what the processes of a run know, and no other
PIPE = "TLX_LAUNCHER_PIPE"  # the number of a pipe whose other end `tlx run --processes` holds while it lives
# What tells a run, and a start of it, from others, as far as launchers say so.
_OF_THE_RUN = (
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", TOKEN),
)
PORTS = 3  # of the framework's own, OneFlow's, and the channel's: MASTER_PORT and the two after it


def world_of(environ: Mapping[str, str]) -> World:
    """Read a launcher's variables: RANK, WORLD_SIZE and so on, or those of a step of Slurm; without them, `ALONE`.

    A script of sbatch is no step: what it starts without srun is alone, however many tasks the job has.

    Raises:
        ProcessesError: a variable is missing, or says what cannot be.
    """
    if "WORLD_SIZE" in environ:
        return _checked(_of_torchrun(environ))
    if "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ:
        return _checked(_of_slurm(environ))
    return ALONE


def token_of(environ: Mapping[str, str]) -> bytes:
    """Return what the processes of one start of a run share, of 32 bytes; secret where TLX_RUN_TOKEN is set."""
    facts = "\n".join(f"{name}={environ.get(name, '')}" for name in _OF_THE_RUN)
    return hashlib.sha256(facts.encode(errors="surrogateescape")).digest()


def end_with_launcher() -> None:
    """End this process, as SIGTERM does, once the `tlx run --processes` that started it has been killed."""
    number = os.environ.pop(PIPE, None)  # what this process starts has no such pipe
    if number is not None:
        threading.Thread(target=_await_end, args=(int(number),), name="tlx-launcher", daemon=True).start()


def _await_end(pipe: int) -> None:
    os.read(pipe, 1)  # nothing is ever written
    os.kill(os.getpid(), signal.SIGTERM)


def _of_torchrun(environ: Mapping[str, str]) -> World:
    size = _number(environ, "WORLD_SIZE")
    if size == 1:
        return ALONE
    rank = _number(environ, "RANK")
    host = environ.get("MASTER_ADDR")
    if not host:
        raise _missing(environ, "MASTER_ADDR")
    return World(
        rank,
        size,
        _number(environ, "LOCAL_RANK", rank),
        _number(environ, "LOCAL_WORLD_SIZE", size),
        host,
        _number(environ, "MASTER_PORT"),
    )


def _of_slurm(environ: Mapping[str, str]) -> World:
    size = _number(environ, "SLURM_STEP_NUM_TASKS")
    if size == 1:
        return ALONE
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST") or ""
    tasks = _tasks(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environ, "SLURM_NODEID", 0)
    return World(
        _number(environ, "SLURM_PROCID"),
        size,
        _number(environ, "SLURM_LOCALID", 0),
        tasks[node] if node < len(tasks) else size,
        environ.get("MASTER_ADDR") or first_host(nodes),
        _number(environ, "MASTER_PORT", _port(environ)),
    )


def _port(environ: Mapping[str, str]) -> int:
    """Derive a port from a job's and a step's numbers: of 5,000 threes below those that systems give out, 32768 on."""
    name = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}".encode()
    return 16384 + PORTS * (int.from_bytes(hashlib.sha256(name).digest()[:4], "big") % 5000)


def first_host(nodes: str) -> str:
    """Return the first host of a list as Slurm writes it, such as ``gpu[03-05,9],login``: ``gpu03``."""
    match = re.match(r"([^,\[]*)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""


def _tasks(text: str) -> list[int]:
    """Read the tasks of each node, which Slurm writes ``2(x3),1``."""
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, nodes in counts for _ in range(int(nodes or 1))]


def _checked(world: World) -> World:
    if world.size == 1:
        return ALONE
    if not 0 <= world.rank < world.size:
        raise ProcessesError(f"this is process {world.rank} of {world.size}; expected a number below {world.size}")
    if not world.host:
        raise ProcessesError("the launcher does not say where process 0 runs", fix="set MASTER_ADDR to its host")
    if not 0 < world.port <= 65535 - PORTS + 1:
        problem = f"MASTER_PORT is {world.port}, and the two ports after it are taken, too"
        raise ProcessesError(problem, fix=f"set it to a number from 1024 to {65535 - PORTS + 1}")
    return world


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None:
        if default is None:
            raise _missing(environ, name)
        return default
    if not re.fullmatch(r"\d{1,9}", text.strip()):
        raise ProcessesError(f"the variable {name} is {text!r}; expected a whole number")
    return int(text)


def _missing(environ: Mapping[str, str], name: str) -> ProcessesError:
    size = environ.get("WORLD_SIZE", environ.get("SLURM_STEP_NUM_TASKS"))
    return ProcessesError(
        f"WORLD_SIZE is {size}, and the variable {name} is not set",
        fix="start the processes with torchrun, srun or `tlx run --processes`, or unset WORLD_SIZE",
    )
